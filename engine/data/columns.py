"""What an importer would find in files, before it is asked to: their layout; of a table the columns and first rows."""

import csv
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

from engine.data.csv_header import find_header
from engine.data.importers import find_layout
from engine.data.parquet_pages import column_pages
from engine.data.problems import Problems
from engine.data.sourcefiles import MAX_LINE_BYTES, ProgressMeter, read_lines, read_objects
from engine.data.table_readers import TableColumns
from engine.data.tables import Tables, kind_of
from engine.errors import DataError

_SHOWN_CHARACTERS = 300  # of a cell


def look_at(source: Path | str, format: str | None = None, rows: int = 5) -> dict[str, Any]:
    """What `source`, a file or folder, holds; JSON-ready. format: see `import_dataset`.

    `format`, and `splits` with the file name of each; of tables also `columns` and `rows`, the first ones as text, cut
    short; of other layouts, whose columns are known, both are empty.

    Raises DataError when the layout is unknown, or the first rows cannot be read.
    """
    layout = find_layout(Path(source), format, TableColumns())
    columns: list[str] = []
    first: list[list[str]] = []
    if isinstance(layout, Tables):
        kind, file = layout.format, layout.splits["train"]
        look = {"parquet": _parquet, "jsonl": _json_lines}.get(kind_of(file) or kind, _csv)
        with closing(look(file)) as read:
            columns, *first = islice(read, rows + 1)
    return {
        "format": layout.format,
        "splits": {split: file.name for split, file in layout.splits.items()},
        "columns": columns,
        "rows": [[_shown(cell) for cell in row] for row in first],
    }


def _csv(file: Path) -> Iterator[list[Any]]:
    """The header, divided by what makes most columns of it; then the rows that have as many cells."""
    lines = (line for _, line, _ in read_lines(file, ProgressMeter(None, []), Problems()))
    first = next((line for line in lines if not line.isspace()), None)
    if first is None:
        raise DataError(f"{file}: empty file, not even a header")
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        separator, header = find_header(file, first)
        for row in csv.reader(chain([first], lines), delimiter=separator):
            if len(row) == len(header):
                yield row
    except csv.Error as error:
        raise DataError(f"{file}:1: the first rows are no CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)


def _json_lines(file: Path) -> Iterator[list[Any]]:
    """The keys of the first object; then the values of this and the next ones under them."""
    objects = (row for _, row in read_objects(file, ProgressMeter(None, []), Problems()))
    first = next(objects, None)
    if first is None:
        raise DataError(f"{file}: no JSON object in it; one a line is expected")
    yield list(first)
    for row in chain([first], objects):
        yield [row.get(key) for key in first]


def _parquet(file: Path) -> Iterator[list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as table:
            column_pages(file, table.schema_arrow.names)
            yield table.schema_arrow.names
            for batch in table.iter_batches(16, use_threads=False):
                yield from map(list, zip(*(column.to_pylist() for column in batch.columns), strict=True))
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise DataError(f"{file}: not readable as Parquet ({str(error).splitlines()[0]})") from None


def _shown(cell: Any) -> str:
    text = "" if cell is None else cell if isinstance(cell, str) else str(cell)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
