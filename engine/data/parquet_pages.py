"""What the pages of a Parquet file are like, read from footer and headers before anything is unpacked.

A page is unpacked in one piece, whatever stands in it: a file of a few kilobytes can hold one of gigabytes. Writers
make pages of about a megabyte, DuckDB's of up to a hundred; pyarrow's have a thousand texts, however long these are.
Footer and headers are Thrift structures in the compact protocol (parquet-format, parquet.thrift). pyarrow has the
footer, too, but some damages of it end the process there.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.errors import DataError

MOST_PAGE_BYTES = 256 << 20  # unpacking takes up to five times that
_DEEPEST = 12  # structures and lists in each other
_LONGEST = 1 << 16  # bytes of a name; longer texts are skipped
# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _, _STRUCT = range(1, 13)
_DICTIONARY_PAGE = 2
_BY_DICTIONARY = (2, 8)  # encodings: numbers of texts in the dictionary


@dataclass
class Pages:
    """Of one column. largest: bytes of a page, packed or unpacked · dictionary: of the largest dictionary.

    is_mixed: whether there are texts that no dictionary has.
    """

    largest: int = 0
    dictionary: int = 0
    is_mixed: bool = False


def column_pages(file: Path, columns: Collection[str]) -> dict[str, Pages]:
    """The pages of these columns and what is in them, by path.

    Raises DataError when a page is too large, ValueError when the file is no Parquet file.
    """
    found: dict[str, Pages] = {}
    try:
        with open(file, "rb") as stream:
            for group in _footer(stream)[4]:
                for chunk in (column[3] for column in group[1]):
                    path = b".".join(chunk[3]).decode()
                    if any(f"{path}.".startswith(f"{column}.") for column in columns):
                        _add(found.setdefault(path, Pages()), stream, chunk)
                        _check_size(file, found[path].largest)
    except (KeyError, TypeError, OverflowError) as error:  # a field that is not there, or is of another type
        raise ValueError(f"a footer or a page header without what it has to have: {error}") from None
    return found


def _check_size(file: Path, largest: int) -> None:
    if largest > MOST_PAGE_BYTES:
        raise DataError(
            f"{file}: a page of {largest >> 20:,} MiB, more than the {MOST_PAGE_BYTES >> 20} MiB that are unpacked"
            " together; write the file again with smaller pages and no row of that size"
        )


def _footer(stream: IO[bytes]) -> dict[int, Any]:
    stream.seek(-8, 2)
    size = int.from_bytes(stream.read(4), "little")
    stream.seek(-8 - size, 2)
    return _struct(stream)


def _add(pages: Pages, stream: IO[bytes], chunk: dict[int, Any]) -> None:
    """chunk: ColumnMetaData. Adds its pages, which stand one behind the other."""
    place = min(chunk[field] for field in (9, 11) if chunk.get(field))
    end = place + chunk[7]
    while place < end:
        stream.seek(place)
        header = _struct(stream)
        unpacked, packed = header[2], header[3]
        if min(unpacked, packed) < 0:
            raise ValueError(f"the page at byte {place} has no size")
        pages.largest = max(pages.largest, unpacked, packed)
        if header[1] == _DICTIONARY_PAGE:
            pages.dictionary = max(pages.dictionary, unpacked)
        else:
            encoding = header[5][2] if 5 in header else header[8][4]
            pages.is_mixed |= encoding not in _BY_DICTIONARY
        place = stream.tell() + packed


def _struct(stream: IO[bytes], depth: int = 0) -> dict[int, Any]:
    """The fields of a structure by their numbers; truth values and long texts are left out."""
    return dict(_fields(stream, depth))


def _fields(stream: IO[bytes], depth: int) -> Iterator[tuple[int, Any]]:
    field = 0
    while head := _byte(stream):
        field = field + (head >> 4) if head >> 4 else _number(stream)
        if head & 15 not in (_TRUE, _FALSE):
            value = _value(stream, head & 15, depth)
            if value is not None:
                yield field, value


def _value(stream: IO[bytes], kind: int, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError("structures in structures without end")
    if kind in (_TRUE, _FALSE, _BYTE):  # a truth value is a byte where it is in a list
        return _byte(stream)
    if kind in (_I16, _I32, _I64):
        return _number(stream)
    if kind == _DOUBLE:
        return stream.read(8)
    if kind == _BINARY:
        size = _varint(stream)
        return stream.read(size) if size <= _LONGEST else stream.seek(size, 1) and None
    if kind in (_LIST, _SET):
        head = _byte(stream)
        return [_value(stream, head & 15, depth + 1) for _ in range(head >> 4 if head >> 4 < 15 else _varint(stream))]
    if kind == _STRUCT:
        return _struct(stream, depth + 1)
    raise ValueError("something that neither a footer nor a page header has")


def _byte(stream: IO[bytes]) -> int:
    found = stream.read(1)
    if not found:
        raise ValueError("a footer or a page header ends behind the file")
    return found[0]


def _varint(stream: IO[bytes]) -> int:
    """A whole number from 0, seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 64, 7):
        part = _byte(stream)
        value |= (part & 127) << shift
        if part < 128:
            return value
    raise ValueError("a number without end")


def _number(stream: IO[bytes]) -> int:
    """A whole number, whose lowest bit is the sign."""
    value = _varint(stream)
    return value >> 1 ^ -(value & 1)
