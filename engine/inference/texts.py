"""Streams of texts to predict from: .txt (a text a line), .jsonl (a "text" field), .csv (a "text" column).

One line at a time is in memory. Every error names file and line.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from engine.data.csv_header import find_header
from engine.data.sourcefiles import shown
from engine.errors import DataError
from engine.words import counted

LONGEST_LINE = 64 * 2**20  # bytes
SUFFIXES = (".txt", ".jsonl", ".csv")


def read_texts(source: str, column: str = "text") -> Iterator[str]:
    """Texts of a file, or of standard input (one a line) where source is "-". column: of .jsonl and .csv.

    Raises DataError for a file that is not there, another ending, bytes that are not UTF-8, an empty text.
    """
    if source == "-":
        yield from _plain(_lines(sys.stdin.buffer, "standard input"), "standard input")
        return
    path = Path(source)
    readers = {".txt": _plain, ".jsonl": _json, ".csv": _csv}
    if path.suffix not in readers:
        raise DataError(f"{path}: cannot read {path.suffix or 'a file without an ending'}; use {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as stream:
        lines = _lines(stream, str(path))
        yield from _plain(lines, str(path)) if path.suffix == ".txt" else readers[path.suffix](lines, str(path), column)


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(raw) > LONGEST_LINE:
            raise DataError(f"{name}:{number}: line longer than {LONGEST_LINE // 2**20} MiB; split the text")
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            bad = raw[error.start]
            raise DataError(f"{name}:{number}: byte 0x{bad:02x} is not UTF-8; convert the file to UTF-8") from error


def _plain(lines: Iterator[tuple[int, str]], name: str) -> Iterator[str]:
    for number, line in lines:
        yield _not_empty(line.strip(), name, number)


def _json(lines: Iterator[tuple[int, str]], name: str, column: str) -> Iterator[str]:
    for number, line in lines:
        try:
            text = json.loads(line)[column]
        except json.JSONDecodeError as error:
            raise DataError(f"{name}:{number}: not JSON ({error.msg})") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
            raise DataError(f"{name}:{number}: JSON that no program made; mend or remove the line") from error
        except (KeyError, TypeError) as error:
            raise DataError(f"{name}:{number}: no field {column!r}; name it with --column") from error
        yield _not_empty(text, name, number)


def _csv(lines: Iterator[tuple[int, str]], name: str, column: str) -> Iterator[str]:
    at, size = 1, 0

    def tracked() -> Iterator[str]:
        nonlocal at, size
        for number, line in lines:
            at, size = number, size + len(line)
            if size > LONGEST_LINE:
                raise csv.Error(f"a row of more than {LONGEST_LINE // 2**20} MiB")
            yield line

    rows = tracked()
    limit = csv.field_size_limit(LONGEST_LINE)  # of the whole process: put back at the end
    try:
        first = next((line for line in rows if not line.isspace()), "")
        separator, header = find_header(Path(name), first, lambda header: column in header)
        if column not in header:
            raise DataError(f"{name}:{at}: no column {column!r} among {shown(header)}; name it with --column")
        place, size = header.index(column), 0
        reader = csv.reader(chain([first], rows), delimiter=separator, strict=True)
        next(reader)
        for row in reader:
            size = 0
            if row and len(row) != len(header):
                raise DataError(
                    f"{name}:{at}: {counted(len(row), 'cell')}, but the header has {len(header)}; put quotes around a "
                    "text that holds the separator"
                )
            if row:
                yield _not_empty(row[place], name, at)
    except csv.Error as error:
        raise DataError(f"{name}:{at}: {str(error).split(' - ')[0]}; mend the line") from error
    finally:
        csv.field_size_limit(limit)


def _not_empty(text: object, name: str, number: int) -> str:
    if not isinstance(text, str):
        raise DataError(f"{name}:{number}: {type(text).__name__} where a text should be")
    if not text.strip():
        raise DataError(f"{name}:{number}: empty text; there is nothing to predict from")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name}:{number}: half a character (a lone surrogate); mend or remove the line") from error
    return text
