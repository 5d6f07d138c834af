"""Reciprocal filters in evaluation: what an instance may not be given leaves its predictions before they are cut to k.

Where labels are texts like the instances, an instance would find itself. The benchmarks with such labels come with
pairs of rows and labels that are set to 0 in the predictions, and the metrics are computed against the true labels as
they are: so the evaluation scripts of NGAME (github.com/Extreme-classification/ngame, tools/evaluate.py) and Renée
(github.com/microsoft/renee, dl_base.py), to whose published figures others are compared. Those of DECAF and ECLARE
take the pairs out of the true labels as well; the two differ where a pair is also a true label, which can then not be
found.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engine.data.label_sets import LabelSets


def extra_width(pairs: LabelSets | None, rows: np.ndarray) -> int:
    """How many more predictions to ask for, so that none is missing: the most pairs that one of `rows` has."""
    if pairs is None:
        return 0
    return int((pairs.offsets[rows + 1] - pairs.offsets[rows]).max(initial=0))


def take_out(label_BW: np.ndarray, removed: LabelSets, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k labels of each row that are not among those `removed` from it: (label, place), int64 [B, at most k].

    label_BW: int [B, W], best first, -1 = none.  place: the column that a label had in label_BW. Where fewer than k
    are left, the label is -1 and its place means nothing.
    """
    out_BW = removed.contains(label_BW)
    place_BK = np.argsort(out_BW, axis=1, kind="stable")[:, :k]
    label_BW = np.where(out_BW, -1, label_BW).astype(np.int64)
    return np.take_along_axis(label_BW, place_BK, axis=1), place_BK


def filtered(chunks: Iterator[np.ndarray], pairs: LabelSets | None, k: int) -> Iterator[np.ndarray]:
    """Predictions of all rows in order, int [b, W] a chunk, without the pairs and cut to k."""
    start = 0
    for label_BW in chunks:
        rows = np.arange(start, start + len(label_BW))
        start += len(label_BW)
        yield label_BW[:, :k] if pairs is None else take_out(label_BW, pairs.select(rows), k)[0]
