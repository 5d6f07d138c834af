"""Texts that are labels themselves, and are hardly ever given themselves.

Where labels are texts of the same kind as the instances (products also bought, verses that are referred to, articles
that are linked), the label most like a text is the text itself. The benchmarks bring lists of such pairs, which leave
the predictions before these are cut to k (engine.data.filters). Where a source brings none, they are found here: an
instance and a label have the same text, or the same behind the label's name. They count if many training texts are
labels and the training data say that almost no text has itself.
"""

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from engine.data.arrays import ragged_positions
from engine.data.filters import filter_sets
from engine.data.label_sets import LabelSets
from engine.data.manifest import LABELS_FILE, open_parquet, split_files

FEWEST = 0.1  # of the training texts are labels
MOST_TRUE = 0.05  # of these have themselves
_READ_ROWS = 1 << 14  # texts decoded at a time


def find_own_labels(folder: Path, labels: Mapping[str, LabelSets]) -> dict[str, LabelSets]:
    """The pairs of each split as a set of labels for each instance; empty where there is nothing to take out.

    folder: of a dataset, complete but for its manifest · labels: of each split.
    """
    hash_M, label_M = _label_hashes(folder / LABELS_FILE)
    if not len(hash_M):
        return {}
    found: dict[str, LabelSets] = {}
    for split, sets in sorted(labels.items(), reverse=True):  # train first: it decides
        found[split] = _pairs(folder / split_files(split)[0], len(sets), hash_M, label_M)
        if split == "train" and not _are_taken_out(found[split], sets):
            return {}
    return found


def _are_taken_out(pairs: LabelSets, labels: LabelSets) -> bool:
    rows = np.flatnonzero(pairs.sizes())
    if len(rows) < FEWEST * len(labels):
        return False
    true = 0
    for some in np.array_split(rows, -(-len(rows) // _READ_ROWS)):
        own = pairs.select(some)
        row = np.repeat(some, own.sizes())
        true += int(labels.select(row).contains(own.ids[:, None]).sum())
    return true <= MOST_TRUE * len(rows)


def _pairs(file: Path, instances: int, hash_M: np.ndarray, label_M: np.ndarray) -> LabelSets:
    rows, labels, start = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], 0
    for texts in _columns(file, ["text"]):
        hash_B = np.array([_hash(text) for (text,) in texts], dtype=np.uint64)
        first = np.searchsorted(hash_M, hash_B)
        count = np.searchsorted(hash_M, hash_B, side="right") - first
        rows.append(np.repeat(np.arange(start, start + len(texts)), count))
        labels.append(label_M[ragged_positions(first, count)])
        start += len(texts)
    return filter_sets(np.concatenate(rows), np.concatenate(labels), np.arange(instances))


def _label_hashes(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the texts of labels, uint64 ascending, the labels they are of, int64)."""
    hashes, labels, start = array("Q"), array("q"), 0
    for part in _columns(file, ["name", "text"]):
        for label, (name, text) in enumerate(part, start):
            if text and not text.isspace():
                forms = {_hash(text)}
                if text.startswith(f"{name}. "):
                    forms.add(_hash(text[len(name) + 2 :]))
                hashes.extend(forms)
                labels.extend([label] * len(forms))
        start += len(part)
    hash_M, label_M = np.frombuffer(hashes, np.uint64), np.frombuffer(labels, np.int64)
    order = np.argsort(hash_M, kind="stable")
    return hash_M[order], label_M[order]


def _columns(file: Path, columns: list[str]) -> Iterator[list[tuple]]:
    """Rows of a table, some at a time."""
    with open_parquet(file) as table:
        for batch in table.iter_batches(_READ_ROWS, columns=columns, use_threads=False):
            yield list(zip(*(batch.column(name).to_pylist() for name in columns), strict=True))


def _hash(text: str) -> int:
    """Of the words of a text; what stands between them does not matter."""
    words = " ".join(text.split()).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
