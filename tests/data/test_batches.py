import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.batches import epoch_batches, prefetch, split_validation


def _all(batches) -> list[list[int]]:
    return [batches[position].tolist() for position in range(len(batches))]


def _realistic_lengths(n: int, mean: float, spread: float, cap: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(rng.lognormal(np.log(mean), spread, n).astype(int), 3, cap)


@given(
    n=st.integers(0, 700),
    batch_size=st.integers(1, 50),
    with_lengths=st.booleans(),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 100),
)
def test_every_row_comes_once_an_epoch(n, batch_size, with_lengths, seed, epoch):
    rows = np.arange(n) * 3 + 1
    lengths = np.arange(n) % 17 if with_lengths else None
    batches = epoch_batches(rows, lengths, batch_size, seed, epoch)
    assert sorted(row for batch in _all(batches) for row in batch) == rows.tolist()
    assert len(batches) == -(-n // batch_size)
    assert all(len(batches[i]) == batch_size for i in range(len(batches) - 1)), "only the last one may be short"
    if n:
        assert batches[0].dtype == np.int64


@pytest.mark.parametrize("lengths", [None, np.arange(1000) % 40])
def test_the_order_is_decided_by_seed_and_epoch(lengths):
    rows = np.arange(1000)
    first = _all(epoch_batches(rows, lengths, 16, seed=1, epoch=2))
    assert first == _all(epoch_batches(rows, lengths, 16, seed=1, epoch=2))
    assert first != _all(epoch_batches(rows, lengths, 16, seed=1, epoch=3))
    assert first != _all(epoch_batches(rows, lengths, 16, seed=2, epoch=2))


def test_positions_outside_the_epoch_are_refused():
    batches = epoch_batches(np.arange(10), None, 4, 0, 0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    with pytest.raises(IndexError):
        batches[3]
    with pytest.raises(IndexError):
        batches[-1]


@pytest.mark.parametrize("batch_size", [16, 64, 128])
@pytest.mark.parametrize(("mean", "spread", "cap"), [(17, 0.5, 96), (60, 0.6, 96), (90, 0.8, 512)])
def test_little_of_a_batch_is_padding(batch_size, mean, spread, cap):
    lengths = _realistic_lengths(20_000, mean, spread, cap)
    batches = epoch_batches(np.arange(20_000), lengths, batch_size, 0, 0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 1 - lengths.sum() / padded < 0.1


def test_batches_of_short_and_long_texts_alternate():
    lengths = _realistic_lengths(20_000, 60, 0.6, 512)
    means = [lengths[batch].mean() for batch in epoch_batches(np.arange(20_000), lengths, 64, 0, 0)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_equal_lengths_do_not_undo_the_shuffle():
    batches = _all(epoch_batches(np.arange(640), np.full(640, 7), 64, 0, 0))
    assert all(np.ptp(batch) > 300 for batch in batches)


def test_the_validation_split_is_sorted_disjoint_and_repeatable():
    train, validation = split_validation(1000, 0.1, seed=3)
    assert len(validation) == 100
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(1000))
    assert np.array_equal(train, np.sort(train))
    assert np.array_equal(validation, np.sort(validation))
    assert np.array_equal(validation, split_validation(1000, 0.1, seed=3)[1])
    assert not np.array_equal(validation, split_validation(1000, 0.1, seed=4)[1])


@pytest.mark.parametrize(
    ("n", "fraction", "cap", "expected"),
    [(10, 0.0, 100, 0), (10, 0.01, 100, 1), (1, 0.5, 100, 0), (0, 0.5, 100, 0), (10, 1.0, 100, 9), (1000, 0.5, 7, 7)],
)
def test_the_validation_split_is_bounded(n, fraction, cap, expected):
    train, validation = split_validation(n, fraction, seed=0, cap=cap)
    assert (len(train), len(validation)) == (n - expected, expected)


def test_prefetch_gives_the_same_items():
    assert list(prefetch(range(100))) == list(range(100))
    assert list(prefetch([])) == []


def test_prefetch_works_ahead_but_not_further_than_asked():
    made = []
    items = prefetch((made.append(i) or i for i in range(100)), depth=3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(made) == 5, "one taken, three waiting, one in hand"
    items.close()


def test_prefetch_raises_what_its_items_raise_in_its_place():
    def failing():
        yield 1
        raise ValueError("broken")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_leaving_prefetch_stops_its_thread():
    for item in prefetch(iter(int, 1)):
        assert item == 0
        break
    items = prefetch(iter(int, 1))
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
