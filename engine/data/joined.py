"""Two tables of instances as one, without copying either: rows 0 .. N-1 of the first, then those of the second.

Training with label texts reads through these; each has the calls of what it joins.
"""

from dataclasses import dataclass

import numpy as np

from engine.data.arrays import ragged_positions
from engine.data.label_sets import LabelSets
from engine.data.tokens import RaggedTokens

_MERGED_ROWS = 1 << 16  # whose labels are merged at once


@dataclass(frozen=True)
class MergedSets:
    """The labels of both for every instance; see LabelSets."""

    first: LabelSets
    second: LabelSets

    def __len__(self) -> int:
        return len(self.first)

    def sizes(self) -> np.ndarray:
        """Number of labels of every instance: int64 [N]."""
        rows = np.arange(len(self))
        parts = [self.select(some).sizes() for some in np.array_split(rows, max(1, len(rows) // _MERGED_ROWS))]
        return np.concatenate(parts)

    def select(self, rows: np.ndarray) -> LabelSets:
        """The label sets of `rows` int [n], in that order, copied into memory."""
        parts = (self.first.select(rows), self.second.select(rows))
        keys = [np.repeat(np.arange(len(rows)), part.sizes()) << 32 | part.ids for part in parts]
        both = np.unique(np.concatenate(keys))
        offsets = np.searchsorted(both, np.arange(len(rows) + 1) << 32)
        return LabelSets(offsets, (both & 0xFFFFFFFF).astype(np.int32))


@dataclass(frozen=True)
class JoinedSets:
    """Label sets of the rows of both; see LabelSets."""

    first: LabelSets | MergedSets
    second: LabelSets

    def sizes(self) -> np.ndarray:
        """Number of labels of every instance: int64 [N + M]."""
        return np.concatenate([self.first.sizes(), self.second.sizes()])

    def select(self, rows: np.ndarray) -> LabelSets:
        """The label sets of `rows` int [n], in that order, copied into memory."""
        parts = [(at, part.select(own)) for at, part, own in _split(rows, self.first, self.second)]
        counts = np.zeros(len(rows), dtype=np.int64)
        for at, found in parts:
            counts[at] = found.sizes()
        offsets = np.concatenate([[0], np.cumsum(counts)])
        ids = np.empty(offsets[-1], dtype=np.int32)
        for at, found in parts:
            ids[ragged_positions(offsets[:-1][at], counts[at])] = found.ids
        return LabelSets(offsets, ids)


@dataclass(frozen=True)
class JoinedTokens:
    """Tokens of the texts of both; see RaggedTokens."""

    first: RaggedTokens
    second: RaggedTokens

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def lengths(self) -> np.ndarray:
        """Number of tokens of every text: int32 [N + M]."""
        return np.concatenate([self.first.lengths(), self.second.lengths()])

    def pad(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The texts `rows` [B] as a rectangle: input_ids int64 [B, T] and attention_mask int64 [B, T]."""
        parts = [(at, *part.pad(own, pad_id)) for at, part, own in _split(rows, self.first, self.second)]
        shape = (len(rows), max(mask.shape[1] for _, _, mask in parts))
        input_ids, attention_mask = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for at, ids, mask in parts:
            input_ids[at, : ids.shape[1]], attention_mask[at, : ids.shape[1]] = ids, mask
        return input_ids, attention_mask


@dataclass(frozen=True)
class JoinedRows:
    """Rows of two matrices [N, D] and [M, D] of one type."""

    first: np.ndarray
    second: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows [B, D], copied into memory."""
        found = np.empty((len(rows), self.first.shape[1]), dtype=self.first.dtype)
        for at, part, own in _split(rows, self.first, self.second):
            found[at] = part[own]
        return found


def _split(rows: np.ndarray, first, second):
    """(which of `rows`, the part they are of, their rows in it) for both parts."""
    later = np.asarray(rows) >= len(first)
    return ((~later, first, rows[~later]), (later, second, rows[later] - len(first)))
