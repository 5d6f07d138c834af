"""Features of a frozen encoder are computed once, also when several trainings ask for them at the same time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from engine import turns
from engine.model.features import cached_features
from engine.turns import ProcessLock

ROWS = 300


class Texts:
    """Rows whose only token is their own number."""

    def __len__(self):
        return ROWS

    def lengths(self):
        return np.full(ROWS, 64)


class Inputs:
    tokens = Texts()

    def __call__(self, rows):
        return (torch.from_numpy(rows),)


class Encoder:
    """Features of a row are its number and twice that. Counts the rows it has seen."""

    width = 2
    seen = 0

    def to(self, device):
        return self

    def __call__(self, rows):
        self.seen += len(rows)
        return torch.stack([rows, 2 * rows], dim=1).float()


def test_whoever_comes_second_waits_for_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.01)
    file, encoder, waited = tmp_path / "cache" / "features.npy", Encoder(), []
    file.parent.mkdir()
    with ProcessLock(file.with_suffix(".lock")) as lock, ThreadPoolExecutor() as pool:
        assert lock.take()
        second = pool.submit(cached_features, encoder, Inputs(), file, "cpu", lambda *now: waited.append(now))
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
            pool.submit(cached_features, encoder, Inputs(), tmp_path / "features.npy", "cpu", lambda *_: None)
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
            cached_features(Encoder(), Inputs(), tmp_path / "features.npy", "cpu", stop)
