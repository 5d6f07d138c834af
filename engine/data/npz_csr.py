"""Sparse matrices as scipy saves them (`.npz`, CSR), read row by row in bounded memory, without scipy and pickle."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from engine.data.sourcefiles import shown
from engine.errors import DataError, reason

_ROWS = 4096  # offsets read together
_MAX_ROW = 1 << 22  # values of one row
# What the standard library raises over an archive that is none, or damaged, or locked.
DAMAGED = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, KeyError, OSError, ValueError, OverflowError,
)  # fmt: skip


class NpzCsr:
    """The non-zero columns of every row of a CSR matrix. rows, columns: its shape.

    Raises DataError for a file that is no such matrix: wrong members, wrong types, offsets that do not fit.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._reading(), zipfile.ZipFile(path) as archive:
            (kind,) = self._small(archive, "format", 1).tolist()
            if kind not in (b"csr", "csr"):
                raise DataError(f"{path}: a sparse matrix in the format {kind!r}, not csr; save it as csr")
            shape = self._small(archive, "shape", 2)
            if shape.dtype.kind not in "iu" or shape.min() < 0 or shape.max() > 2**62:
                raise DataError(f"{path}: {shape.tolist()} is not the shape of a matrix")
            self.rows, self.columns = shape.tolist()

    def __iter__(self) -> Iterator[list[int] | None]:
        """Columns of every row, as stored: perhaps out of range or repeated. Explicit zeros are left out.

        None for a row with a NaN: whether it has that column is not known.
        """
        with self._reading(), zipfile.ZipFile(self.path) as archive, ExitStack() as stack:
            offsets, ids, values = (
                _Vector(stack, archive, name, kinds, self.path)
                for name, kinds in (("indptr", "iu"), ("indices", "iu"), ("data", "iufb"))
            )
            if offsets.length != self.rows + 1 or ids.length != values.length:
                what = f"{self.rows} rows, {offsets.length} offsets, {ids.length} columns, {values.length} values"
                raise DataError(f"{self.path}: {what} do not make a matrix")
            last = int(offsets.read(1)[0])
            if last != 0:
                raise DataError(f"{self.path}: the offsets begin with {last}, not 0")
            for start in range(0, self.rows, _ROWS):
                ends = offsets.read(min(_ROWS, self.rows - start)).astype(np.int64)
                sizes = np.diff(ends, prepend=last)
                if sizes.min() < 0 or ends[-1] > ids.length:
                    raise DataError(
                        f"{self.path}: the offsets of rows {start}..{start + len(ends) - 1} decrease or end"
                        f" behind the {ids.length} values"
                    )
                if sizes.max() > _MAX_ROW:
                    row = start + int(sizes.argmax())
                    raise DataError(f"{self.path}: row {row} has {sizes.max()} values, more than any text has labels")
                for size in sizes.tolist():
                    yield _row(ids, values, size)
                last = int(ends[-1])
            if last != ids.length:
                raise DataError(f"{self.path}: the offsets end at {last}, but there are {ids.length} values")

    def _small(self, archive: zipfile.ZipFile, name: str, length: int) -> np.ndarray:
        with ExitStack() as stack:
            vector = _Vector(stack, archive, name, "iuSU", self.path)
            if vector.length != length or vector.dtype.itemsize > 64:
                raise DataError(f"{self.path}: {name!r} is not that of a sparse matrix")
            return vector.read(length)

    def _reading(self) -> "_Reading":
        return _Reading(self.path)


class _Reading:
    """Turns the errors of a damaged archive into one that a person can act on."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DAMAGED):
            raise DataError(f"{self._path}: damaged or not a .npz file ({reason(error)}); fetch it again") from None


class _Vector:
    """A vector inside a `.npz`, read part by part. kinds: numpy's letters of the types it may have."""

    def __init__(self, stack: ExitStack, archive: zipfile.ZipFile, name: str, kinds: str, path: Path):
        try:
            info = archive.getinfo(f"{name}.npy")
        except KeyError:
            raise DataError(
                f"{path}: no {name!r}; found {shown(archive.namelist())}; a sparse matrix of scipy is expected"
            ) from None
        self._what = f"{path}: {name!r}"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{self._what} is packed in a way that numpy does not use; save the matrix again")
        self._file: IO[bytes] = stack.enter_context(archive.open(info))
        try:
            version = npy_format.read_magic(self._file)
            read_header = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}[version]
            shape, _, self.dtype = read_header(self._file)
        except Exception as error:  # numpy has Python parse what stands there
            raise DataError(f"{self._what} is not readable ({reason(error)})") from None
        if self.dtype.kind not in kinds or len(shape) > 1:
            raise DataError(f"{self._what} is {self.dtype} {shape}, not a vector of the right type")
        self.length = shape[0] if shape else 1
        if self.length * self.dtype.itemsize != info.file_size - self._file.tell():
            raise DataError(f"{self._what} says {self.length} values, but has fewer or more; fetch the file again")

    def read(self, length: int) -> np.ndarray:
        """The next `length` values."""
        content = self._file.read(length * self.dtype.itemsize)
        if len(content) != length * self.dtype.itemsize:
            raise DataError(f"{self._what} ends too early; fetch the file again")
        return np.frombuffer(content, self.dtype)


def _row(ids: _Vector, values: _Vector, size: int) -> list[int] | None:
    """The next `size` columns, less those whose value is 0; None if one is NaN."""
    value, column = values.read(size), ids.read(size)
    return column[value != 0].tolist() if np.all(value == value) else None
