"""The order in which the classifier keeps its labels: frequent ones first (the dense head), then the tail,
so that a group is a run of consecutive rows. Outside the model labels keep their dataset ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelOrder:
    """A permutation of the labels. label_at: int32 [L], label id at each position; position_of: its inverse."""

    label_at: np.ndarray
    position_of: np.ndarray
    head: int

    @classmethod
    def from_labels(cls, label_at: np.ndarray, head: int) -> LabelOrder:
        label_at = np.asarray(label_at, dtype=np.int32)
        position_of = np.empty_like(label_at)
        position_of[label_at] = np.arange(len(label_at), dtype=np.int32)
        return cls(label_at, position_of, head)

    def __len__(self) -> int:
        return len(self.label_at)


def by_frequency(frequency: np.ndarray, head: int) -> np.ndarray:
    """int32 [L]: label ids, the `head` most frequent first (ties by id), the rest in ascending id."""
    order = np.arange(len(frequency), dtype=np.int32)
    if not head:
        return order
    labels_from = np.cumsum(np.bincount(frequency)[::-1])[::-1]  # at n: labels that occur n times or more often
    least = np.flatnonzero(labels_from >= head)[-1]
    above = np.flatnonzero(frequency > least)
    tied = np.flatnonzero(frequency == least)[: head - len(above)]
    above = above[np.argsort(-frequency[above], kind="stable")]
    is_rest = np.ones(len(frequency), dtype=bool)
    is_rest[above] = is_rest[tied] = False
    return np.concatenate([above.astype(np.int32), tied.astype(np.int32), order[is_rest]])
