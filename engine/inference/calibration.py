"""Whether probabilities are what they say: expected calibration error of the k most probable labels, streamed.

The k most probable labels of every instance that has labels are sorted into ten bins of equal width by the probability
that they were given. With n predictions in all, of which n_b are in bin b, have the mean probability p_b there and are
right in a share a_b of the cases,

    ECE@k = sum_b  n_b / n  |p_b - a_b|

(the error: Naeini, Cooper, Hauskrecht, AAAI 2015; over the k best labels only, because nearly all of a million labels
have a probability of 0 and are wrong: Ullah, Schultheis, Zhang, Babbar, KDD 2025, arXiv 2411.04276). The reliability
table has a line for each bin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from engine.data.label_sets import LabelSets

BINS = 10


class Calibration:
    """Sums over predictions for the cut-offs k. Memory: a few numbers for each."""

    def __init__(self, k: Sequence[int]) -> None:
        self._sum = {cut: np.zeros((3, BINS)) for cut in k}  # predictions, their probabilities, those that are right

    def update(self, label_BK: np.ndarray, probability_BK: np.ndarray, truth: LabelSets) -> None:
        """Adds a batch: label_BK int [B, any width], best first, -1 = none, with their probabilities in [0, 1]."""
        counted_BK = (label_BK >= 0) & (truth.sizes() > 0)[:, None]
        hit_BK = truth.contains(label_BK)
        bin_BK = np.minimum((probability_BK * BINS).astype(np.int64), BINS - 1)
        for cut, total in self._sum.items():
            counted = counted_BK[:, :cut]
            bins = bin_BK[:, :cut][counted]
            for row, weights in enumerate((None, probability_BK, hit_BK)):
                weights = None if weights is None else weights[:, :cut][counted].astype(np.float64)
                total[row] += np.bincount(bins, weights, minlength=BINS)

    def errors(self) -> dict[str, float]:
        """`ECE@k` for every cut-off, as a fraction; NaN without a prediction."""
        found = {}
        for cut, (count, probability, right) in self._sum.items():
            n = count.sum()
            found[f"ECE@{cut}"] = float(np.abs(probability - right).sum() / n) if n else math.nan
        return found

    def tables(self) -> dict[int, list[dict[str, float | int]]]:
        """For every cut-off a line a bin: `from` and `to`, how many `predictions`, their `mean_probability` and the
        share that is `right`; the last two are NaN for an empty bin."""
        return {cut: [_line(b, *total[:, b].tolist()) for b in range(BINS)] for cut, total in self._sum.items()}


def _line(number: int, count: float, probability: float, right: float) -> dict[str, float | int]:
    return {
        "from": number / BINS,
        "to": (number + 1) / BINS,
        "predictions": int(count),
        "mean_probability": probability / count if count else math.nan,
        "right": right / count if count else math.nan,
    }
