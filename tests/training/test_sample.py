"""The sample of training texts that is looked at before training."""

import numpy as np
import pytest

from engine.data.label_sets import LabelSets
from engine.training.sample import covering_sample


def label_sets(texts: int, labels: int, seed: int) -> LabelSets:
    """Every text has one to four labels, of which low ids are frequent and high ones rare."""
    rng = np.random.default_rng(seed)
    rows = [np.unique((labels * rng.random(rng.integers(1, 5)) ** 3).astype(np.int32)) for _ in range(texts)]
    return LabelSets(np.concatenate([[0], np.cumsum([len(row) for row in rows])]), np.concatenate(rows))


@pytest.mark.parametrize("seed", range(4))
def test_every_label_has_as_many_texts_as_asked_for_or_all_that_it_has(seed):
    sets = label_sets(5000, 400, seed)
    sample = covering_sample(sets, np.arange(5000), 400, 2000, each=6)
    there, held = sets.counts(400), sets.select(sample).counts(400)
    assert (held >= np.minimum(there, 6)).all()
    assert len(sample) == 2000, "others fill it"
    assert np.isin(np.arange(0, 5000, 5), sample).all(), "the even sample is part of it"
    assert (np.diff(sample) > 0).all()


def test_a_limit_takes_texts_of_the_labels_with_the_fewest_first():
    sets = label_sets(5000, 400, 0)
    part = covering_sample(sets, np.arange(5000), 400, 1000, each=6)
    assert len(part) == 1000
    there = sets.counts(400) > 0

    def missing(rows: np.ndarray) -> int:
        return int((there & (sets.select(rows).counts(400) == 0)).sum())

    assert missing(np.arange(0, 5000, 10)) > missing(part) == 0


def test_rows_that_are_few_are_all_taken():
    sets, rows = label_sets(300, 50, 0), np.arange(0, 300, 3)
    np.testing.assert_array_equal(covering_sample(sets, rows, 50, 100), rows)


def test_rows_are_those_asked_for_and_the_same_every_time():
    sets, rows = label_sets(5000, 400, 1), np.sort(np.random.default_rng(0).permutation(5000)[:3000])
    first = covering_sample(sets, rows, 400, 600, each=4)
    assert np.isin(first, rows).all()
    np.testing.assert_array_equal(first, covering_sample(sets, rows, 400, 600, each=4))


def test_one_row_too_many_leaves_one_out():
    sets = label_sets(1001, 50, 2)
    assert len(covering_sample(sets, np.arange(1001), 50, 1000)) == 1000
