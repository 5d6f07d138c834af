"""The label order puts frequent labels first and is a permutation."""

import numpy as np
import pytest

from engine.data.label_order import LabelOrder, by_frequency


@pytest.mark.parametrize("head", [0, 1, 3, 50, 99, 100])
def test_the_head_is_the_most_frequent_labels_and_the_rest_keeps_its_order(head):
    frequency = np.random.default_rng(0).integers(0, 6, 100)
    order = by_frequency(frequency, head)
    expected = sorted(range(100), key=lambda label: (-frequency[label], label))[:head]
    assert order.dtype == np.int32
    assert order.tolist() == expected + sorted(set(range(100)) - set(expected))


def test_positions_are_the_inverse_of_the_order():
    order = LabelOrder.from_labels(np.array([2, 0, 1]), 1)
    assert order.position_of[order.label_at].tolist() == [0, 1, 2]
