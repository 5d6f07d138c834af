"""The dataset directory: texts and label sets on disk, opened without reading them into memory.

    dataset.json                             name, counts, schema version, sources, size and sha256 of every file
    train.parquet, test.parquet              uid, text
    train_offsets.npy, train_ids.npy, ...    label sets as CSR: int64 offsets [N + 1], int32 label ids [nnz]
    test_filter_offsets.npy, ...             labels that are no predictions of an instance, where there are any
    labels.parquet                           name, text (or null), train_frequency; row l is label l
    cache/                                   whatever can be computed again

A `Dataset` reads one, a `DatasetWriter` makes one.
"""

import errno
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from engine.data.arrays import open_npy
from engine.data.label_sets import LabelSets
from engine.data.manifest import (
    AGAIN,
    LABELS_FILE,
    MANIFEST,
    SCHEMA,
    SPLITS,
    check_file,
    file_digest,
    filter_files,
    open_parquet,
    open_vector,
    read_manifest,
    split_files,
)
from engine.data.output_folder import check_target, move_into_place, sibling, sweep
from engine.data.split_writer import SplitWriter
from engine.errors import DataError, EnvironmentProblem, reason

_READ_ROWS = 1024  # texts decoded at a time
_MAX_ID = 2**31 - 1
_LABEL_ROWS = 1 << 16  # label names written at a time


