"""Text lines of source files that may be gzip-compressed, damaged or hostile: bounded, checked, one at a time."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from engine.errors import DataError

Progress = Callable[[int, int], None]  # bytes read, bytes in all, of the files as they are on disk

MAX_LINE_BYTES = 64 << 20
MAX_FILE_BYTES = 1 << 40  # decompressed
MAX_RATIO = 200  # decompressed over compressed; text rarely passes 20
_RATIO_GRACE_BYTES = 64 << 20  # less than this is harmless at any ratio
_REPORT_LINES = 2048


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


def read_lines(file: Path, meter: ProgressMeter) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file as (number from 1, line without its end). A name that ends in `.gz` is decompressed.

    Raises DataError with `file:line` for a byte that is not UTF-8, a line over 64 MiB, a damaged or truncated archive
    and one that grows beyond all measure when decompressed.
    """
    with open(file, "rb") as raw:
        stream: IO[bytes] = gzip.GzipFile(fileobj=raw, mode="rb") if file.suffix == ".gz" else raw
        size = 0
        number = 0
        while line := _read_line(stream, file, number + 1):
            number += 1
            size += len(line)
            _check_size(size, raw, file, number)
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise DataError(
                    f"{file}:{number}: byte 0x{byte:02x} at position {error.start + 1} of the line is not UTF-8;"
                    " convert the file to UTF-8"
                ) from None
            yield number, text.rstrip("\r\n")
            if number % _REPORT_LINES == 0:
                meter.at(raw.tell())
    meter.finish(file)


def _read_line(stream: IO[bytes], file: Path, number: int) -> bytes:
    try:
        line = stream.readline(MAX_LINE_BYTES + 1)
    except EOFError:
        raise DataError(f"{file}:{number}: the archive ends too early, it is truncated; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file}:{number}: damaged gzip archive ({error}); fetch it again") from None
    if len(line) > MAX_LINE_BYTES:
        raise DataError(
            f"{file}:{number}: line longer than {MAX_LINE_BYTES >> 20} MiB; one instance a line is expected"
        )
    return line


def _check_size(size: int, raw: IO[bytes], file: Path, number: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{file}:{number}: more than {MAX_FILE_BYTES >> 30} GiB of text; split the file")
    if size > _RATIO_GRACE_BYTES and size > MAX_RATIO * max(raw.tell(), 1):
        raise DataError(
            f"{file}:{number}: decompresses to over {MAX_RATIO} times its size, which no text does; decompress it"
            " yourself if it is to be trusted"
        )


def read_objects(file: Path, meter: ProgressMeter) -> Iterator[tuple[str, dict]]:
    """The JSON objects of a file, one a line, each with its place. Blank lines are skipped."""
    for number, line in read_lines(file, meter):
        if line.strip():
            yield f"{file}:{number}", _parse_object(line, f"{file}:{number}")


def _parse_object(line: str, where: str) -> dict:
    """A line as a JSON object. Raises DataError when it is not one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: invalid JSON ({error}); one JSON object a line is expected") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, but one JSON object a line is expected")
    return value
