"""Which training texts are looked at before training: for label vectors, words and local features. Needs no torch.

An even sample of many texts has no text of a rare label, which is then grouped with labels that have nothing to do with
it and reads their words. So the sample also holds some texts of every label.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from engine.data.label_sets import LabelSets

OF_A_LABEL = 16  # its texts in the sample, or all that it has


class Sets(Protocol):
    """What is used of engine.data.label_sets.LabelSets."""

    def select(self, rows: np.ndarray) -> LabelSets: ...


def covering_sample(labels: Sets, rows: np.ndarray, n_labels: int, most: int, each: int = OF_A_LABEL) -> np.ndarray:
    """At most `most` of `rows` (int64, ascending, each with a label), or all where they are no more: every n-th, up to
    half of `most`, those that give every label `each` texts, and others. Where `most` does not suffice, labels without
    a text come first. Streams the label sets."""
    if len(rows) <= most:
        return rows
    stride = -(-len(rows) // max(1, most // 2))
    held = np.zeros(n_labels, dtype=np.uint8)
    found, ranks = [rows[::stride]], []
    _hold(held, labels.select(found[0]).ids, each)
    for offset in range(1, stride):
        block = rows[offset::stride]
        sets = labels.select(block)
        rank = np.minimum.reduceat(held[sets.ids] + _earlier(sets.ids), sets.offsets[:-1])
        wanted = np.flatnonzero(rank < each)
        found.append(block[wanted])
        ranks.append(rank[wanted])
        _hold(held, sets.select(wanted).ids, each)
    first = np.argsort(np.concatenate(ranks), kind="stable")[: max(0, most - len(found[0]))]
    sample = np.sort(np.concatenate([found[0], np.concatenate(found[1:])[first]]))
    for offset in range(1, stride):
        if len(sample) == most:
            break
        spare = np.setdiff1d(rows[offset::stride], sample, assume_unique=True)
        more = min(len(spare), most - len(sample))
        sample = np.sort(np.concatenate([sample, spare[np.arange(more) * len(spare) // max(1, more)]]))
    return sample


def _earlier(ids: np.ndarray) -> np.ndarray:
    """How often each of `ids` stands before it: int64."""
    order = np.argsort(ids, kind="stable")
    sorted_ids = ids[order]
    earlier = np.empty(len(ids), dtype=np.int64)
    earlier[order] = np.arange(len(ids)) - np.searchsorted(sorted_ids, sorted_ids)
    return earlier


def _hold(held: np.ndarray, ids: np.ndarray, each: int) -> None:
    """Counts further texts of labels, as far as `each`."""
    labels, counts = np.unique(ids, return_counts=True)
    held[labels] = np.minimum(held[labels] + counts, each)
