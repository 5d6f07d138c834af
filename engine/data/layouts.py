"""What an importer has to know about the files of a source: which there are, what a row says, how labels are numbered.

Every layout is a class of its own, in a module of its own; `engine.data.importers` makes a dataset of any of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engine.data.problems import Problems
from engine.data.sourcefiles import ProgressMeter
from engine.data.store import InstanceError
from engine.errors import DataError

Row = tuple[int, str, str, list]  # line (or number of the row, from 1), uid, text, labels: names or ids
_NAME_BYTES = 140  # of a name beside its characters: two objects and a place in a dictionary
LabelTable = tuple[Iterable[str], Iterable[str | None] | None]


class Layout(ABC):
    """The files of one source.

    format: as the command line names it.  splits: the file of "train" and perhaps "test" that errors name.
    reads: every file that is read, in that order, as often as it is.  filters: reciprocal filters by split; a row of
    theirs is the line of the instance, from 0.
    """

    format: str
    splits: dict[str, Path]
    reads: list[Path]
    filters: Mapping[str, Path] = MappingProxyType({})

    @abstractmethod
    def rows(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[Row]:
        """The rows of a split that can be read; `problems` learns of the others. "train" comes first."""

    @abstractmethod
    def label_ids(self, labels: list) -> list[int]:
        """Ids of a row's labels, sorted and distinct. Raises InstanceError for one that cannot be."""

    @abstractmethod
    def label_table(self, meter: ProgressMeter) -> LabelTable:
        """Names and, where there are any, texts of all labels by id. Called after all rows."""

    def place(self, split: str, line: int) -> str:
        """The place of a row, for a message."""
        return f"{self.splits[split]}:{line}"

    def details(self) -> dict[str, Any]:
        """What was found out about the source and is worth telling."""
        return {}


def most_name_bytes() -> int:
    """Bytes that names of labels may take: half of the memory that is free, and never too few for millions."""
    import psutil

    return max(psutil.virtual_memory().available // 2, 1 << 30)


class LabelNames:
    """Numbers labels by their names, in the order of their first appearance. source: what a message names.

    Raises DataError when the names take more memory than there is, as those of a column of texts would.
    """

    def __init__(self, source: Path) -> None:
        self.by_name: dict[str, int] = {}
        self._source = source
        self._room = most_name_bytes()

    def add(self, names: Iterable[str]) -> None:
        """Numbers those names that are new."""
        by_name = self.by_name
        for name in names:
            if name not in by_name:
                by_name[name] = len(by_name)
                self._room -= len(name) + _NAME_BYTES
        if self._room < 0:
            raise DataError(
                f"{self._source}: the names of {len(by_name):,} different labels take more memory than there is; are"
                " --labels-column and --delimiter right?"
            )

    def sort(self) -> None:
        """Numbers the names by their order as text."""
        self.by_name = {name: number for number, name in enumerate(sorted(self.by_name))}

    def ids(self, names: list[str]) -> list[int]:
        """Sorted, distinct ids; new names get the next ones. Raises InstanceError for a name that is no valid text."""
        by_name = self.by_name
        try:
            return sorted({by_name[name] for name in names})
        except KeyError:
            check_names(names)
            self.add(names)
            return sorted({by_name[name] for name in names})


def check_names(names: list[str]) -> None:
    """Raises InstanceError when a label's name cannot be stored as UTF-8."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            what = f"label {name!r} has a lone surrogate, which is not valid Unicode text; repair it in its source"
            raise InstanceError("lone surrogate", what) from None


def ids_in_range(ids: list[int], n_labels: int, range_of: str) -> list[int]:
    """Sorted, distinct ids. Raises InstanceError for one outside 0 .. n_labels - 1; range_of: what says so."""
    distinct = sorted(set(ids))
    if distinct and not 0 <= distinct[0] <= distinct[-1] < n_labels:
        wrong = distinct[0] if distinct[0] < 0 else distinct[-1]
        raise InstanceError("label id outside", f"label id {wrong} is outside 0..{n_labels - 1}, {range_of}")
    return distinct
