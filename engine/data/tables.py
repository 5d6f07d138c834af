"""Imports tables with a text column and a labels column: `.csv`, `.tsv` and `.jsonl` files.

Labels are names, in one cell with a delimiter between them (`"sports;politics"`) or, in JSON lines, as a list.
A label's id is the order of its first appearance. Without a test file, 10 % of the texts become the test set.
"""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.data.manifest import file_digest
from engine.data.sourcefiles import MAX_LINE_BYTES, Progress, ProgressMeter, read_lines, read_objects
from engine.data.store import Dataset, DatasetWriter
from engine.errors import DataError

_KINDS = (".csv", ".tsv", ".jsonl")
_HELD_OUT = 0.1


@dataclass(frozen=True)
class TableColumns:
    """Which column of a table holds what.

    delimiter: between the labels in a cell.
    uid: used where a table has it; otherwise an instance is identified by the number of its row.
    seed: decides which texts are held out where there is no test file.
    """

    text: str = "text"
    labels: str = "labels"
    delimiter: str = ";"
    uid: str = "uid"
    seed: int = 0


def find_tables(source: Path) -> dict[str, Path]:
    """The tables of a source by split: `train` and perhaps `test`. Empty when it is no table or folder of tables."""
    if source.is_file():
        return {"train": source} if _kind(source) else {}
    tables: dict[str, Path] = {}
    for split in ("train", "test"):
        candidates = (source / f"{split}{kind}{packed}" for kind in _KINDS for packed in ("", ".gz"))
        if file := next((file for file in candidates if file.is_file()), None):
            tables[split] = file
    return tables if "train" in tables else {}


def import_tables(
    tables: dict[str, Path],
    output: Path | str,
    name: str,
    columns: TableColumns,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Imports the tables of `find_tables`. Texts that are equal never stand on both sides of a held-out split.

    Raises DataError, with file:line where there is one, for a missing column, a malformed row and an empty text.
    """
    meter = ProgressMeter(progress, list(tables.values()))
    sources = {file.name: f"sha256:{file_digest(file)}" for file in tables.values()}
    ids: dict[str, int] = {}
    with DatasetWriter(output, name, sources, overwrite) as writer:
        for split, file in tables.items():
            for row, (where, uid, text, labels) in enumerate(_read_table(file, columns, meter)):
                held_out = len(tables) == 1 and _is_held_out(text, columns.seed)
                label_ids = [ids.setdefault(label, len(ids)) for label in labels]
                writer.add("test" if held_out else split, uid or str(row), text, label_ids, where)
        return writer.finish(ids)


def _kind(file: Path) -> str | None:
    """`.csv`, `.tsv` or `.jsonl` with a possible `.gz` left out; None for any other file."""
    kind = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    return kind if kind in _KINDS else None


def _is_held_out(text: str, seed: int) -> bool:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8, salt=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little") < _HELD_OUT * 2**64


def _read_table(file: Path, columns: TableColumns, meter: ProgressMeter) -> Iterator[tuple[str, str, str, list[str]]]:
    """Rows as (place, uid or "", text, label names)."""
    rows = read_objects(file, meter) if _kind(file) == ".jsonl" else _read_csv(file, columns, meter)
    for where, row in rows:
        for column in (columns.text, columns.labels):
            if row.get(column) is None:
                raise DataError(f"{where}: no column {column!r}; found {', '.join(map(repr, row))}")
        text = row[columns.text]
        if not isinstance(text, str):
            raise DataError(f"{where}: {columns.text!r} is {type(text).__name__}, not a string")
        labels = row[columns.labels]
        if isinstance(labels, str):
            labels = [part.strip() for part in labels.split(columns.delimiter)]
        if not isinstance(labels, list) or not all(isinstance(label, str | int) for label in labels):
            raise DataError(f"{where}: {columns.labels!r} is neither a string nor a list of strings")
        uid = row.get(columns.uid)
        yield where, "" if uid is None else str(uid), text.strip(), [str(label) for label in labels if label != ""]


def _read_csv(file: Path, columns: TableColumns, meter: ProgressMeter) -> Iterator[tuple[str, dict]]:
    lines = (line + "\n" for _, line in read_lines(file, meter))
    reader = csv.reader(lines, delimiter="\t" if _kind(file) == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    limit = csv.field_size_limit(MAX_LINE_BYTES)  # of the whole process: put back at the end
    try:
        while True:
            first_line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                break
            if not row:
                continue
            if header is None:
                header = row
                missing = [column for column in (columns.text, columns.labels) if column not in header]
                if missing:
                    raise DataError(
                        f"{file}:1: no column {missing[0]!r}; found {', '.join(map(repr, header))}; name the columns"
                        " that hold the text and the labels"
                    )
            elif len(row) != len(header):
                raise DataError(f"{file}:{first_line}: {len(row)} cells, but the header has {len(header)}")
            else:
                yield f"{file}:{first_line}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}:{first_line}: malformed row ({error})") from None
    finally:
        csv.field_size_limit(limit)
