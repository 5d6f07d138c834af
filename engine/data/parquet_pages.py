"""Sizes of the pages of a Parquet file, read from their headers before anything is unpacked.

A page is unpacked in one piece, whatever stands in it: a file of a few kilobytes can hold one of gigabytes. Writers
make pages of about a megabyte, DuckDB's of up to a hundred; pyarrow's have a thousand texts, however long these are.
Headers are Thrift structures in the compact protocol (parquet-format, PageHeader). Of their fields only two sizes are of
interest, the others are skipped.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from engine.errors import DataError

MOST_PAGE_BYTES = 256 << 20  # unpacking takes up to five times that
_DEEPEST = 8  # structures in structures
# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _, _STRUCT = range(1, 13)
_UNCOMPRESSED, _COMPRESSED = 2, 3  # fields of a PageHeader


def check_pages(file: Path, metadata: Any, columns: Collection[str]) -> None:
    """Raises DataError when a page of one of the columns is too large, ValueError when its header is none.

    metadata: `pyarrow.parquet.FileMetaData` of the file.
    """
    with open(file, "rb") as stream:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                if any(f"{chunk.path_in_schema}.".startswith(f"{column}.") for column in columns):
                    largest = max(_page_sizes(stream, chunk), default=0)
                    if largest > MOST_PAGE_BYTES:
                        raise DataError(
                            f"{file}: a page of {largest >> 20:,} MiB, more than the {MOST_PAGE_BYTES >> 20} MiB that"
                            " are unpacked together; write the file again with smaller pages and no row of that size"
                        )


def _page_sizes(stream: IO[bytes], chunk: Any) -> Iterator[int]:
    """Bytes of each page, packed or unpacked, whatever is more. chunk: `pyarrow.parquet.ColumnChunkMetaData`."""
    place = min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset is not None)
    end = place + chunk.total_compressed_size
    while place < end:
        stream.seek(place)
        fields = _struct(stream)
        sizes = [fields.get(_UNCOMPRESSED, -1), fields.get(_COMPRESSED, -1)]
        if min(sizes) < 0:
            raise ValueError(f"the page at byte {place} has no size")
        yield max(sizes)
        place = stream.tell() + sizes[1]


def _struct(stream: IO[bytes], depth: int = 0) -> dict[int, int]:
    """The whole numbers of a structure by their fields; everything else is skipped."""
    found: dict[int, int] = {}
    field = 0
    while head := _byte(stream):
        field = field + (head >> 4) if head >> 4 else _number(stream)
        kind = head & 15
        if kind in (_I16, _I32, _I64):
            found[field] = _number(stream)
        elif kind not in (_TRUE, _FALSE):
            _skip(stream, kind, depth)
    return found


def _skip(stream: IO[bytes], kind: int, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("structures in structures without end")
    if kind in (_TRUE, _FALSE, _BYTE):  # a truth value is a byte where it is in a list
        _byte(stream)
    elif kind in (_I16, _I32, _I64):
        _number(stream)
    elif kind == _DOUBLE:
        stream.seek(8, 1)
    elif kind == _BINARY:
        stream.seek(_varint(stream), 1)
    elif kind in (_LIST, _SET):
        head = _byte(stream)
        for _ in range(head >> 4 if head >> 4 < 15 else _varint(stream)):
            _skip(stream, head & 15, depth + 1)
    elif kind == _STRUCT:
        _struct(stream, depth + 1)
    else:
        raise ValueError("a page header with what no page header has")


def _byte(stream: IO[bytes]) -> int:
    found = stream.read(1)
    if not found:
        raise ValueError("a page header ends behind the file")
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
