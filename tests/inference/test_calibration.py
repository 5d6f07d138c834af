"""Calibration of the k best labels against numbers worked by hand."""

import math

import numpy as np
import pytest

from engine.data.label_sets import LabelSets
from engine.inference.calibration import Calibration

LABEL = np.array([[0, 1, 2], [3, 0, -1], [1, 2, 3]])
PROBABILITY = np.array([[0.95, 0.85, 0.12], [1.0, 0.18, 0.0], [0.5, 0.5, 0.5]], dtype=np.float32)
TRUTH = LabelSets(np.array([0, 2, 3, 3]), np.array([0, 2, 0], dtype=np.int32))  # {0, 2}, {0}, none


def test_error_and_table_by_hand():
    """Of the first two labels: 0.95 right and 1.0 wrong in the last bin, 0.85 wrong, 0.18 right; the third row has no
    labels and is left out. |1.95 - 1| + |0.85 - 0| + |0.18 - 1| = 2.62 over four predictions."""
    calibration = Calibration((1, 2, 3))
    calibration.update(LABEL, PROBABILITY, TRUTH)
    errors = calibration.errors()
    assert errors["ECE@1"] == pytest.approx((1.95 - 1) / 2, abs=1e-6)
    assert errors["ECE@2"] == pytest.approx(2.62 / 4, abs=1e-6)
    # The third labels add 0.12, right, to the second bin: |0.30 - 2| there; -1 is no prediction.
    assert errors["ECE@3"] == pytest.approx((0.95 + 0.85 + 1.70) / 5, abs=1e-6)
    table = calibration.tables()[2]
    assert [line["predictions"] for line in table] == [0, 1, 0, 0, 0, 0, 0, 0, 1, 2]
    assert (table[9]["from"], table[9]["to"]) == (0.9, 1.0)
    assert table[9]["mean_probability"] == pytest.approx(1.95 / 2)
    assert table[9]["right"] == 0.5
    assert math.isnan(table[0]["right"])


def test_batches_add_up():
    whole, parts = Calibration((1, 3)), Calibration((1, 3))
    whole.update(LABEL, PROBABILITY, TRUTH)
    for row in range(3):
        parts.update(LABEL[row : row + 1], PROBABILITY[row : row + 1], TRUTH.select(np.array([row])))
    assert parts.errors() == pytest.approx(whole.errors())


def test_probabilities_that_are_right_as_often_as_they_say_have_no_error():
    random = np.random.default_rng(0)
    probability = random.random((100_000, 1)).astype(np.float32)
    right = random.random(len(probability)) < probability[:, 0]
    truth = LabelSets(np.arange(len(right) + 1), np.where(right, 7, 8).astype(np.int32))
    calibration = Calibration((1,))
    calibration.update(np.full((len(right), 1), 7), probability, truth)
    assert calibration.errors()["ECE@1"] < 0.01


def test_nothing_predicted_has_no_error_to_tell():
    calibration = Calibration((1,))
    calibration.update(np.full((1, 1), -1), np.zeros((1, 1)), TRUTH.select(np.array([0])))
    assert math.isnan(calibration.errors()["ECE@1"])
