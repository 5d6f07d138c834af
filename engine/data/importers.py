"""Turns the files people have into a dataset directory.

Understood are the JSON lines of the extreme classification repository (`trn.json`, `tst.json`, `lbl.json`) and
tables with a text and a labels column (`.csv`, `.tsv`, `.jsonl`; see `engine.data.tables`), all optionally `.gz`.
"""

from collections.abc import Iterator
from itertools import tee
from pathlib import Path

from engine.data.manifest import file_digest
from engine.data.sourcefiles import Progress, ProgressMeter, read_objects
from engine.data.store import Dataset, DatasetWriter
from engine.data.tables import TableColumns, find_tables, import_tables
from engine.errors import DataError

ACCEPTED = (
    "a folder with trn.json, lbl.json and optionally tst.json (extreme classification repository), a folder with"
    " train.csv (or .tsv, .jsonl) and optionally test.csv, or one .csv, .tsv or .jsonl file; each may end in .gz"
)


def import_dataset(
    source: Path | str,
    output: Path | str,
    *,
    name: str | None = None,
    columns: TableColumns | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Imports `source`, a file or folder in any layout that is understood, into the dataset directory `output`.

    name: of the dataset; by default that of the source.
    columns: which columns of a table hold what.
    progress: called with (bytes read, bytes in all).

    Raises DataError when the layout is unknown (naming what is accepted and what was found), and for whatever is
    wrong inside the files, with file:line; ConfigError when `output` is taken and `overwrite` is false.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; give {ACCEPTED}")
    if find_xmc_file(source, "trn"):
        return import_xmc_json(source, Path(output), name=name, overwrite=overwrite, progress=progress)
    if tables := find_tables(source):
        name = name or source.name.split(".")[0]
        return import_tables(tables, output, name, columns or TableColumns(), overwrite=overwrite, progress=progress)
    found = sorted(entry.name for entry in source.iterdir())[:12] if source.is_dir() else [source.name]
    raise DataError(f"{source}: unknown layout; accepted: {ACCEPTED}; found: {', '.join(found) or 'nothing'}")


def import_xmc_json(
    source: Path | str,
    output: Path | str,
    *,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Imports a folder in the layout of the extreme classification repository. Streams; arguments as above.

    One JSON object a line: `uid`, `title`, `content`, `target_ind` (label ids), `target_rel` in `trn.json` and
    `tst.json`; `uid`, `title` and perhaps `content` in `lbl.json`, whose n-th line is label n. A text is the title
    and the content.
    """
    source = Path(source)
    found = {part: find_xmc_file(source, part) for part in ("trn", "tst", "lbl")}
    for part in ("trn", "lbl"):
        if found[part] is None:
            raise DataError(f"{source}: no {part}.json or {part}.json.gz; give {ACCEPTED}")
    files = [file for file in found.values() if file is not None]
    # The labels are read twice, once only to count them: there can be too many to keep.
    meter = ProgressMeter(progress, [*files, found["lbl"]])
    sources = {file.name: f"sha256:{file_digest(file)}" for file in files}
    with DatasetWriter(output, name or source.resolve().name, sources, overwrite) as writer:
        n_labels = sum(1 for _ in read_objects(found["lbl"], meter))
        for split, file in (("train", found["trn"]), ("test", found["tst"])):
            if file is not None:
                for where, uid, text, ids in _read_instances(file, n_labels, meter):
                    writer.add(split, uid, text, ids, where)
        # `finish` takes turns between names and texts, so little waits in between.
        labels, again = tee(_read_labels(found["lbl"], meter))
        return writer.finish((name for name, _ in labels), (text for _, text in again))


def find_xmc_file(source: Path, part: str) -> Path | None:
    """`part.json` or `part.json.gz` in the folder `source`, if there is one."""
    candidates = (source / f"{part}.json", source / f"{part}.json.gz")
    return next((file for file in candidates if file.is_file()), None)


def _read_labels(file: Path, meter: ProgressMeter) -> Iterator[tuple[str, str | None]]:
    """Name and text of every label. One without a content has no text of its own."""
    for where, label in read_objects(file, meter):
        title = _string(label, "title", where)
        content = _string(label, "content", where)
        yield title or _uid(label, where), join_texts(title, content) if content else None


def _read_instances(file: Path, n_labels: int, meter: ProgressMeter) -> Iterator[tuple[str, str, str, list[int]]]:
    """Instances as (place, uid, text, label ids)."""
    for where, instance in read_objects(file, meter):
        if "title" not in instance and "content" not in instance:
            raise DataError(f"{where}: neither 'title' nor 'content'; found the keys {', '.join(instance) or 'none'}")
        text = join_texts(_string(instance, "title", where), _string(instance, "content", where))
        ids = instance.get("target_ind")
        if not isinstance(ids, list) or not all(type(label) is int for label in ids):
            problem = "is missing" if ids is None else "is not a list of whole numbers"
            raise DataError(f"{where}: 'target_ind' {problem}")
        relevances = instance.get("target_rel", ids)
        if not isinstance(relevances, list) or len(relevances) != len(ids):
            raise DataError(f"{where}: 'target_ind' and 'target_rel' are not lists of the same length")
        for label in ids:
            if not 0 <= label < n_labels:
                raise DataError(f"{where}: label id {label} is outside 0..{n_labels - 1}, the lines of the label file")
        yield where, _uid(instance, where), text, ids


def _string(item: dict, key: str, where: str) -> str:
    value = item.get(key) or ""
    if not isinstance(value, str):
        raise DataError(f"{where}: '{key}' is {type(value).__name__}, not a string")
    return value.strip()


def _uid(item: dict, where: str) -> str:
    uid = item.get("uid")
    if not isinstance(uid, str | int):
        raise DataError(f"{where}: 'uid' is missing or not a string")
    return str(uid)


def join_texts(title: str, content: str) -> str:
    """Title and content as one text: two sentences, whether or not the title ends like one."""
    if not title or not content:
        return title or content
    return f"{title} {content}" if title[-1] in ".!?:;…" else f"{title}. {content}"
