"""Turns the files people have into a dataset directory: recognises the layout, checks every row, holds out a test set.

The layouts are classes of their own: `engine.data.tables`, `engine.data.xmc_json`, `engine.data.raw_text`.
"""

import hashlib
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.filters import filter_sets, read_pairs
from engine.data.hub import FORMAT as HUB
from engine.data.hub import HubTables
from engine.data.label_sets import LabelSets
from engine.data.layouts import Layout
from engine.data.manifest import file_digest
from engine.data.own_labels import find_own_labels
from engine.data.problems import REPORT, Problems
from engine.data.raw_text import Aalto, Pecos, XmcText
from engine.data.sourcefiles import Progress, ProgressMeter
from engine.data.store import Dataset, DatasetWriter, InstanceError, text_bytes
from engine.data.table_readers import TableColumns
from engine.data.tables import READERS, Tables
from engine.data.xmc_json import XmcJson
from engine.errors import DataError
from engine.words import counted

HELD_OUT = 0.1  # of the texts, where there is no test file
_HASHED = 256  # characters of each end of a text that decide about it
ACCEPTED = (
    "one .csv, .tsv, .jsonl or .parquet file, a folder with train.* and optionally test.* of these, or a folder with"
    " trn.json and lbl.json (xmc-json), train_raw_texts.txt and train_labels.txt (aalto), trn_X_Y.txt and trn_X.txt"
    " (xmc-text), X.trn.txt and Y.trn.npz (pecos), or what the library `datasets` saved; all but .parquet and .npz may"
    " end in .gz; a dataset of a hub by its name with the format hub"
)
FOLDERS = {layout.format: layout for layout in (XmcJson, Aalto, XmcText, Pecos)}
FORMATS = (*READERS, *FOLDERS, HUB)


