"""Which labels each instance has: sets of label ids in CSR form, in memory or memory-mapped."""

from dataclasses import dataclass

import numpy as np

from engine.data.arrays import ragged_positions

_SLICE = 1 << 22  # label ids looked at together wherever all of them are streamed


@dataclass(frozen=True)
class LabelSets:
    """Label sets of N instances. Every row is sorted and free of duplicates; a row may be empty.

    offsets: int64 [N + 1], from 0 to nnz.  ids: int32 [nnz].
    """

    offsets: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> np.ndarray:
        """Label ids of instance `i` in 0 .. N-1: int32 [n], sorted."""
        assert 0 <= i < len(self)
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def sizes(self) -> np.ndarray:
        """Number of labels of every instance: int64 [N]."""
        return np.diff(self.offsets)

    def select(self, rows: np.ndarray) -> "LabelSets":
        """The label sets of `rows` int [n], in that order, copied into memory."""
        rows = np.asarray(rows)
        starts = self.offsets[rows]
        counts = self.offsets[rows + 1] - starts
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        return LabelSets(offsets, self.ids[ragged_positions(starts, counts)])

    def contains(self, label_BK: np.ndarray) -> np.ndarray:
        """Which labels are in the set of their row: bool [B, K] for labels int [B, K], where -1 stands for none."""
        assert len(label_BK) == len(self)
        row_B1 = np.arange(len(self))[:, None] << 32
        own = np.repeat(row_B1[:, 0], self.sizes()) | self.ids
        asked_BK = np.where(label_BK < 0, -1, row_B1 | label_BK)
        return np.append(own, -2)[np.searchsorted(own, asked_BK)] == asked_BK

    def counts(self, n_labels: int) -> np.ndarray:
        """How many instances have each label: int64 [n_labels]. Streams the ids, which must be in range."""
        total = np.zeros(n_labels, dtype=np.int64)
        for start in range(0, len(self.ids), _SLICE):
            # Not bincount: its result is as long as the label space, for every slice.
            ids, occurrences = np.unique(self.ids[start : start + _SLICE], return_counts=True)
            total[ids] += occurrences
        return total

    def problem(self, n_labels: int) -> str | None:
        """What is wrong with these label sets over `n_labels` labels, or None. Streams everything once."""
        for start in range(0, len(self), _SLICE):
            if np.any(np.diff(self.offsets[start : start + _SLICE + 1]) < 0):
                return "offsets decrease"
        for start in range(0, len(self.ids), _SLICE):
            part = self.ids[start : start + _SLICE + 1]  # one more: the step across the border counts too
            outside = part[(part < 0) | (part >= n_labels)]
            if len(outside):
                return f"label id {outside[0]} is outside 0..{n_labels - 1}"
            falls = np.flatnonzero(np.diff(part) <= 0) + start + 1
            row_starts = self.offsets[np.searchsorted(self.offsets, falls)]
            if not np.array_equal(row_starts, falls):
                return "a label set is not sorted or repeats a label"
        return None
