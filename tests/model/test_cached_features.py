"""Features of a frozen encoder are computed once, also when several trainings ask for them at the same time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from engine import turns
from engine.model import features
from engine.model.features import FEATURE_LENGTHS, TokenInputs, cached_features
from engine.turns import ProcessLock

ROWS = 300


class Texts:
    """Rows whose tokens are all their own number; by themselves 64 of them."""

    def __init__(self, lengths=None):
        self.tokens = np.full(ROWS, 64, np.int32) if lengths is None else np.asarray(lengths, np.int32)

    def __len__(self):
        return len(self.tokens)

    def lengths(self):
        return self.tokens

    def pad(self, rows, pad_id):
        shape = len(rows), self.tokens[rows].max()
        return np.repeat(rows[:, None], shape[1], axis=1), np.ones(shape, np.int64)


class Encoder:
    """Features of a row are its number and twice that. Counts the rows it has seen, and remembers their shapes."""

    width = 2

    def __init__(self):
        self.seen, self.shapes = 0, []

    def to(self, device):
        return self

    def __call__(self, ids, mask):
        self.seen += len(ids)
        self.shapes.append(tuple(ids.shape))
        assert mask.shape == ids.shape
        return torch.stack([ids[:, 0], 2 * ids[:, 0]], dim=1).float()


def inputs(lengths=None):
    return TokenInputs(Texts(lengths), pad_id=0)


def test_whoever_comes_second_waits_for_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.01)
    file, encoder, waited = tmp_path / "cache" / "features.npy", Encoder(), []
    file.parent.mkdir()
    with ProcessLock(file.with_suffix(".lock")) as lock, ThreadPoolExecutor() as pool:
        assert lock.take()
        second = pool.submit(cached_features, encoder, inputs(), file, "cpu", lambda *now: waited.append(now))
        while not waited:
            pass
        assert encoder.seen == 0 and waited[0] == (0, ROWS)
        np.save(file, np.ones((ROWS, 2), np.float16))  # the first has finished
        lock.give_back()
        assert second.result().sum() == 2 * ROWS
    assert encoder.seen == 0


def test_several_at_once_compute_them_once(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.01)
    encoder = Encoder()
    with ThreadPoolExecutor(4) as pool:
        tasks = [
            pool.submit(cached_features, encoder, inputs(), tmp_path / "features.npy", "cpu", lambda *_: None)
            for _ in range(4)
        ]
        for task in tasks:
            assert np.array_equal(task.result(), np.outer(np.arange(ROWS), [1, 2]).astype(np.float16))
    assert encoder.seen == ROWS


def test_who_waits_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.01)

    def stop(*_):
        raise KeyboardInterrupt

    with ProcessLock(tmp_path / "features.lock") as lock:
        assert lock.take()
        with pytest.raises(KeyboardInterrupt):
            cached_features(Encoder(), inputs(), tmp_path / "features.npy", "cpu", stop)


def test_batches_have_few_shapes_and_none_is_longer_than_the_longest_text(tmp_path):
    encoder, longest = Encoder(), 30
    lengths = np.resize(np.arange(1, longest + 1), 20_000)
    found = cached_features(encoder, inputs(lengths), tmp_path / "features.npy", "cpu", lambda *_: None)
    assert np.array_equal(found[:, 0], np.arange(len(lengths)).astype(np.float16))
    tokens = {shape[1] for shape in encoder.shapes}
    assert tokens == {*range(FEATURE_LENGTHS, longest, FEATURE_LENGTHS), longest}
    assert len(set(encoder.shapes)) <= len(tokens) + 1  # the last batch is smaller


@pytest.mark.parametrize(("lengths", "left"), [(FEATURE_LENGTHS, "the rest"), (FEATURE_LENGTHS + 1, "all")])
def test_a_stopped_pass_goes_on_but_not_over_batches_of_other_texts(tmp_path, monkeypatch, lengths, left):
    monkeypatch.setattr(features, "FLUSH_BATCHES", 2)
    file, calls = tmp_path / "features.npy", []

    def stop(done, total):
        calls.append(done)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(Encoder(), inputs(), file, "cpu", stop)
    monkeypatch.setattr(features, "FEATURE_LENGTHS", lengths)
    encoder = Encoder()
    found = cached_features(encoder, inputs(), file, "cpu", lambda *_: None)
    assert np.array_equal(found, np.outer(np.arange(ROWS), [1, 2]).astype(np.float16))
    assert encoder.seen == {"the rest": ROWS - calls[2], "all": ROWS}[left]
