"""Datasets as the library `datasets` has them: a folder that `save_to_disk` made, or the name of one on a hub.

A name may have a subset behind it, `organisation/name:subset`. What is on a hub is streamed, no copy of it is kept.
Labels that are numbers with names in the dataset's features get the names. Needs the extra `hub`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.data.problems import Problems
from engine.data.sourcefiles import ProgressMeter
from engine.data.store import InstanceError
from engine.data.table_readers import Cells, TableColumns, cells_of_batch
from engine.data.tables import Tables
from engine.errors import DataError, EnvironmentProblem, reason

FORMAT = "hub"
SPLITS = ("train", "test")
_BATCH_ROWS = 256
# What `save_to_disk` writes for several splits, and for one.
_MARKS = (("dataset_dict.json",), ("state.json", "dataset_info.json"))


class HubTables(Tables):
    """The splits of such a dataset, as tables. A row's place is the split and its number, from 1."""

    @classmethod
    def find(cls, source: Path, columns: TableColumns, kind: str | None = None) -> "HubTables | None":
        """The dataset at `source`, if it is a saved one, or if `kind` says that it is one of a hub.

        Raises EnvironmentProblem when the library is not there, DataError when it cannot read the dataset.
        """
        if kind not in (None, FORMAT):
            return None
        saved = any(all((source / mark).is_file() for mark in marks) for marks in _MARKS)
        return cls(source, columns, saved) if saved or kind else None

    def __init__(self, source: Path, columns: TableColumns, saved: bool):
        splits = _load_saved(source) if saved else _load_named(source)
        if "train" not in splits:
            found = ", ".join(map(str, splits)) or "nothing"
            raise DataError(f"{source}: no split 'train'; found {found}")
        self._source = source
        self._tables = {split: splits[split] for split in SPLITS if split in splits}
        self._others = sorted(split for split in map(str, splits) if split not in SPLITS)
        super().__init__({split: [source / split] for split in self._tables}, columns, FORMAT)
        self.reads = sorted(source.rglob("*.arrow")) if saved else []

    def _cells(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[Cells]:
        table = self._tables[split]
        header = list(table.column_names or table.resolve_features().column_names or ())
        if what := self._columns.missing(header):
            raise DataError(f"{self.splits[split]}: {what}")
        named = _names_of(table, self._columns.labels)
        done = 0
        try:
            for batch in _batches(table):
                for line, texts, labels, uid in cells_of_batch(
                    batch, self._columns, header, done, self.splits[split], problems
                ):
                    try:
                        yield line, texts, named(labels), uid
                    except InstanceError as error:
                        problems.add(error.kind, self.place(split, line), str(error))
                done += len(batch)
        except (DataError, EnvironmentProblem):
            raise
        except Exception as error:  # the library raises those of every format and of the network
            raise DataError(f"{self.splits[split]}: not readable ({reason(error)})") from None
        for file in self.reads if split == "train" else ():
            meter.finish(file)

    def details(self) -> dict[str, Any]:
        return super().details() | ({"not_read": self._others} if self._others else {})


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise EnvironmentProblem(
            "datasets of a hub, and folders that `save_to_disk` made, need the package `datasets`;"
            " `pip install 'fanin[hub]'` brings it"
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _load_saved(source: Path) -> dict[str, Any]:
    library = _library()
    _check(source)
    try:
        loaded = library.load_from_disk(str(source))
    except Exception as error:
        raise DataError(f"{source}: not readable as a saved dataset ({reason(error)}); save it again") from None
    return dict(loaded) if isinstance(loaded, library.DatasetDict) else {"train": loaded}


def _check(source: Path) -> None:
    """Raises DataError for damaged Arrow files: the library trusts what stands in them, which can end the process."""
    import pyarrow as pa

    for file in sorted(source.rglob("*.arrow")):
        try:
            with pa.OSFile(str(file)) as stream, pa.ipc.open_stream(stream) as batches:
                for batch in batches:
                    batch.validate(full=True)
        except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
            raise DataError(f"{file}: damaged, not readable as Arrow ({reason(error)}); save it again") from None


def _load_named(source: Path) -> dict[str, Any]:
    library = _library()
    name, _, subset = (str(source), "", "") if source.exists() else str(source).partition(":")
    try:
        return dict(library.load_dataset(name, subset or None, streaming=True))
    except Exception as error:
        raise DataError(
            f"{source}: not readable as a dataset of a hub ({reason(error)}); give the path of a folder or a name such"
            " as organisation/name, with :subset behind it where there are several"
        ) from None


def _batches(table: Any) -> Iterator[Any]:
    """Arrow record batches of a dataset of that library."""
    for batch in table.with_format("arrow").iter(_BATCH_ROWS):
        yield from batch.to_batches()


def _names_of(table: Any, column: str) -> Callable[[Any], Any]:
    """What turns the labels of a row into names: of numbers, where the dataset says what they mean."""
    feature = (table.features or {}).get(column)
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    if not names:
        return lambda labels: labels

    def name(label: Any) -> Any:
        if not isinstance(label, int):
            return label
        if not 0 <= label < len(names):
            raise InstanceError("label id outside", f"label {label} is outside 0..{len(names) - 1}")
        return names[label]

    return lambda labels: [name(label) for label in labels] if isinstance(labels, list) else name(labels)
