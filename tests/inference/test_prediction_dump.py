"""Predictions as a CSR file: what scipy reads is what was predicted, however it came and however much it is."""

import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.npz_csr import NpzCsr
from engine.errors import EnvironmentProblem
from engine.inference import prediction_dump
from engine.inference.prediction_dump import PredictionDump


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 30),
    labels=st.integers(1, 40),
    width=st.integers(1, 45),
    chunk=st.integers(1, 31),
    parts=st.integers(1, 5),
)
def test_scipy_reads_what_was_added_in_any_order(seed, rows, labels, width, chunk, parts):
    random = np.random.default_rng(seed)
    expected = np.zeros((rows, labels), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_dump, "CHUNK", chunk)
        dump = PredictionDump(Path(folder), rows, labels, width)
        for part in np.array_split(random.permutation(rows), parts):
            k = min(labels, width)
            label = np.array([random.permutation(labels)[:k] for _ in part], dtype=int).reshape(len(part), k)
            value = random.uniform(0.01, 1, label.shape).astype(np.float32)
            label[random.random(label.shape) < 0.2] = -1
            dump.add(part, label, value)
            at, place = np.nonzero(label >= 0)
            expected[part[at], label[at, place]] = value[at, place]
        dump.save(Path(folder) / "predictions.npz")
        assert [file.name for file in Path(folder).iterdir()] == ["predictions.npz"]
        matrix = sp.load_npz(Path(folder) / "predictions.npz")
        if rows:
            assert list(NpzCsr(Path(folder) / "predictions.npz")) == [row.nonzero()[0].tolist() for row in expected]
    assert matrix.format == "csr"
    assert matrix.dtype == np.float32
    assert matrix.shape == (rows, labels)
    assert matrix.has_canonical_format
    np.testing.assert_array_equal(matrix.toarray(), expected)


def test_more_labels_than_room_are_cut_and_fewer_leave_room(tmp_path):
    dump = PredictionDump(tmp_path, 2, 9, 2)
    dump.add(np.array([1]), np.array([[8, 3, 5]]), np.array([[0.9, 0.5, 0.1]]))
    dump.add(np.array([0]), np.array([[4]]), np.array([[0.0]]))
    dump.save(tmp_path / "predictions.npz")
    matrix = sp.load_npz(tmp_path / "predictions.npz")
    assert matrix[1].indices.tolist() == [3, 8]
    assert matrix[0].indices.tolist() == [4], "a probability of 0 is a prediction, too"


def test_nothing_is_pickled_and_equal_predictions_make_equal_files(tmp_path):
    for name in ("one", "other"):
        dump = PredictionDump(tmp_path, 3, 4, 2)
        dump.add(np.arange(3), np.array([[0, 1], [2, 3], [1, -1]]), np.full((3, 2), 0.5))
        dump.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    with np.load(tmp_path / "one", allow_pickle=False) as arrays:
        assert {name: arrays[name].dtype.kind for name in arrays} == {
            "format": "S", "shape": "i", "indptr": "i", "indices": "i", "data": "f",
        }  # fmt: skip
    with zipfile.ZipFile(tmp_path / "one") as archive:
        assert archive.testzip() is None


def test_memory_holds_some_rows_not_all(tmp_path):
    rows, width = 300_000, 10
    tracemalloc.start()
    dump = PredictionDump(tmp_path, rows, 1_000_000, width)
    label, value = np.arange(1000)[:, None] * 10 + np.arange(width), np.full((1000, width), 0.5, dtype=np.float32)
    for start in range(0, rows, 1000):
        dump.add(np.arange(start, start + 1000), label, value)
    dump.save(tmp_path / "predictions.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20 < (tmp_path / "predictions.npz").stat().st_size
    assert sp.load_npz(tmp_path / "predictions.npz").nnz == rows * width


def test_a_disk_that_is_too_small_is_said_before_the_work(tmp_path):
    with pytest.raises(EnvironmentProblem, match="MiB are free"):
        PredictionDump(tmp_path, 2**40, 2**20, 100)
