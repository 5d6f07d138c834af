"""What separates the columns of a CSV file, found in its first line, and the names of the columns.

Every reader of CSV asks here, so that a file which is imported is read the same way when its texts get labels.
"""

import csv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SEPARATORS = (",", ";", "\t", "|")
Fits = Callable[[list[str]], bool]


def find_header(file: Path, line: str, fits: Fits | None = None) -> tuple[str, list[str]]:
    """(the separator, the names of the columns) of a CSV file. line: its first that is not blank.

    fits: whether a header has the columns that are needed. The first separator that makes such a header is taken, what
    the file's ending says before the others; where none does, or nothing is needed, the one that makes most columns.
    Raises csv.Error when the line is no CSV with any.
    """
    usual = "\t" if ".tsv" in file.suffixes else ","
    headers: dict[str, list[str]] = {}
    for separator in (usual, *SEPARATORS):
        with suppress(csv.Error):
            headers[separator] = next(csv.reader([line], delimiter=separator, strict=True))
    if not headers:
        return usual, next(csv.reader([line], delimiter=usual, strict=True))
    fitting = (separator for separator, header in headers.items() if fits and fits(header))
    separator = next(fitting, None) or max(headers, key=lambda each: len(headers[each]))
    return separator, headers[separator]
