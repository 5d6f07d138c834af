"""Metrics against numbers worked by hand, and against pyxclib's formulas on dense matrices in numpy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.inference.metrics import Metrics

D2, D3 = 1 / math.log2(3), 1 / 2  # discounts of the ranks 2 and 3; that of rank 1 is 1


def test_a_small_matrix_by_hand():
    """N = e^3 instances, A = B = 1: C = (3 - 1) 2^1 = 4 and q(n) = 1 + 4 / (n + 1): 5, 3, 2 and 1.5 for labels that
    occur 0, 1, 3 and 7 times.

    Instance 0 has the labels 1, 2, 3 and ranks 3, 0, 1: right, wrong, right.
    Instance 1 has the label 0 and ranks 2, 0, 3: wrong, right, wrong.
    Instance 2 has none and is left out.
    """
    metrics = Metrics((1, 3), frequency=np.array([0, 1, 3, 7]), n_train=math.exp(3), propensity_a=1.0, propensity_b=1.0)
    metrics.update(np.array([[3, 0, 1], [2, 0, 3], [0, 1, 2]]), np.array([0, 3, 4, 4]), np.array([1, 2, 3, 0]))
    result = metrics.result()

    assert result["P@1"] == (1 + 0) / 2
    assert result["P@3"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert result["R@1"] == pytest.approx((1 / 3 + 0) / 2)
    assert result["R@3"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["nDCG@1"] == (1 + 0) / 2
    assert result["nDCG@3"] == pytest.approx(((1 + D3) / (1 + D2 + D3) + D2 / 1) / 2)
    assert result["nDCG@3"] == pytest.approx(0.667424, abs=1e-6)
    # Achieved over best possible, summed first: 1.5 + 0 of 3 + 5, and 1.5 + 3 + 5 of (3 + 2 + 1.5) + 5.
    assert result["PSP@1"] == pytest.approx(1.5 / 8)
    assert result["PSP@3"] == pytest.approx(9.5 / 11.5)
    assert result["PSnDCG@1"] == pytest.approx(1.5 / 8)
    achieved = (1.5 + 3 * D3) / (1 + D2 + D3) + 5 * D2
    best = (3 + 2 * D2 + 1.5 * D3) / (1 + D2 + D3) + 5
    assert result["PSnDCG@3"] == pytest.approx(achieved / best)
    assert result["PSnDCG@3"] == pytest.approx(0.620581, abs=1e-6)
    # Of the labels 0, 1, 2 and 3 of the instances, 3 is right at rank 1, then 0 at rank 2 and 1 at rank 3.
    assert result["coverage@1"] == 1 / 4
    assert result["coverage@3"] == 3 / 4


def pyxclib(scores_NL, true_NL, train_NL, a, b, k):
    """precision, recall, ndcg, psprecision and psndcg of xclib/evaluation/xc_metrics.py, written again for dense
    matrices: each [k], for the cut-offs 1 to k. Instances without labels are gone."""
    frequency = train_NL.sum(axis=0)
    c = (np.log(len(train_NL)) - 1) * (b + 1) ** a
    q = 1 + c * (frequency + b) ** -a
    discount = 1 / np.log2(np.arange(k) + 2)
    ideal = np.minimum(
        np.cumsum(1 / np.log2(np.arange(max(true_NL.shape[1], k)) + 2))[true_NL.sum(axis=1) - 1][:, None],
        np.cumsum(discount),
    )

    def flags(order_NL, weight):
        at = np.argsort(-order_NL, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(true_NL * weight, at, axis=1)

    hit, gained, best = flags(scores_NL, 1.0), flags(scores_NL, q), flags(true_NL * q, q)
    mean = {
        name: (np.cumsum(found, axis=1) / np.arange(1, k + 1)).mean(axis=0)
        for name, found in (("P", hit), ("achieved", gained), ("best", best))
    }
    ndcg = {
        name: (np.cumsum(found * discount, axis=1) / ideal).mean(axis=0)
        for name, found in (("nDCG", hit), ("achieved", gained), ("best", best))
    }
    return {
        "P": mean["P"],
        "R": (np.cumsum(hit, axis=1) / true_NL.sum(axis=1, keepdims=True)).mean(axis=0),
        "nDCG": ndcg["nDCG"],
        "PSP": mean["achieved"] / mean["best"],
        "PSnDCG": ndcg["achieved"] / ndcg["best"],
    }


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 15), st.integers(5, 40)),
    density=st.floats(0.02, 0.6),
    constants=st.sampled_from([(0.55, 1.5), (0.6, 2.6), (0.5, 0.4)]),
)
def test_agrees_with_pyxclib(seed, shape, density, constants):
    random = np.random.default_rng(seed)
    scores = random.permuted(np.tile(np.arange(shape[1]), (shape[0], 1)), axis=1).astype(float)  # no ties
    true = (random.random(shape) < density).astype(int)
    true[~true.any(axis=1), 0] = 1
    train = (random.random((random.integers(3, 60), shape[1])) < density).astype(int)
    expected = pyxclib(scores, true, train, *constants, k=5)

    metrics = Metrics(
        range(1, 6),
        frequency=train.sum(axis=0),
        n_train=len(train),
        propensity_a=constants[0],
        propensity_b=constants[1],
    )
    rows, ids = np.nonzero(true)
    metrics.update(np.argsort(-scores, axis=1)[:, :5], np.searchsorted(rows, np.arange(shape[0] + 1)), ids)
    result = metrics.result()
    for name, values in expected.items():
        for k, value in enumerate(values, start=1):
            assert result[f"{name}@{k}"] == pytest.approx(value, rel=1e-9), f"{name}@{k}"
