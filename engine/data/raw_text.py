"""Layouts with one text a line in one file, and the labels of that line in another.

    aalto      train_raw_texts.txt, test_raw_texts.txt, train_labels.txt, test_labels.txt: label names with spaces
    xmc-text   trn_X_Y.txt, tst_X_Y.txt: a header "N L", then `label:value` pairs; texts in trn_X.txt or raw_data/
    pecos      X.trn.txt, X.tst.txt, Y.trn.npz, Y.tst.npz (CSR of scipy), texts of the labels in output-items.txt

Each text file may end in `.gz`. The row of a text has the number of its line, which is its uid too.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import tee, zip_longest
from pathlib import Path
from typing import Any

from engine.data.filters import find_filters
from engine.data.layouts import LabelNames, LabelTable, Layout, Row, ids_in_range
from engine.data.npz_csr import NpzCsr
from engine.data.problems import Problems
from engine.data.sourcefiles import ProgressMeter, find_file, read_lines
from engine.data.store import InstanceError
from engine.errors import DataError

_MAX_LABELS = 1 << 27
_PAIR = re.compile(r"(-?\d+)(?::(\S+))?")


@dataclass(frozen=True)
class Names:
    """Names of the files of a layout; of several the first that is there is taken."""

    train_texts: tuple[str, ...]
    test_texts: tuple[str, ...]
    train_labels: str
    test_labels: str
    label_names: tuple[str, ...] = ()

    def labels(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(split, name of its labels) for both splits."""
        return ("train", self.train_labels), ("test", self.test_labels)


