"""Reciprocal filters: labels that are no predictions of an instance, as in "row label" pairs of a text file.

In sets whose labels are instances themselves an instance would find itself; the benchmarks take these pairs out of the
predictions before they count hits.
"""

from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.data.label_sets import LabelSets
from engine.data.problems import Problems
from engine.data.sourcefiles import ProgressMeter, find_file, read_lines
from engine.data.store import InstanceError

# By the repository, and by Renée.
NAMES = {
    "train": ("filter_labels_train.txt", "trn_filter_labels.txt"),
    "test": ("filter_labels_test.txt", "tst_filter_labels.txt"),
}


def find_filters(folder: Path, splits: dict[str, Path]) -> dict[str, Path]:
    """The file of pairs of each split that has one."""
    found = {split: find_file(folder, NAMES[split]) for split in splits}
    return {split: file for split, file in found.items() if file}


def read_pairs(
    file: Path, label_ids: Callable[[list], list[int]], meter: ProgressMeter, problems: Problems
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels of the pairs, int64 [n] each. label_ids: the layout's; it raises for a label that is none."""
    rows, labels = array("q"), array("q")
    for number, line, whole in read_lines(file, meter, problems):
        parts = line.split()
        if not whole or not parts:
            continue
        try:
            if len(parts) != 2 or not all(part.isdecimal() and len(part) < 19 for part in parts):
                raise InstanceError("wrong filter pair", f"{line.strip()[:40]!r} is no pair of a row and a label")
            (label,) = label_ids([int(parts[1])])
        except InstanceError as error:
            problems.add(error.kind, f"{file}:{number}", str(error))
            continue
        rows.append(int(parts[0]))
        labels.append(label)
    return np.frombuffer(rows, np.int64), np.frombuffer(labels, np.int64)


def filter_sets(rows: np.ndarray, labels: np.ndarray, kept: np.ndarray) -> LabelSets:
    """The pairs as a set of labels for each instance.

    rows, labels: int64 [n], from `read_pairs`.  kept: int64 [N], the row in the source of each instance, rising. Pairs
    of other rows are left out.
    """
    order = np.lexsort((labels, rows))
    rows, labels = rows[order], labels[order]
    fresh = np.ones(len(rows), dtype=bool)
    fresh[1:] = (np.diff(rows) != 0) | (np.diff(labels) != 0)
    rows, labels = rows[fresh], labels[fresh]
    starts, ends = np.searchsorted(rows, kept), np.searchsorted(rows, kept, side="right")
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    return LabelSets(offsets, labels[np.isin(rows, kept)].astype(np.int32))
