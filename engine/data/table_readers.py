"""Rows of tables, one at a time and bounded: CSV and TSV, JSON lines, Parquet.

CSV is read by the standard library's parser: it can say on which line a row begins, goes on behind a malformed one,
and is faster (100,000 rows of 1.4 kB a second on one core) than what comes after it.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.csv_header import find_header
from engine.data.parquet_pages import column_pages
from engine.data.problems import Problems
from engine.data.sourcefiles import MAX_LINE_BYTES, ProgressMeter, read_lines, read_objects, shown
from engine.errors import DataError, reason
from engine.words import counted

_BATCH_ROWS = 256  # of Parquet, decoded together, or
_BATCH_BYTES = 16 << 20  # fewer of long texts
_MOST_UNPACKED = 256 << 20  # bytes, if all rows of a batch were the longest text there may be

Cells = tuple[int, tuple, Any, Any]  # line (from 1), texts, labels, uid (None where there is none)


@dataclass(frozen=True)
class TableColumns:
    """Which column of a table holds what.

    text: one or several that make one text, in this order.
    delimiter: between the labels in a cell; None finds it in the first rows, "" takes a cell as one label.
    uid: used where a table has it; otherwise an instance is identified by the number of its row.
    """

    text: tuple[str, ...] = ("text",)
    labels: str = "labels"
    delimiter: str | None = None
    uid: str = "uid"

    def used(self, header: list[str]) -> list[str]:
        """The columns that are read: texts, labels and, where there is one, identifiers."""
        return [*self.text, self.labels, *([self.uid] if self.uid in header else [])]

    def missing(self, header: list[str]) -> str | None:
        """What to say about the first needed column that `header` does not have."""
        absent = next((column for column in (*self.text, self.labels) if column not in header), None)
        if absent is None:
            return None
        return f"no column {absent!r}; found {shown(header)}; name the columns with --text-column and --labels-column"


def read_csv(file: Path, columns: TableColumns, meter: ProgressMeter, problems: Problems) -> Iterator[Cells]:
    """Rows of a CSV or TSV file; what separates its columns is what makes the header have those that are needed."""
    lines = _Lines(file, meter, problems)
    first = next((line for line in lines if not line.isspace()), None)
    if first is None:
        raise DataError(f"{file}: empty file, not even a header")
    if not lines.whole:
        raise DataError(f"{file}:{lines.number}: the header is too long or not UTF-8; convert the file to UTF-8")
    try:
        separator, header = find_header(file, first, lambda header: columns.missing(header) is None)
    except csv.Error as error:
        reason = str(error).split(" - ")[0]
        raise DataError(f"{file}:{lines.number}: the header is no CSV ({reason}); end lines by LF or CRLF") from None
    if what := columns.missing(header):
        raise DataError(f"{file}:{lines.number}: {what}")
    reader = csv.reader(chain([first], lines), delimiter=separator, strict=True)
    pick = itemgetter(*(header.index(column) for column in columns.text))
    one = len(columns.text) == 1
    labels = header.index(columns.labels)
    uid = header.index(columns.uid) if columns.uid in header else None
    limit = csv.field_size_limit(MAX_LINE_BYTES)  # of the whole process: put back at the end
    try:
        next(reader)
        end = lines.number
        while True:
            begin = end + 1
            lines.size = 0
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                end = lines.number
                reach = f", which reaches to line {end}" if end > begin else ""
                what = str(error).split(" - ")[0]
                problems.add("malformed row", f"{file}:{begin}", f"malformed row ({what}){reach}")
                lines.whole = True
                continue
            end = lines.number
            if not lines.whole:
                lines.whole = True
            elif len(row) == len(header):
                texts = (pick(row),) if one else pick(row)
                yield begin, texts, row[labels], None if uid is None else row[uid]
            elif row:
                what = f"{counted(len(row), 'cell')}, but the header has {len(header)}"
                problems.add("wrong number of cells", f"{file}:{begin}", what)
    finally:
        csv.field_size_limit(limit)


class _Lines:
    """Lines for the CSV parser. number: of the last one.  whole: set to False by a line with a problem.

    size: characters since the reader of the rows set it to 0; a row of too many lines is a csv.Error, after which the
    parser begins again with the next line.
    """

    def __init__(self, file: Path, meter: ProgressMeter, problems: Problems):
        self._lines = read_lines(file, meter, problems)
        self.number = 0
        self.whole = True
        self.size = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        self.number, line, whole = next(self._lines)
        if not whole:
            self.whole = False
        self.size += len(line)
        if self.size > MAX_LINE_BYTES:
            raise csv.Error(f"longer than {MAX_LINE_BYTES >> 20} MiB")
        return line


def read_json_lines(file: Path, columns: TableColumns, meter: ProgressMeter, problems: Problems) -> Iterator[Cells]:
    """Rows of a file of JSON objects, one a line."""
    for line, row in read_objects(file, meter, problems):
        if what := columns.missing(list(row)):
            problems.add("missing column", f"{file}:{line}", what)
        else:
            yield line, tuple(row[column] for column in columns.text), row[columns.labels], row.get(columns.uid)


def read_parquet(file: Path, columns: TableColumns, meter: ProgressMeter, problems: Problems) -> Iterator[Cells]:
    """Rows of a Parquet file; a few hundred are decoded at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            header = table.schema_arrow.names
            if what := columns.missing(header):
                raise DataError(f"{file}: {what}")
            used = list(dict.fromkeys(columns.used(header)))
            pages = column_pages(file, used)
            texts = {
                c.path for c in map(table.schema.column, range(len(table.schema))) if c.physical_type == "BYTE_ARRAY"
            }
        # A text that a file holds once and names in many rows stays one text in memory. Where other texts come behind
        # the dictionary, Arrow would add each of them to it, up to all of a row group: such columns are unpacked.
        unpacked = {path for path, kind in pages.items() if kind.is_mixed and path in used}
        dictionary = max((pages[path].dictionary for path in unpacked), default=0)
        by_dictionary = sorted((texts & pages.keys()) - unpacked)
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, read_dictionary=by_dictionary) as table:
            size, rows, done = file.stat().st_size, max(table.metadata.num_rows, 1), 0
            rows_at_once = _rows_at_once(table.metadata, dictionary)
            for batch in table.iter_batches(rows_at_once, columns=used, use_threads=False):
                yield from cells_of_batch(batch, columns, header, done, file, problems)
                done += len(batch)
                meter.at(size * done // rows)
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise DataError(f"{file}: not readable as Parquet ({reason(error)})") from None
    meter.finish(file)


def _rows_at_once(metadata: Any, dictionary: int) -> int:
    """Fewer where rows are long: what is decoded together stays small. dictionary: bytes that each may stand for."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    widest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return max(min(_BATCH_BYTES // max(widest, 1), _MOST_UNPACKED // max(dictionary, 1), _BATCH_ROWS), 1)


def cells_of_batch(
    batch: Any, columns: TableColumns, header: list[str], done: int, place: Path, problems: Problems
) -> Iterator[Cells]:
    """The rows of an Arrow record batch. done: rows before it.  place: what a message names."""
    used = columns.used(header)
    arrays = {name: batch.column(name) for name in set(used)}
    bounds = sum(_most_bytes(array) for array in arrays.values())
    # Together they are converted faster; a few bytes can stand for many texts, though.
    cells = {name: _values(array) for name, array in arrays.items()} if bounds.sum() <= 4 * _BATCH_BYTES else None
    for i in range(len(batch)):
        where = f"{place}:{done + i + 1}"
        if bounds[i] > MAX_LINE_BYTES:
            problems.add("row too long", where, f"over {MAX_LINE_BYTES >> 20} MiB in one row")
            continue
        values = [cells[name][i] if cells else _value(arrays[name][i]) for name in used]
        if any(isinstance(value, UnicodeDecodeError) for value in values):
            problems.add("not UTF-8", where, "a text of the row is not UTF-8")
            continue
        uid = values[len(columns.text) + 1] if columns.uid in header else None
        yield done + i + 1, tuple(values[: len(columns.text)]), values[len(columns.text)], uid


def _most_bytes(array: Any) -> np.ndarray:
    """float64 [rows]: an upper bound of the bytes of text in each row of a column, 0 for what is no text.

    Raises ValueError where a row names a text that the dictionary does not have, which Arrow takes on trust.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        longest = max(_most_bytes(array.values), default=0.0)
        return _numbers(pc.list_value_length(array)) * longest
    if pa.types.is_dictionary(kind):
        lengths = np.append(_most_bytes(array.dictionary), 0.0)
        lowest, highest = pc.min_max(array.indices).as_py().values()
        if lowest is not None and not 0 <= lowest <= highest < len(array.dictionary):
            raise ValueError("a row names a text that its dictionary does not have")
        return lengths[_numbers(array.indices, missing=-1).astype(np.int64)]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _numbers(pc.binary_length(array))
    return np.zeros(len(array))


def _numbers(array: Any, missing: int = 0) -> np.ndarray:
    """float64 [rows] of an Arrow array of whole numbers."""
    import pyarrow.compute as pc

    return pc.fill_null(array, missing).to_numpy(zero_copy_only=False).astype(np.float64)


def _values(column: Any) -> list:
    """Python values; in place of a string that is not UTF-8, the error."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return error
