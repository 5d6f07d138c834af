"""Ranking metrics of the field, streamed: P@k, R@k, nDCG@k, PSP@k, PSnDCG@k and coverage@k, overall and by frequency.

Notation: an instance has the label set Y and a ranking; hit_r = 1 if the label at rank r (from 1) is in Y.
Means are over the instances that have labels (pyxclib's `Metrics(..., remove_invalid=True)`).

    P@k         mean of  sum_{r<=k} hit_r / k                      k even where |Y| < k or fewer were predicted
    R@k         mean of  sum_{r<=k} hit_r / |Y|
    nDCG@k      mean of  sum_{r<=k} hit_r / log2(r+1)        /  sum_{r<=min(k,|Y|)} 1 / log2(r+1)
    PSP@k       mean of  sum_{r<=k} hit_r q_r                /  the same mean for the best possible ranking
    PSnDCG@k    mean of  nDCG@k with gain q_r in place of 1  /  the same mean for the best possible ranking
    coverage@k  share of the labels that some instance has, which are right in at least one of the rankings to k

q is the inverse propensity of a label that occurs n times in the N training instances,

    q = 1 + C (n + B)^-A,   C = (ln N - 1) (B + 1)^A

(Jain, Prabhu, Varma: Extreme Multi-label Loss Functions, KDD 2016, section 4). PSP@k and PSnDCG@k are the ratios of
means that pyxclib (xclib/evaluation/xc_metrics.py) and the extreme classification repository report, not means of
ratios; the best possible ranking has an instance's labels by falling q. Coverage is that of Schultheis et al.,
Generalized Test Utilities for Long-Tail Performance in Extreme Multi-label Classification, NeurIPS 2023, over the
labels of the evaluated split: a label that it does not have cannot be right.

Bands. Labels sorted by training frequency (ties by id) are cut into `head`, `torso` and `tail` so that each
holds about a third of all label occurrences in training: a label belongs to the third in which its share of
the running total begins. Labels that never occur in training are tail. `P@k/<band>` counts only hits in the
band, over all instances with labels: the three add up to P@k. The other metrics of a band are those of the
task restricted to it: relevant are the labels in Y and the band, the ranking stays as it is, and the mean is
over the instances that have such a label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.data.propensity import inverse_propensity
from engine.words import counted

BANDS = ("head", "torso", "tail")
# What is summed for each cut-off: hits, recall, nDCG; inverse propensity, and nDCG with it, achieved and best possible.
SUMS = 7
NEVER_RIGHT = np.iinfo(np.int16).max  # the rank of a true label that no ranking had right


class Metrics:
    """Sums that turn into metrics. Memory: three bytes per label, and what one batch needs.

    k: the cut-offs, each at least 1 · frequency: int [L], in how many training instances a label occurs ·
    n_train: number of training instances · propensity_a, propensity_b: A and B above (Amazon 0.6 and 2.6,
    Wikipedia 0.5 and 0.4, otherwise 0.55 and 1.5).
    """

    def __init__(
        self,
        k: Sequence[int] = (1, 3, 5),
        *,
        frequency: NDArray[np.integer],
        n_train: int,
        propensity_a: float = 0.55,
        propensity_b: float = 1.5,
    ):
        if not k or min(k) < 1:
            raise ValueError(f"cut-offs must be at least 1, not {list(k)}")
        self.k = sorted(set(k))
        self.frequency = np.asarray(frequency)
        self.band = frequency_bands(self.frequency)
        self._propensity = (n_train, propensity_a, propensity_b)
        views = ("", *BANDS)
        self._count = dict.fromkeys(views, 0)
        self._sum = {view: np.zeros((SUMS, len(self.k))) for view in views}
        self._best_rank = np.zeros(len(self.frequency), dtype=np.int16)  # of a hit, from 1; 0: true nowhere so far
        self._without_labels = 0

    def update(self, topk_ids: NDArray[np.integer], offsets: NDArray[np.integer], ids: NDArray[np.integer]) -> None:
        """Adds a batch.

        topk_ids: int [B, any width], label ids from the best rank to the worst, -1 = nothing predicted there; a row
        repeats no id · offsets: int [B+1], ids: int [nnz], true labels as CSR; offsets need not start at 0, an id
        that a row repeats counts once · all ids lie in [0, L).
        """
        topk_ids = np.asarray(topk_ids)[:, : self.k[-1]].astype(np.int64)
        offsets, ids = np.asarray(offsets, dtype=np.int64), np.asarray(ids)[offsets[0] : offsets[-1]]
        n_rows, n_labels = len(topk_ids), len(self.frequency)
        assert len(offsets) == n_rows + 1, (len(offsets), n_rows)
        assert max(topk_ids.max(initial=-1), ids.max(initial=-1)) < n_labels

        # One integer for a pair (instance, label) makes membership a search in a sorted array.
        true = np.unique(np.repeat(np.arange(n_rows), np.diff(offsets)) * n_labels + ids)
        predicted = np.where(topk_ids < 0, -1, np.arange(n_rows)[:, None] * n_labels + topk_ids)
        hit = np.append(true, -2)[np.searchsorted(true, predicted)] == predicted
        true_row, true_id = np.divmod(true, n_labels)

        n_train, a, b = self._propensity
        true_weight = inverse_propensity(self.frequency[true_id], n_train, a, b)
        hit_weight = inverse_propensity(self.frequency[topk_ids], n_train, a, b)
        best_first = np.lexsort((-true_weight, true_row))
        true_row, true_id, true_weight = true_row[best_first], true_id[best_first], true_weight[best_first]
        true_band, hit_band = self.band[true_id], self.band[topk_ids]
        self._add("", hit, hit_weight, true_row, true_weight)
        for index, view in enumerate(BANDS):
            inside = true_band == index
            self._add(view, hit & (hit_band == index), hit_weight, true_row[inside], true_weight[inside])
        self._without_labels += int((np.bincount(true_row, minlength=n_rows) == 0).sum())
        self._best_rank[true_id[self._best_rank[true_id] == 0]] = NEVER_RIGHT
        np.minimum.at(self._best_rank, topk_ids[hit], np.nonzero(hit)[1] + 1)

    def _add(self, view: str, hit: NDArray, hit_weight: NDArray, true_row: NDArray, true_weight: NDArray) -> None:
        """hit: bool [B, K] · hit_weight: [B, K] · true_row, true_weight: [nnz], by instance, then best first."""
        n_true = np.bincount(true_row, minlength=len(hit))
        rank = np.arange(len(true_row)) - np.repeat(np.cumsum(n_true) - n_true, n_true)
        discount = 1 / np.log2(np.arange(2, self.k[-1] + 2))
        ideal = np.concatenate([[0.0], np.cumsum(discount)])
        some = n_true > 0
        gain, weighted = hit * discount[: hit.shape[1]], hit * hit_weight
        self._count[view] += int(some.sum())
        for column, k in enumerate(self.k):
            first = rank < k
            best = np.bincount(true_row[first], true_weight[first] * discount[rank[first]], minlength=len(hit))
            per_row = (
                hit[:, :k].sum(axis=1),
                hit[:, :k].sum(axis=1) / n_true.clip(min=1),
                gain[:, :k].sum(axis=1) / ideal[n_true.clip(1, k)],
                weighted[:, :k].sum(axis=1),
                np.bincount(true_row[first], true_weight[first], minlength=len(hit)),
                (weighted * gain)[:, :k].sum(axis=1) / ideal[n_true.clip(1, k)],
                best / ideal[n_true.clip(1, k)],
            )
            self._sum[view][:, column] += [values[some].sum() for values in per_row]

    def result(self) -> dict[str, float | int]:
        """Metrics so far as fractions under keys such as `P@1` and `PSP@5/tail`, then `instances` (those counted) and
        `instances_without_labels` (those skipped). A mean over no instance is NaN."""
        result: dict[str, float | int] = {}
        for view in ("", *BANDS):
            suffix = f"/{view}" if view else ""
            for column, k in enumerate(self.k):
                hits, recall, gain, achieved, best, achieved_gain, best_gain = self._sum[view][:, column].tolist()
                result[f"P@{k}{suffix}"] = _ratio(hits, k * self._count[""])
                result[f"R@{k}{suffix}"] = _ratio(recall, self._count[view])
                result[f"nDCG@{k}{suffix}"] = _ratio(gain, self._count[view])
                result[f"PSP@{k}{suffix}"] = _ratio(achieved, best)
                result[f"PSnDCG@{k}{suffix}"] = _ratio(achieved_gain, best_gain)
                result[f"coverage@{k}{suffix}"] = _ratio(*self._covered(view, k))
        return result | {"instances": self._count[""], "instances_without_labels": self._without_labels}

    def _covered(self, view: str, k: int) -> tuple[int, int]:
        """(labels with a hit among the first k, labels that an instance has) of a band, or of all."""
        rank = self._best_rank if not view else self._best_rank[self.band == BANDS.index(view)]
        return int(((rank > 0) & (rank <= k)).sum()), int((rank > 0).sum())


def frequency_bands(frequency: NDArray[np.integer]) -> NDArray[np.int8]:
    """Each label's band as an index into BANDS, int8 [L]; see the module's text."""
    frequency = np.asarray(frequency, dtype=np.int64)
    labels = np.bincount(frequency, minlength=1)  # labels that occur n times
    mass = labels * np.arange(len(labels))
    begins = mass.sum() - np.cumsum(mass)  # of all labels that occur more often
    total = max(int(mass.sum()), 1)
    last = begins + (labels - 1).clip(min=0) * np.arange(len(labels))
    first_band, last_band = 3 * begins // total, 3 * last // total
    first_band[0] = last_band[0] = 2
    band = first_band.astype(np.int8)[frequency]
    for n in np.flatnonzero(first_band != last_band):  # at most two
        ids = np.flatnonzero(frequency == n)
        band[ids] = 3 * (begins[n] + n * np.arange(len(ids))) // total
    return band


def format_table(results: Mapping[str, Mapping[str, float | int]]) -> str:
    """Plain-text tables of several systems' results, in percent: one row a system; below it the bands.

    results: system name -> `Metrics.result()`. P and PSP at every cut-off, R and nDCG at the last; columns that no
    system has are left out, missing values are "-". Says so where a reciprocal filter was applied.
    """
    cuts = sorted({int(key[2:]) for result in results.values() for key in result if re.fullmatch(r"P@\d+", key)})
    deepest = cuts[-1:] or [1]
    columns = [*(f"P@{k}" for k in cuts), f"R@{deepest[0]}", f"nDCG@{deepest[0]}", *(f"PSP@{k}" for k in cuts)]
    bands = [f"{metric}/{band}" for metric in (f"P@{(cuts or [1])[0]}", f"R@{deepest[0]}") for band in BANDS]
    tables = ["\n".join(_table("in %", results, wanted)) for wanted in (columns, bands)]
    pairs = next((result["filtered_pairs"] for result in results.values() if "filtered_pairs" in result), None)
    note = "" if pairs is None else f"reciprocal filter: {counted(pairs, 'pair')} taken out of the predictions"
    return "\n\n".join(filter(None, [*tables, note]))


def _table(corner: str, results: Mapping[str, Mapping[str, float | int]], wanted: list[str]) -> Iterator[str]:
    columns = [key for key in wanted if any(key in result for result in results.values())]
    if not columns:
        return
    name_width = max(map(len, [corner, *results]))
    widths = [max(len(key), 5) for key in columns]
    yield "  ".join([corner.ljust(name_width), *(key.rjust(width) for key, width in zip(columns, widths, strict=True))])
    for name, result in results.items():
        values = (_percent(result.get(key)).rjust(width) for key, width in zip(columns, widths, strict=True))
        yield "  ".join([name.ljust(name_width), *values])


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
