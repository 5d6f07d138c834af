"""Which texts have a label."""

import numpy as np
import pytest

from engine.data.label_sets import LabelSets
from engine.data.lookup import instances_with, label_name, texts_with
from engine.data.store import Dataset


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_instances_of_a_label_are_found_in_order(block):
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.choice(7, rng.integers(0, 5), replace=False)) for _ in range(50)]
    sets = LabelSets(np.cumsum([0, *map(len, rows)]), np.concatenate(rows).astype(np.int32))
    for label in range(8):
        all_of_them = [i for i, row in enumerate(rows) if label in row]
        for most in (1, 5, 100):
            assert instances_with(sets, label, most, block) == all_of_them[:most]


def test_texts_and_names_are_those_of_the_label(tiny_dataset):
    dataset = Dataset.open(tiny_dataset)
    found = texts_with(dataset.train, 3, 4)
    assert len(found) == 4 and all("graph" in text for text in found)
    assert label_name(dataset, 3) == "label-3"
    assert label_name(dataset, 120) is None and label_name(dataset, -1) is None
