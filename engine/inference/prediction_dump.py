"""Predictions as a sparse matrix for other programs: a CSR `.npz` as `scipy.sparse.save_npz` writes it, streamed.

    matrix = scipy.sparse.load_npz("predictions.npz")  # rows of the split x labels, fp32 probabilities

Predictions come in any order and wait on the disk, so that memory holds a few thousand rows. Columns rise in a row;
rows without a prediction are empty. Members are stored uncompressed and are plain numbers and bytes, nothing pickled.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from engine.errors import EnvironmentProblem

CHUNK = 8192  # rows in memory
SPARE_BYTES = 1 << 20
BYTES = 8  # of a prediction: a label and a probability of four bytes each


class PredictionDump:
    """Collects the best labels of `rows` instances over `labels` labels, at most `width` each, in `folder`."""

    def __init__(self, folder: Path, rows: int, labels: int, width: int) -> None:
        needed = BYTES * rows * (2 * min(width, labels) + 1) + SPARE_BYTES  # waiting, and in the result
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise EnvironmentProblem(
                f"{folder}: predictions need {needed / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free; free some "
                "space, name another --output or lower --top"
            )
        self.folder, self.shape = folder, (rows, labels)
        self._waiting = [folder / f"waiting-{name}.npy" for name in ("labels", "probabilities")]
        room = (max(rows, 1), min(width, labels))  # an empty file cannot be mapped
        self._label = npy_format.open_memmap(self._waiting[0], "w+", np.int32, room)  # id + 1; 0: none
        self._probability = npy_format.open_memmap(self._waiting[1], "w+", np.float32, room)

    def add(self, rows: np.ndarray, label_BK: np.ndarray, probability_BK: np.ndarray) -> None:
        """Takes the predictions of `rows` int64 [B], best first, as many as there is room for; label_BK: -1 = none."""
        width = min(label_BK.shape[1], self._label.shape[1])
        self._label[rows, :width] = label_BK[:, :width] + 1
        self._probability[rows, :width] = probability_BK[:, :width]

    def save(self, file: Path) -> None:
        """Writes the matrix to `file`, and removes what waited."""
        ends = np.cumsum([0, *(n for _, _, sizes in self._chunks() for n in sizes.tolist())])
        index = np.int32 if max(ends[-1], self.shape[1]) < 2**31 else np.int64
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _write(archive, "format", np.dtype("S3"), (), [np.array(b"csr")])
            _write(archive, "shape", np.dtype(np.int64), (2,), [np.array(self.shape)])
            _write(archive, "indptr", np.dtype(index), ends.shape, [ends])
            _write(archive, "indices", np.dtype(index), (ends[-1],), (ids for ids, _, _ in self._chunks()))
            _write(archive, "data", np.dtype(np.float32), (ends[-1],), (values for _, values, _ in self._chunks()))
        self._label = self._probability = None
        for waiting in self._waiting:
            waiting.unlink()

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(label ids, probabilities, how many each row has) of some thousand rows at a time."""
        for start in range(0, self.shape[0], CHUNK):
            label = np.array(self._label[start : min(start + CHUNK, self.shape[0])])
            order = np.argsort(label, axis=1, kind="stable")
            label = np.take_along_axis(label, order, axis=1)
            probability = np.take_along_axis(self._probability[start : start + len(label)], order, axis=1)
            there = label > 0
            yield label[there] - 1, probability[there], there.sum(axis=1)


def _write(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple, parts: Iterable[np.ndarray]) -> None:
    """One array as a member, part by part. Dates are left out: equal predictions make equal files."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
        header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(map(int, shape))}
        npy_format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(part, dtype=dtype).tobytes())
