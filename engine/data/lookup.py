"""Which texts have a label: found in the files of a dataset without reading them into memory."""

from pathlib import Path

import numpy as np

from engine.data.label_sets import LabelSets
from engine.data.manifest import LABELS_FILE, open_parquet
from engine.data.store import Dataset, Split

BLOCK = 1 << 22  # label ids looked at together


def instances_with(sets: LabelSets, label: int, most: int, block: int = BLOCK) -> list[int]:
    """The first instances that have the label, at most `most`, ascending. Streams the ids until it has them."""
    found: list[int] = []
    for start in range(0, len(sets.ids), block):
        places = np.flatnonzero(sets.ids[start : start + block] == label)[: most - len(found)] + start
        found += (np.searchsorted(sets.offsets, places, side="right") - 1).tolist()
        if len(found) == most:
            break
    return found


def texts_with(split: Split, label: int, most: int) -> list[str]:
    """The texts of those instances."""
    return [next(split.texts(i, i + 1)) for i in instances_with(split.labels, label, most)]


def label_name(dataset: Dataset, label: int) -> str | None:
    """The name of one label; None for an id that the dataset does not have."""
    return _value(dataset.path / LABELS_FILE, "name", label)


def _value(file: Path, column: str, row: int) -> str | None:
    with open_parquet(file) as parquet:
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if 0 <= row < rows:
                return parquet.read_row_group(group, columns=[column]).column(0)[row].as_py()
            row -= rows
    return None
