"""Text lines of source files that may be gzip-compressed, damaged or hostile: bounded, checked, one at a time."""

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from engine.data.problems import Problems
from engine.errors import DataError, reason

Progress = Callable[[int, int], None]  # bytes read, bytes in all, of the files as they are on disk

MAX_LINE_BYTES = 16 << 20  # as JSON it can take twenty times that in memory
MAX_FILE_BYTES = 1 << 40  # decompressed
MAX_RATIO = 200  # decompressed over compressed; text rarely passes 20
_RATIO_GRACE_BYTES = 64 << 20  # less than this is harmless at any ratio
_REPORT_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 18


class ProgressMeter:
    """Adds up what is read of several files and tells `report` now and then."""

    def __init__(self, report: Progress | None, files: list[Path]):
        self._report = report
        self._total = sum(file.stat().st_size for file in files)
        self._finished = 0

    def at(self, position: int) -> None:
        """`position` bytes of the current file are read."""
        if self._report:
            self._report(self._finished + position, self._total)

    def finish(self, file: Path) -> None:
        self._finished += file.stat().st_size
        self.at(0)


def read_lines(file: Path, meter: ProgressMeter, problems: Problems) -> Iterator[tuple[int, str, bool]]:
    """Lines of a UTF-8 file as (number from 1, line with its end, whether it is whole).

    A name that ends in `.gz` is decompressed. A line that is too long (it comes back empty) or has a byte that is not
    UTF-8 (it comes back with a replacement) is a problem.

    Raises DataError with `file:line` for a damaged or truncated archive and one that grows beyond all measure when
    decompressed.
    """
    with _opened(file) as raw:
        stream: IO[bytes] = gzip.GzipFile(fileobj=raw, mode="rb") if file.suffix == ".gz" else raw
        number = size = 0
        due = _REPORT_BYTES
        while line := _read_piece(stream, file, number + 1):
            number += 1
            size += len(line)
            whole = len(line) <= MAX_LINE_BYTES
            while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = _read_piece(stream, file, number)
                size += len(line)
                _check_size(size, raw, file, number)
            if size >= due:
                _check_size(size, raw, file, number)
                meter.at(raw.tell())
                due = size + _REPORT_BYTES
            if not whole:
                what = f"line longer than {MAX_LINE_BYTES >> 20} MiB; one instance a line is expected"
                problems.add("line too long", f"{file}:{number}", what)
                yield number, "", False
                continue
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError as error:
                byte, place = line[error.start], error.start + 1
                what = f"byte 0x{byte:02x} at position {place} of the line is not UTF-8; convert the file to UTF-8"
                problems.add("not UTF-8", f"{file}:{number}", what)
                yield number, line.decode(encoding, errors="replace"), False
                continue
            yield number, text, True
    meter.finish(file)


def _opened(file: Path) -> IO[bytes]:
    try:
        return open(file, "rb", buffering=_BUFFER_BYTES)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({reason(error)})") from None


def _read_piece(stream: IO[bytes], file: Path, number: int) -> bytes:
    """A line, or as much of it as is longer than any line may be."""
    try:
        return stream.readline(MAX_LINE_BYTES + 1)
    except EOFError:
        raise DataError(f"{file}:{number}: the archive ends too early, it is truncated; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise DataError(f"{file}:{number}: damaged gzip archive ({error}); fetch it again") from None


def _check_size(size: int, raw: IO[bytes], file: Path, number: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{file}:{number}: more than {MAX_FILE_BYTES >> 30} GiB of text; split the file")
    if size > _RATIO_GRACE_BYTES and size > MAX_RATIO * max(raw.tell(), 1):
        raise DataError(
            f"{file}:{number}: decompresses to over {MAX_RATIO} times its size, which no text does; decompress it"
            " yourself if it is to be trusted"
        )


def read_objects(file: Path, meter: ProgressMeter, problems: Problems) -> Iterator[tuple[int, dict]]:
    """The JSON objects of a file, one a line, each with its line. Blank lines are skipped, others are problems."""
    for number, line, whole in read_lines(file, meter, problems):
        if whole and not line.isspace():
            value = _parse_object(line)
            if isinstance(value, dict):
                yield number, value
            else:
                problems.add("not a JSON object", f"{file}:{number}", value)


def _parse_object(line: str) -> dict | str:
    """A line as a JSON object, or what is wrong with it."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"invalid JSON ({error}); one JSON object a line is expected"
    return value if isinstance(value, dict) else f"a JSON {type(value).__name__}, one JSON object a line is expected"


def find_file(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of `names` that is a file in `folder`, as it is or with `.gz` behind."""
    candidates = (folder / f"{name}{packed}" for name in names for packed in ("", ".gz"))
    return next((file for file in candidates if file.is_file()), None)


def shown(names: Iterable[str]) -> str:
    """Some names from a file for a message: on one line, and not too long."""
    parts = [repr(name) if len(name) <= 40 else f"{name[:39]!r}…" for name in islice(names, 20)]
    return ", ".join(parts) or "none"