class AlignedText(Layout):
    """splits: the files of texts.  targets: the files of labels, by split too."""

    names: Names

    @classmethod
    def find(cls, source: Path) -> "AlignedText | None":
        """The layout in the folder `source`, if its file of training labels is there.

        Raises DataError when a file that belongs to one that is there is missing.
        """
        targets = {split: find_file(source, (name,)) for split, name in cls.names.labels()}
        if targets["train"] is None:
            return None
        targets = {split: file for split, file in targets.items() if file}
        splits: dict[str, Path] = {}
        for split, file in targets.items():
            wanted = cls.names.train_texts if split == "train" else cls.names.test_texts
            found = find_file(source, wanted)
            if found is None:
                missing = " or ".join(wanted)
                raise DataError(f"{source}: no {missing} beside {file.name}; it has the texts, one a line")
            splits[split] = found
        return cls(source, splits, targets)

    def __init__(self, source: Path, splits: dict[str, Path], targets: dict[str, Path]):
        self._folder = source
        self.splits = splits
        self.targets = targets
        self.reads = [file for split in splits for file in (splits[split], targets[split])]

    def details(self) -> dict[str, Any]:
        alone = None if "test" in self.splits else find_file(self._folder, self.names.test_texts)
        return {"not_read": [alone.name]} if alone else {}

    @abstractmethod
    def labels(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[list | None]:
        """Labels of every row; None for a row whose labels are a problem."""

    def rows(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[Row]:
        texts = read_lines(self.splits[split], meter, problems)
        for number, (line, labels) in enumerate(zip_longest(texts, self.labels(split, meter, problems), fillvalue=...)):
            if line is ... or labels is ...:
                longer, shorter = self.splits[split], self.targets[split]
                if line is ...:
                    longer, shorter = shorter, longer
                raise DataError(
                    f"{longer}: has a row {number + 1}, but {shorter} ends before it; they do not belong together"
                )
            if line[2] and labels is not None:
                yield number + 1, str(number), line[1].strip(), labels


class Aalto(AlignedText):
    """Label ids are those of the sorted names in both label files, which are read twice."""

    format = "aalto"
    names = Names(("train_raw_texts.txt",), ("test_raw_texts.txt",), "train_labels.txt", "test_labels.txt")

    def __init__(self, source: Path, splits: dict[str, Path], targets: dict[str, Path]):
        super().__init__(source, splits, targets)
        self.reads = [*targets.values(), *self.reads]
        self._names: LabelNames | None = None

    def labels(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[list | None]:
        if self._names is None:
            self._names = LabelNames(self.targets["train"])
            for file in self.targets.values():
                for _, line, whole in read_lines(file, meter, Problems()):  # the second reading tells
                    self._names.add(line.split() if whole else ())
            self._names.sort()
        for _, line, whole in read_lines(self.targets[split], meter, problems):
            yield line.split() if whole else None

    def label_ids(self, labels: list) -> list[int]:
        return self._names.ids(labels)

    def label_table(self, meter: ProgressMeter) -> LabelTable:
        return self._names.by_name, None


class NumberedText(AlignedText):
    """Label ids stand in the files; their names are the lines of another file, or the ids where there is none."""

    def __init__(self, source: Path, splits: dict[str, Path], targets: dict[str, Path]):
        super().__init__(source, splits, targets)
        self.filters = find_filters(source, splits)
        self._name_file = find_file(source, self.names.label_names)
        self.reads += [*self.filters.values(), *([self._name_file] if self._name_file else [])]
        self.n_labels = self.count_labels()

    @abstractmethod
    def count_labels(self) -> int:
        """Number of labels, from the headers of all files. Raises DataError where they differ."""

    def label_ids(self, labels: list) -> list[int]:
        return ids_in_range(labels, self.n_labels, "as many labels as the header says")

    def label_table(self, meter: ProgressMeter) -> LabelTable:
        if self._name_file is None:
            return map(str, range(self.n_labels)), None
        # The writer takes turns between names and texts, so little waits in between.
        names, again = tee(self._read_names(meter))
        return (name for name, _ in names), (text for _, text in again)

    def _read_names(self, meter: ProgressMeter) -> Iterator[tuple[str, str | None]]:
        """Name and text of every label: its line is both, or where that is empty its number is its name."""
        count = 0
        for count, line, _ in read_lines(self._name_file, meter, Problems(strict=True)):
            text = line.strip()
            yield text or str(count - 1), text or None
        if count != self.n_labels:
            wrong = f"{count} names for {self.n_labels} labels"
            raise DataError(f"{self._name_file}: {wrong}; one name a line, in the order of the ids, is expected")

    def details(self) -> dict[str, Any]:
        return super().details() | {"label_names": self._name_file.name if self._name_file else "ids"}

    def _same(self, counts: dict[str, int]) -> int:
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{self.targets[split].name} {count}" for split, count in counts.items())
            raise DataError(f"{self.targets['train']}: the files say different numbers of labels: {shown}")
        if counts["train"] > _MAX_LABELS:
            what = f"{counts['train']:,} labels, more than the {_MAX_LABELS:,} that can be trained"
            raise DataError(f"{self.targets['train']}: says that there are {what}; is it damaged?")
        return counts["train"]


class XmcText(NumberedText):
    """The sparse text files of the repository, for example as Renée wants them."""

    format = "xmc-text"
    names = Names(
        ("trn_X.txt", "raw_data/trn.raw.txt", "raw_data/train.raw.txt", "trn.raw.txt", "train.raw.txt"),
        ("tst_X.txt", "raw_data/tst.raw.txt", "raw_data/test.raw.txt", "tst.raw.txt", "test.raw.txt"),
        "trn_X_Y.txt",
        "tst_X_Y.txt",
        ("lbl_X.txt", "raw_data/lbl.raw.txt", "raw_data/label.raw.txt", "lbl.raw.txt", "label.raw.txt", "Y.txt"),
    )

    def count_labels(self) -> int:
        self._rows: dict[str, int] = {}
        counts = {}
        for split, file in self.targets.items():
            header = next(read_lines(file, ProgressMeter(None, []), Problems(strict=True)), (1, "", True))[1].split()
            if len(header) != 2 or not all(part.isdecimal() and len(part) < 16 for part in header):
                shown = " ".join(header)[:60]
                raise DataError(f"{file}:1: the header is {shown!r}, not the numbers of rows and labels")
            self._rows[split], counts[split] = map(int, header)
        return self._same(counts)

    def labels(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[list | None]:
        file = self.targets[split]
        count = 0
        for line, pairs, whole in read_lines(file, meter, problems):
            if line == 1:
                continue
            count += 1
            try:
                yield _columns(pairs) if whole else None
            except InstanceError as error:
                problems.add(error.kind, f"{file}:{line}", str(error))
                yield None
        if count != self._rows[split]:
            raise DataError(f"{file}: {count} rows, but its header says {self._rows[split]}; fetch it again")


class Pecos(NumberedText):
    """The folders of PECOS."""

    format = "pecos"
    names = Names(("X.trn.txt",), ("X.tst.txt",), "Y.trn.npz", "Y.tst.npz", ("output-items.txt", "Y.txt"))

    def count_labels(self) -> int:
        self._matrices = {split: NpzCsr(file) for split, file in self.targets.items()}
        return self._same({split: matrix.columns for split, matrix in self._matrices.items()})

    def labels(self, split: str, meter: ProgressMeter, problems: Problems) -> Iterator[list | None]:
        file = self.targets[split]
        for number, row in enumerate(self._matrices[split], start=1):
            if row is None:
                problems.add("wrong label ids", f"{file}:{number}", "a value of the row is NaN")
            yield row
        meter.finish(file)


def _columns(pairs: str) -> list[int]:
    """Labels of `label:value` pairs whose value is not 0. Raises InstanceError for anything else."""
    found = []
    for pair in pairs.split():
        match = _PAIR.fullmatch(pair)
        if match is None or len(match[1]) > 18:
            shown = pair if len(pair) < 40 else pair[:39] + "…"
            raise InstanceError("wrong label ids", f"{shown!r} is no label:value pair")
        try:
            value = 1.0 if match[2] is None else float(match[2])
        except ValueError:
            raise InstanceError("wrong label ids", f"{match[2][:40]!r} is no number") from None
        if value != value:
            raise InstanceError("wrong label ids", f"the value of label {match[1]} is NaN")
        if value:
            found.append(int(match[1]))
    return found
