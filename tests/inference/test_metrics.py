"""Streamed metrics against the plain definition on dense matrices, and PSP against numbers worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inference.metrics import BANDS, Metrics, format_table, frequency_bands, inverse_propensity

K = (1, 3, 5)


def csr(rows):
    return np.cumsum([0, *map(len, rows)]), np.array([id for row in rows for id in row], dtype=np.int32)


def measure(topk, rows, frequency, n_train, cuts=(), k=K, **constants):
    """Metrics of the batches between `cuts`."""
    metrics = Metrics(k, frequency=frequency, n_train=n_train, **constants)
    offsets, ids = csr(rows)
    for first, last in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        metrics.update(topk[first:last], offsets[first : last + 1], ids)
    return metrics.result()


def dense(topk, rows, frequency, n_train, k):
    """All metrics by their definitions, instance by instance on an N x L matrix."""
    n_labels = len(frequency)
    order = sorted(range(n_labels), key=lambda label: (-frequency[label], label))
    total, running, band = sum(frequency), 0, {}
    for label in order:
        band[label] = BANDS[min(3 * running // total, 2)] if total and frequency[label] else "tail"
        running += frequency[label]
    c = (math.log(n_train) - 1) * 2.5**0.55
    q = [1 + c * (n + 1.5) ** -0.55 for n in frequency]
    truth = np.zeros((len(rows), n_labels), dtype=bool)
    for row, ids in enumerate(rows):
        truth[row, list(ids)] = True

    result = {"instances": int(truth.any(axis=1).sum()), "instances_without_labels": int((~truth.any(axis=1)).sum())}
    for view in ("", *BANDS):
        inside = np.array([view in ("", band[label]) for label in range(n_labels)])
        for cut in k:
            precision, recall, gain, achieved, best = [], [], [], 0.0, 0.0
            achieved_gain, best_gain, right, present = 0.0, 0.0, set(), set()
            for row in range(len(rows)):
                relevant = truth[row] & inside
                if truth[row].any():
                    precision.append(sum(relevant[id] for id in topk[row, :cut] if id >= 0) / cut)
                if not relevant.any():
                    continue
                hits = [(rank, id) for rank, id in enumerate(topk[row, :cut]) if id >= 0 and relevant[id]]
                recall.append(len(hits) / relevant.sum())
                ideal = sum(1 / math.log2(rank + 2) for rank in range(min(cut, relevant.sum())))
                gain.append(sum(1 / math.log2(rank + 2) for rank, _ in hits) / ideal)
                achieved += sum(q[id] for _, id in hits)
                best_first = sorted((q[id] for id in np.flatnonzero(relevant)), reverse=True)[:cut]
                best += sum(best_first)
                achieved_gain += sum(q[id] / math.log2(rank + 2) for rank, id in hits) / ideal
                best_gain += sum(value / math.log2(rank + 2) for rank, value in enumerate(best_first)) / ideal
                right |= {id for _, id in hits}
                present |= set(np.flatnonzero(relevant))
            suffix = f"/{view}" if view else ""
            result[f"P@{cut}{suffix}"] = np.mean(precision) if precision else math.nan
            result[f"R@{cut}{suffix}"] = np.mean(recall) if recall else math.nan
            result[f"nDCG@{cut}{suffix}"] = np.mean(gain) if gain else math.nan
            result[f"PSP@{cut}{suffix}"] = achieved / best if best else math.nan
            result[f"PSnDCG@{cut}{suffix}"] = achieved_gain / best_gain if best_gain else math.nan
            result[f"coverage@{cut}{suffix}"] = len(right) / len(present) if present else math.nan
    return result


@st.composite
def problems(draw):
    """Rankings with gaps, instances without labels, labels that training never saw, ties in frequency."""
    seed = draw(st.integers(0, 2**32 - 1))
    n_rows, n_labels, width = draw(st.integers(1, 12)), draw(st.integers(1, 30)), draw(st.integers(1, 7))
    random = np.random.default_rng(seed)
    width = min(width, n_labels)
    topk = np.stack([random.permutation(n_labels)[:width] for _ in range(n_rows)])
    topk[random.random(topk.shape) < 0.15] = -1
    rows = [random.permutation(n_labels)[: random.integers(0, min(9, n_labels + 1))] for _ in range(n_rows)]
    frequency = random.integers(0, draw(st.sampled_from([1, 3, 50])), n_labels)
    cuts = sorted(draw(st.lists(st.integers(0, n_rows), max_size=4)))
    return topk, rows, frequency, cuts


@settings(max_examples=150, deadline=None)
@given(problems())
def test_equals_the_definitions_however_the_stream_is_cut(problem):
    topk, rows, frequency, cuts = problem
    expected = dense(topk, rows, frequency.tolist(), 1000, K)
    for result in (measure(topk, rows, frequency, 1000), measure(topk, rows, frequency, 1000, cuts)):
        assert result.keys() == expected.keys()
        for key, value in expected.items():
            assert result[key] == pytest.approx(value, rel=1e-12, nan_ok=True), key
        for k in K:
            if result["instances"]:
                assert sum(result[f"P@{k}/{band}"] for band in BANDS) == pytest.approx(result[f"P@{k}"])


def test_inverse_propensity_by_hand():
    """N = e^5: C = 4 * 2.5^0.55 = 6.62105. q(0) = 1 + 4 (2.5/1.5)^0.55 = 6.29757; q(1) = 1 + 4 = 5;
    q(8.5) = 1 + 4 * (2.5/10)^0.55 = 1 + 4 * 0.466517."""
    q = inverse_propensity(np.array([0, 1, 8.5]), math.exp(5))
    assert q == pytest.approx([6.29757, 5.0, 2.866066], abs=1e-5)


def test_psp_by_hand():
    """A = 1, B = 1, N = e^2: C = 2, q(n) = 1 + 2 / (n + 1), so n = 1, 3, 7 give q = 2, 1.5, 1.25.

    Instance 0 has labels 0 and 2 and ranks 2, 1, 0; instance 1 has label 1 and ranks 0, 1, nothing.
    @1: achieved 1.25 + 0 of 2 + 1.5. @2: 1.25 + 1.5 of 3.25 + 1.5. @3: 3.25 + 1.5 of the same.
    """
    constants = {"propensity_a": 1.0, "propensity_b": 1.0}
    topk = np.array([[2, 1, 0], [0, 1, -1]])
    result = measure(topk, [[0, 2], [1]], np.array([1, 3, 7]), math.exp(2), k=(1, 2, 3), **constants)
    assert [result[f"PSP@{k}"] for k in (1, 2, 3)] == pytest.approx([1.25 / 3.5, 2.75 / 4.75, 1.0])


def test_precision_divides_by_k_and_recall_by_the_labels():
    result = measure(np.array([[4, 2]]), [[4, 2]], np.ones(6, dtype=int), 10)
    assert (result["P@1"], result["P@5"]) == (1.0, 2 / 5)
    assert (result["R@1"], result["R@5"]) == (0.5, 1.0)
    assert result["nDCG@5"] == 1.0


def test_a_repeated_true_label_counts_once():
    once, twice = ([[4, 2]], [[4, 2, 4]])
    frequency = np.arange(6)
    assert measure(np.array([[4, 2]]), once, frequency, 10) == measure(np.array([[4, 2]]), twice, frequency, 10)


def test_instances_without_labels_are_skipped_and_counted():
    result = measure(np.array([[0], [0]]), [[], [0]], np.array([5, 1]), 6)
    assert (result["P@1"], result["instances"], result["instances_without_labels"]) == (1.0, 1, 1)
    empty = measure(np.zeros((2, 1), dtype=int), [[], []], np.array([5, 1]), 6)
    assert empty["instances"] == 0
    assert math.isnan(empty["P@1"])


def test_bands_hold_a_third_of_the_occurrences_each():
    frequency = np.array([1] * 30 + [0, 30, 10, 10, 10])
    band = frequency_bands(frequency)
    assert [frequency[band == index].sum() for index in range(3)] == [30, 30, 30]
    assert band[31] == 0
    assert band[30] == 2
    assert frequency_bands(np.zeros(3, dtype=int)).tolist() == [2, 2, 2]
    assert frequency_bands(np.array([1, 98, 1])).tolist() == [2, 0, 2]


def test_memory_follows_the_batch_not_the_labels_times_the_batch():
    import tracemalloc

    n_labels, n_rows = 1_000_000, 256
    metrics = Metrics(frequency=np.ones(n_labels, dtype=np.int64), n_train=10)
    random = np.random.default_rng(0)
    topk, ids = random.integers(0, n_labels, (n_rows, 5)), random.integers(0, n_labels, 5 * n_rows)
    tracemalloc.start()
    metrics.update(topk, np.arange(n_rows + 1) * 5, ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("k", [(), (0, 1)])
def test_impossible_cut_offs_are_refused(k):
    with pytest.raises(ValueError, match="at least 1"):
        Metrics(k, frequency=np.ones(3), n_train=3)


def test_table_prints_percentages_and_gaps():
    result = measure(np.array([[0, 1]]), [[0]], np.array([8, 1]), 9)
    table = format_table({"sparse classifier": result, "most frequent": {"P@1": 0.255, "R@5/tail": math.nan}})
    head, bands = table.split("\n\n")
    assert head.splitlines() == [
        "in %                 P@1    P@3    P@5    R@5  nDCG@5  PSP@1  PSP@3  PSP@5",
        "sparse classifier  100.0   33.3   20.0  100.0   100.0  100.0  100.0  100.0",
        "most frequent       25.5      -      -      -       -      -      -      -",
    ]
    assert bands.splitlines()[0].split()[2:] == [f"{m}/{band}" for m in ("P@1", "R@5") for band in BANDS]
    assert format_table({"a": {"P@1": 0.5}}) == "in %    P@1\na      50.0"
