"""The texts of labels as training instances: each has that label and no other.

So the benchmarks with label features are trained (Renée's utils/CreateAugData.py puts an identity matrix below the
label matrix; github.com/microsoft/renee). A label's text is the column `text` of labels.parquet; a label without one
gives no instance. Its name is never taken instead: a name may be an identifier that says nothing, and an importer that
knows names to be texts stores them as both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from engine.data.label_sets import LabelSets
from engine.data.manifest import LABELS_FILE, open_parquet
from engine.data.store import Dataset
from engine.errors import ConfigError

_READ_ROWS = 1 << 14  # texts decoded at a time
MOST_ADDED = 0.5  # of the training texts, by themselves


@dataclass(frozen=True)
class LabelTexts:
    """The M labels that have a text, by rising id: what `engine.data.tokens` reads of a split. Texts stay on disk.

    ids: int32 [M].  digest: sha256 of the file.
    """

    ids: np.ndarray
    path: Path
    digest: str
    name: str = "labels"

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Those of a dataset. Raises ConfigError when no label has a text."""
        require_label_texts(dataset)
        path = dataset.path / LABELS_FILE
        ids = [np.array([label for label, _ in part], dtype=np.int32) for part in _parts(path)]
        return cls(np.concatenate(ids), path, dataset.meta["files"][LABELS_FILE]["sha256"])

    def __len__(self) -> int:
        return len(self.ids)

    def texts(self) -> Iterator[str]:
        """The texts, streamed."""
        for part in _parts(self.path):
            for _, text in part:
                yield text

    @cached_property
    def labels(self) -> LabelSets:
        """The label of each text."""
        return LabelSets(np.arange(len(self.ids) + 1, dtype=np.int64), self.ids)


def are_trained_on(dataset: Dataset, augment: bool | str) -> bool:
    """Whether the texts of labels are; auto: where they add at most half to the training texts, or are texts like
    these, as reciprocal filters say."""
    if augment != "auto":
        return bool(augment)
    if dataset.train.filter is not None and len(dataset.train.filter.ids) > 0:
        return _has_texts(dataset)
    found, most = 0, len(dataset.train) * MOST_ADDED
    for part in _parts(dataset.path / LABELS_FILE):
        found += len(part)
        if found > most:
            return False  # without reading the rest, which may be long
    return found > 0


def _has_texts(dataset: Dataset) -> bool:
    """Reads up to the first label that has a text."""
    return any(_parts(dataset.path / LABELS_FILE))


def require_label_texts(dataset: Dataset) -> None:
    """Raises ConfigError when no label of the dataset has a text."""
    if not _has_texts(dataset):
        raise ConfigError(
            f"data.augment_with_labels = true, but no label of {dataset.path} has a text; import label texts (as in "
            "lbl.json), or train without it"
        )


def _parts(path: Path) -> Iterator[list[tuple[int, str]]]:
    """(label id, text) of the labels that have a text, some at a time."""
    start = 0
    with open_parquet(path) as file:
        for batch in file.iter_batches(_READ_ROWS, columns=["text"], use_threads=False):
            texts = batch.column(0).to_pylist()
            yield [(start + n, text) for n, text in enumerate(texts) if text and not text.isspace()]
            start += len(batch)
