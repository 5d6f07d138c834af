"""One-dimensional `.npy` files larger than memory: append to one, open one memory-mapped, gather ragged rows."""

from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.lib import format as npy_format


class NpyAppender:
    """Writes a one-dimensional `.npy` file of unknown length, part by part.

    The header is written twice: numpy pads it so that a longer shape fits in the same place.
    """

    def __init__(self, path: Path, dtype: np.typing.DTypeLike):
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115  closed by close()
        self._header_bytes = self._write_header()

    def _write_header(self) -> int:
        header = {"descr": npy_format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        npy_format.write_array_header_1_0(self._file, header)
        return self._file.tell()

    def append(self, values: np.ndarray) -> None:
        """Adds `values` [n], whose type must convert to the file's dtype; values out of its range wrap."""
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.length += len(values)

    def close(self) -> None:
        """Completes the header. Closing twice does nothing."""
        if self._file.closed:
            return
        with self._file:
            self._file.seek(0)
            header_bytes = self._write_header()
            assert header_bytes == self._header_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


def open_npy(path: Path) -> np.ndarray:
    """The array in `path`, mapped read-only, as a plain array: the memmap subclass slows down small reads.

    Raises ValueError when the file is no `.npy` file or is shorter than its header says.
    """
    return np.load(path, mmap_mode="r").view(np.ndarray)


def ragged_positions(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Positions [sum(counts)] int64 of the concatenated runs `starts[i] .. starts[i] + counts[i]`."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total, dtype=np.int64)