def import_dataset(
    source: Path | str,
    output: Path | str,
    *,
    name: str | None = None,
    format: str | None = None,
    columns: TableColumns | None = None,
    test_fraction: float = HELD_OUT,
    seed: int = 0,
    overwrite: bool = False,
    keep_own_labels: bool = False,
    problems: Problems | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Imports `source`, a file or folder in any layout that is understood, into the dataset directory `output`.

    name: of the dataset; by default that of the source.
    format: one of FORMATS, where the names of the files do not say it.
    columns: which columns of a table hold what.
    test_fraction, seed: how much is held out for testing where there is no test file, in [0, 1), and which texts;
        equal texts never stand on both sides.
    keep_own_labels: look for no texts that are labels themselves, which would leave their own predictions (see
        `engine.data.own_labels`).
    problems: collects the rows that are left out, or refuses them all (`Problems(strict=True)`). They are also listed
        in the file `import-problems.jsonl` of the dataset.
    progress: called with (bytes read, bytes in all).

    `meta["details"]` of the result says what was decided, and counts the problems by kind. Raises DataError when the
    layout is unknown (naming what is accepted and what was found), when no row could be imported, and for a file that
    is damaged or does not fit the others; ConfigError when `output` is taken and `overwrite` is false.
    """
    source = Path(source)
    layout = find_layout(source, format, columns or TableColumns())
    name = name or (source.name.split(".")[0] if source.is_file() else source.resolve().name.partition(":")[0])
    problems = problems or Problems()
    meter = ProgressMeter(progress, layout.reads)
    held_out = held_out_rule(test_fraction, seed) if "test" not in layout.splits and test_fraction else None
    with (
        ThreadPoolExecutor(1) as hasher,
        DatasetWriter(output, name, {}, overwrite) as writer,
        closing(problems),
    ):
        digests = {file.name: hasher.submit(file_digest, file) for file in dict.fromkeys(layout.reads)}
        problems.report_in(writer.folder)
        kept = {split: array("q") for split in ("train", "test")} if layout.filters else None
        repeated = sum(_add_rows(layout, split, writer, meter, problems, held_out, kept) for split in layout.splits)
        if not writer.instances("train"):
            raise DataError(_nothing(source, writer, problems))
        details: dict[str, Any] = {"format": layout.format, **layout.details(), "repeated_labels": repeated}
        if kept:
            details["filter_pairs"], unused = _add_filters(layout, kept, writer, meter, problems)
            details |= {"unused_filter_pairs": unused} if unused else {}
        if held_out:
            details |= {"test_fraction": test_fraction, "seed": seed}
        if problems.kinds:
            details |= {"problems": problems.counts(), "report": REPORT}
        problems.close()
        writer.sources = {file: f"sha256:{digest.result()}" for file, digest in digests.items()}

        def find_pairs(labels: dict[str, LabelSets]) -> None:
            for split, pairs in find_own_labels(writer.folder, labels).items():
                writer.add_filter(split, pairs)
                details.setdefault("own_labels", {})[split] = len(pairs.ids)

        looks = None if layout.filters or keep_own_labels else find_pairs
        return writer.finish(*layout.label_table(meter), details=details, looks=looks)


def find_layout(source: Path, format: str | None, columns: TableColumns) -> Layout:
    """The layout of `source`. Raises DataError when there is none, or not that of `format`."""
    if layout := HubTables.find(source, columns, format):
        return layout
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; give {ACCEPTED}")
    candidates = [FOLDERS[format]] if format in FOLDERS else [] if format else FOLDERS.values()
    layout = next(filter(None, (candidate.find(source) for candidate in candidates)), None)
    if layout is None and format not in FOLDERS:
        layout = Tables.find(source, columns, format)
    if layout is None:
        found = sorted(entry.name for entry in source.iterdir())[:12] if source.is_dir() else [source.name]
        found = ["".join(c if c.isprintable() else "�" for c in name) for name in found]
        wanted = f"not in the format {format}" if format else "unknown layout"
        raise DataError(f"{source}: {wanted}; accepted: {ACCEPTED}; found: {', '.join(found) or 'nothing'}")
    return layout


def held_out_rule(fraction: float, seed: int) -> Callable[[str], bool]:
    """A function that says whether a text is held out: by its hash, so that equal texts are or are not."""
    salt, border = seed.to_bytes(8, "little"), fraction * 2**64

    def is_held_out(text: str) -> bool:
        if len(text) > 2 * _HASHED:
            text = f"{len(text)} {text[:_HASHED]}{text[-_HASHED:]}"
        digest = hashlib.blake2b(text.encode(), digest_size=8, salt=salt).digest()
        return int.from_bytes(digest, "little") < border

    return is_held_out


def _add_rows(
    layout: Layout,
    split: str,
    writer: DatasetWriter,
    meter: ProgressMeter,
    problems: Problems,
    is_held_out: Callable[[str], bool] | None,
    kept: dict[str, array] | None,
) -> int:
    """Adds the rows of a split. Returns how many labels stood twice in a row.

    kept: where given, gets the row in the source, from 0, of each instance.
    """
    repeated = 0
    for line, uid, text, labels in layout.rows(split, meter, problems):
        try:
            size = text_bytes(uid, text)
            ids = layout.label_ids(labels)
        except InstanceError as error:
            problems.add(error.kind, layout.place(split, line), str(error))
            continue
        repeated += len(labels) - len(ids)
        side = "test" if is_held_out and is_held_out(text) else split
        writer.append(side, uid, text, size, ids)
        if kept is not None:
            kept[side].append(line - 1)
    return repeated


def _add_filters(
    layout: Layout, kept: dict[str, array], writer: DatasetWriter, meter: ProgressMeter, problems: Problems
) -> tuple[dict[str, int], int]:
    """Adds the reciprocal filters, a held-out test set's from the file of the training set.

    Returns their sizes, and the number of pairs whose row was left out or is none.
    """
    sizes, unused = {}, 0
    for source, file in layout.filters.items():
        rows, labels = read_pairs(file, layout.label_ids, meter, problems)
        sides = ("train", "test") if len(layout.splits) == 1 else (source,)
        unused += len(rows) - int(np.isin(rows, np.concatenate([np.array(kept[side]) for side in sides])).sum())
        for side in sides:
            if writer.instances(side):
                sets = filter_sets(rows, labels, np.frombuffer(kept[side], np.int64))
                writer.add_filter(side, sets)
                sizes[side] = len(sets.ids)
    return sizes, unused


def _nothing(source: Path, writer: DatasetWriter, problems: Problems) -> str:
    """Why there is no train instance."""
    if first := problems.first():
        found = counted(sum(problems.counts().values()), "problem")
        return f"{first} (the first of {found}; no row could be imported)"
    if held_out := writer.instances("test"):
        return (
            f"{source}: every text ({held_out:,}) was held out for testing; lower the test fraction, 0 holds out none"
        )
    return f"{source}: no train instances, so there is nothing to learn from"
