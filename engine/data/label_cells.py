"""Labels in one cell of a table: a list, a number, or names with a delimiter between them that is given or found."""

import ast
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from engine.data.store import InstanceError

DELIMITERS = (";", "|", "\t", ",")  # the first that occurs: what stands further back may be part of a name
LIST = "list"  # cells that hold a list as JSON or Python writes it
_MAX_LITERAL = 1 << 20  # characters; Python needs hundreds of bytes for one


def find_delimiter(cells: Iterable[str]) -> str:
    """What stands between the labels in these cells: one of DELIMITERS, a space, LIST, or "" for nothing.

    A space is a delimiter only between words with a digit, such as ids: other names may have several words.
    """
    cells = [cell.strip() for cell in cells if cell.strip()]
    if cells and all(cell[0] == "[" and cell[-1] == "]" for cell in cells):
        return LIST
    for delimiter in DELIMITERS:
        if any(delimiter in cell for cell in cells):
            return delimiter
    words = [word for cell in cells for word in cell.split()]
    if len(words) > len(cells) and all(any(c.isdigit() for c in word) for word in words):
        return " "
    return ""


def splitter(delimiter: str) -> Callable[[str], list]:
    """A function that takes a cell apart. Names are stripped of white space, empty ones are left out."""
    if delimiter == LIST:
        return _parse_list
    if not delimiter:
        return lambda cell: [cell.strip()] if cell.strip() else []
    return lambda cell: [part for part in map(str.strip, cell.split(delimiter)) if part]


def _parse_list(cell: str) -> list:
    if not cell.strip():
        return []
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(cell.strip()) if len(cell) < _MAX_LITERAL else None
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = None
    if not isinstance(value, list):
        raise InstanceError("wrong labels", "the labels are not a list, but those of the first rows are")
    return value


def label_names(value: Any, split: Callable[[str], list]) -> list[str]:
    """Names of the labels in `value`: text for `split`, a list of names and whole numbers, one number, or nothing.

    Raises InstanceError for anything else.
    """
    if isinstance(value, str):
        value = split(value)
    if isinstance(value, list):
        if all(type(label) is str for label in value):
            return value if all(value) else [label for label in value if label]
        return [name for name in map(_name, value) if name]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    return [_name(value)]


def _name(label: Any) -> str:
    if isinstance(label, str):
        return label
    if isinstance(label, int) and not isinstance(label, bool):
        return str(label)
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    shown = repr(label)
    shown = shown if len(shown) < 40 else shown[:39] + "…"
    raise InstanceError("wrong labels", f"{shown} is no label; names, whole numbers and lists of them are")