@dataclass(frozen=True)
class Split:
    """One side of a dataset: N texts with their label sets. Texts stay on disk.

    digest: sha256 of the parquet file; whatever is derived from the texts is keyed by it.
    filter: labels to take out of an instance's predictions before hits are counted, where the source has such pairs.
    """

    name: str
    labels: LabelSets
    path: Path
    digest: str
    filter: LabelSets | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def texts(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """Texts of instances `start` to `stop` (exclusive), streamed: a few row groups are in memory at a time."""
        return self._column("text", start, stop)

    def uids(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """Identifiers of instances `start` to `stop` (exclusive), streamed like the texts."""
        return self._column("uid", start, stop)

    def _column(self, column: str, start: int, stop: int | None) -> Iterator[str]:
        import pyarrow as pa

        stop = len(self) if stop is None else min(stop, len(self))
        with open_parquet(self.path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = [g for g, end in enumerate(ends) if end > start and end - sizes[g] < stop]
            position = int(ends[groups[0]] - sizes[groups[0]]) if groups else 0
            try:
                for batch in file.iter_batches(_READ_ROWS, row_groups=groups, columns=[column], use_threads=False):
                    first = max(start - position, 0)
                    last = min(stop - position, len(batch))
                    if first < last:
                        yield from batch.column(0).slice(first, last - first).to_pylist()
                    position += len(batch)
            except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
                raise DataError(f"{self.path}: damaged ({reason(error)}); {AGAIN}") from None


@dataclass(frozen=True)
class Dataset:
    """An opened dataset directory.

    meta: the content of `dataset.json`.  digest: sha256 of that file, which records the digests of all others.
    """

    path: Path
    name: str
    n_labels: int
    train: Split
    test: Split | None
    meta: dict
    digest: str

    @classmethod
    def open(cls, path: Path | str, verify: bool = False) -> Self:
        """Opens `path`, checking that every file is there and has the recorded size.

        With `verify`, every file is read: its sha256 is compared, and label sets must be sorted, free of duplicates
        and inside `[0, n_labels)`.

        Raises DataError when anything does not hold.
        """
        path = Path(path)
        meta, digest = read_manifest(path)
        for name, recorded in meta["files"].items():
            check_file(path / name, recorded, verify)
        splits = {name: _open_split(path, name, meta) for name in SPLITS if name in meta["splits"]}
        if verify:
            for split in splits.values():
                checked = [(split_files(split.name)[2], split.labels), (filter_files(split.name)[1], split.filter)]
                for name, sets in checked:
                    if problem := sets and sets.problem(meta["n_labels"]):
                        raise DataError(f"{path / name}: {problem}; {AGAIN}")
        return cls(path, meta["name"], meta["n_labels"], splits["train"], splits.get("test"), meta, digest)

    @property
    def cache(self) -> Path:
        """Folder for whatever can be computed again from the dataset. It may not exist yet."""
        return self.path / "cache"

    def label_names(self) -> list[str]:
        """Name of every label, by id."""
        return self._label_column("name").to_pylist()

    def label_texts(self) -> list[str | None]:
        """Text of every label, by id; None for a label that has none."""
        return self._label_column("text").to_pylist()

    def label_frequency(self) -> np.ndarray:
        """Number of train instances of every label: int64 [n_labels]."""
        frequency = np.empty(self.n_labels, dtype=np.int64)
        done = 0
        with open_parquet(self.path / LABELS_FILE) as file:
            for batch in file.iter_batches(_LABEL_ROWS, columns=["train_frequency"], use_threads=False):
                frequency[done : done + len(batch)] = batch.column(0).to_numpy()
                done += len(batch)
        return frequency

    def _label_column(self, column: str):
        with open_parquet(self.path / LABELS_FILE) as file:
            return file.read(columns=[column], use_threads=False).column(0)


def _open_split(path: Path, name: str, meta: dict) -> Split:
    texts, *vectors = split_files(name)
    n = meta["splits"][name]["instances"]
    labels = _open_sets(path, vectors, n)
    with open_parquet(path / texts) as file:
        if file.metadata.num_rows != n:
            raise DataError(f"{path / texts}: {file.metadata.num_rows} texts for {n} label sets; {AGAIN}")
    filtered = set(filter_files(name)) <= set(meta["files"])
    filter = _open_sets(path, filter_files(name), n) if filtered else None
    return Split(name, labels, path / texts, meta["files"][texts]["sha256"], filter)


def _open_sets(path: Path, files: Sequence[str], n: int) -> LabelSets:
    offsets, ids = files
    sets = LabelSets(open_vector(path / offsets, np.int64), open_vector(path / ids, np.int32))
    if len(sets) != n or sets.offsets[0] != 0 or sets.offsets[-1] != len(sets.ids):
        raise DataError(f"{path / offsets}: does not describe {n} label sets over {len(sets.ids)} ids; {AGAIN}")
    return sets


class InstanceError(DataError):
    """An instance that no dataset can hold. kind: a word or two, the same for all of the kind."""

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


def text_bytes(uid: str, text: str) -> int:
    """Bytes of an instance's identifier and text as UTF-8.

    Raises InstanceError when the text is empty, or one of the two is no valid Unicode text.
    """
    if not text or text.isspace():
        raise InstanceError("empty text", "empty text; remove the instance or give it a text")
    try:
        return len(text.encode()) + len(uid.encode())
    except UnicodeEncodeError as error:
        raise InstanceError(
            "lone surrogate",
            f"character {error.start} is a lone surrogate, which is not valid Unicode text; repair the text in its"
            " source",
        ) from None


class DatasetWriter:
    """Makes a dataset directory. It appears at `path` when `finish` succeeds, complete, or not at all.

    Everything is written to a sibling folder that is renamed at the end. Leaving the `with` block in any other way
    removes that folder, and the next writer to the same path removes what a killed process left. Texts are buffered
    up to a row group, label sets up to the same number of rows.

    sources: where the data comes from (file or package name to digest or version); recorded in `dataset.json`.
    overwrite: replace a dataset that is already at `path`.

    Raises ConfigError when `path` is taken and `overwrite` is false, or holds something that is not a dataset, and
    EnvironmentProblem when the disk is full.
    """

    def __init__(self, path: Path | str, name: str, sources: dict[str, str], overwrite: bool = False):
        self.path = Path(path).absolute()
        self.name = name
        self.sources = dict(sources)
        self.overwrite = overwrite
        self._splits: dict[str, SplitWriter] = {}
        self._more_files: list[str] = []
        self._tmp: Path | None = None

    def __enter__(self) -> Self:
        sweep(self.path)
        check_target(self.path, self.overwrite)
        self._tmp = sibling(self.path, "tmp")
        self._tmp.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for split in self._splits.values():
            with suppress(OSError):  # a full disk is full here too
                split.discard()
        if self._tmp is not None:
            shutil.rmtree(self._tmp, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise EnvironmentProblem(f"{self.path}: no space left on the disk; nothing was kept") from error

    def add(self, split: str, uid: str, text: str, label_ids: Iterable[int], where: str = "") -> None:
        """Appends an instance to `split` ("train" or "test"). Label ids are sorted and stripped of duplicates.

        where: the place of the instance in its source ("file:line"), for the message of an error.

        Raises DataError when the text is empty or cannot be stored as UTF-8, or a label id is negative or above
        2**31 - 1.
        """
        try:
            size = text_bytes(uid, text)
            ids = sorted({int(label) for label in label_ids})
            if ids and not 0 <= ids[0] <= ids[-1] <= _MAX_ID:
                outside = ids[0] if ids[0] < 0 else ids[-1]
                raise InstanceError("label id outside", f"label id {outside} is outside 0..{_MAX_ID}")
        except InstanceError as error:
            place = where or f"{split} instance {self.instances(split)} (uid {uid!r})"
            raise DataError(f"{place}: {error}") from None
        self.append(split, uid, text, size, ids)

    def append(self, split: str, uid: str, text: str, size: int, ids: list[int]) -> None:
        """Like `add`, for what is checked: size is `text_bytes(uid, text)`, ids are in range, sorted and distinct."""
        writer = self._splits.get(split)
        if writer is None:
            assert split in SPLITS and self._tmp is not None
            writer = self._splits[split] = SplitWriter(self._tmp, split)
        writer.add(uid, text, size, ids)

    def add_filter(self, split: str, sets: LabelSets) -> None:
        """Stores the labels that are no predictions of each instance of `split`; see `Split.filter`."""
        assert len(sets) == self.instances(split)
        for name, values in zip(filter_files(split), (sets.offsets, sets.ids), strict=True):
            np.save(self.folder / name, values)
            self._more_files.append(name)

    @property
    def folder(self) -> Path:
        """Where the files are until `finish` moves them; what else is put there becomes part of the dataset."""
        assert self._tmp is not None
        return self._tmp

    def instances(self, split: str) -> int:
        """Number of instances of `split` so far."""
        return self._splits[split].instances if split in self._splits else 0

    def finish(
        self,
        label_names: Iterable[str],
        label_texts: Iterable[str | None] | None = None,
        details: dict[str, Any] | None = None,
        looks: Callable[[dict[str, LabelSets]], None] | None = None,
    ) -> Dataset:
        """Completes the dataset and moves it to its place. The n-th name (and text) is that of label n.

        details: whatever else is worth knowing about the dataset, as JSON; recorded in `dataset.json`.
        looks: called with the label sets of the splits when all texts and labels are written; may add filters.

        Raises DataError when there is no train instance, a label id has no name, or there are more or fewer label
        texts than names.
        """
        assert self._tmp is not None
        if "train" not in self._splits:
            raise DataError(f"{self.path}: no train instances, so there is nothing to learn from")
        for split in self._splits.values():
            split.close()
        n_labels = self._write_labels(label_names, label_texts)
        for split in self._splits.values():
            if split.max_id >= n_labels:
                raise DataError(
                    f"{self.path}: {split.name} has label id {split.max_id}, but there are {n_labels} names"
                )
        if looks:
            looks({name: _open_sets(self._tmp, split_files(name)[1:], self.instances(name)) for name in self._splits})
        names = [LABELS_FILE, *(file for split in self._splits for file in split_files(split)), *self._more_files]
        with ThreadPoolExecutor(2) as pool:
            digests = list(pool.map(file_digest, [self._tmp / n for n in names]))
        files = {
            n: {"bytes": (self._tmp / n).stat().st_size, "sha256": digest}
            for n, digest in zip(names, digests, strict=True)
        }
        meta = {
            "schema": SCHEMA,
            "name": self.name,
            "n_labels": n_labels,
            "splits": {name: self._splits[name].summary() for name in SPLITS if name in self._splits},
            "sources": self.sources,
            "details": details or {},
            "files": files,
        }
        (self._tmp / MANIFEST).write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        move_into_place(self._tmp, self.path)
        self._tmp = None
        return Dataset.open(self.path)

    def _write_labels(self, names: Iterable[str], texts: Iterable[str | None] | None) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        train = self._splits["train"]
        ids = open_npy(self._tmp / split_files("train")[2])
        frequency = LabelSets(np.array([0, len(ids)]), ids).counts(train.max_id + 1)
        schema = pa.schema([("name", pa.string()), ("text", pa.string()), ("train_frequency", pa.int64())])
        names = iter(names)
        texts = None if texts is None else iter(texts)
        n_labels = 0
        with pq.ParquetWriter(self._tmp / LABELS_FILE, schema, compression="zstd") as file:
            while part := list(islice(names, _LABEL_ROWS)):
                part_texts = [None] * len(part) if texts is None else list(islice(texts, len(part)))
                if len(part_texts) != len(part):
                    raise DataError(f"{self.path}: only {n_labels + len(part_texts)} labels have a text, all must")
                counts = np.zeros(len(part), dtype=np.int64)
                known = frequency[n_labels : n_labels + len(part)]
                counts[: len(known)] = known
                try:
                    file.write_table(pa.table([part, part_texts, counts], schema=schema))
                except UnicodeEncodeError:
                    raise DataError(
                        f"{self.path}: a name or text of the labels {n_labels}..{n_labels + len(part) - 1} has a lone"
                        " surrogate, which is not valid Unicode text; repair it in its source"
                    ) from None
                n_labels += len(part)
        if texts is not None and next(texts, texts) is not texts:
            raise DataError(f"{self.path}: there are more label texts than the {n_labels} label names")
        return n_labels
