"""What is in a dataset: counts, frequencies of labels, lengths of texts, and what may be wrong with it. Streams."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from engine.data.manifest import LABELS_FILE, open_parquet
from engine.data.propensity import inverse_propensity
from engine.data.store import Dataset, Split

_EXAMPLES = 5
_CURVE_POINTS = 300
_SHOWN_LABELS = 12  # of a sample
_SHOWN_CHARACTERS = 300  # of a sample


def inspect(dataset: Dataset, samples: int = 3, a: float = 0.55, b: float = 1.5) -> dict[str, Any]:
    """A report that JSON can hold.

    samples: how many rows of each split are shown, evenly spaced.  a, b: of the propensity model (see
    `engine.data.propensity`).

    `splits` has the counts of each split, `frequency` how often labels occur in training, `overlap` the test texts
    that are training texts too. A histogram is a list of (lowest, highest, count) in powers of two;
    `frequency["curve"]` are (rank, frequency) of labels that occur, at ranks even on a logarithmic axis.
    """
    splits = {split.name: split for split in (dataset.train, dataset.test) if split is not None}
    hashes = {name: np.empty(len(split), dtype=np.int64) for name, split in splits.items()}
    report: dict[str, Any] = {"name": dataset.name, "path": str(dataset.path), "labels": dataset.n_labels}
    report["splits"] = {name: _split(split, hashes[name]) for name, split in splits.items()}
    frequency = dataset.label_frequency()
    tested = dataset.test.labels.counts(dataset.n_labels) if dataset.test is not None else np.zeros_like(frequency)
    only_tested = np.flatnonzero((frequency == 0) & (tested > 0))
    most = np.argsort(-frequency, kind="stable")[:_EXAMPLES]
    rows = {name: np.unique(np.linspace(0, len(split) - 1, samples).astype(int)) for name, split in splits.items()}
    shown = [splits[name].labels.row(i)[:_SHOWN_LABELS] for name in splits for i in rows[name].tolist()]
    names = _names(
        dataset, {*most.tolist(), *only_tested[:_EXAMPLES].tolist(), *(i for r in shown for i in r.tolist())}
    )
    report["frequency"] = {
        "never": int(np.count_nonzero(frequency == 0)),
        "once": int(np.count_nonzero(frequency == 1)),
        "highest": int(frequency.max(initial=0)),
        "most_frequent": [[names[label], int(frequency[label])] for label in most.tolist()],
        "histogram": histogram(frequency),
        "curve": _curve(frequency),
    }
    report["only_in_test"] = {
        "labels": len(only_tested),
        "examples": [names[label] for label in only_tested[:_EXAMPLES].tolist()],
    }
    report["nowhere"] = int(np.count_nonzero((frequency == 0) & (tested == 0)))
    report["overlap"] = int(np.isin(hashes["test"], hashes["train"]).sum()) if "test" in hashes else 0
    report["propensity"] = _propensity(frequency, len(dataset.train), a, b)
    report["samples"] = [_sample(splits[name], i, names) for name in splits for i in rows[name].tolist()]
    return report


def histogram(values: np.ndarray) -> list[list[int]]:
    """How many of `values`, whole numbers from 0, are 0, 1, 2-3, 4-7, ...: (lowest, highest, count) of each."""
    bins = np.bincount(np.frexp(values)[1]) if len(values) else []
    return [[0 if i == 0 else 2 ** (i - 1), 2**i - 1, int(count)] for i, count in enumerate(bins)]


def _curve(frequency: np.ndarray) -> list[list[int]]:
    """(rank, frequency) of at most _CURVE_POINTS labels that occur, the most frequent first."""
    falling = -np.sort(-frequency[frequency > 0])
    ranks = np.unique(np.geomspace(1, max(len(falling), 1), _CURVE_POINTS).round().astype(np.int64))
    return [[rank, int(falling[rank - 1])] for rank in ranks.tolist() if rank <= len(falling)]


def _split(split: Split, hashes: np.ndarray) -> dict[str, Any]:
    """Counts of a split. The hash of every text goes to `hashes` int64 [N]: two equal ones are two equal texts."""
    characters = np.empty(len(split), dtype=np.int64)
    for i, text in enumerate(split.texts()):
        characters[i] = len(text)
        hashes[i] = hash(text)
    sizes = split.labels.sizes()
    return {
        "texts": len(split),
        "without_labels": int(np.count_nonzero(sizes == 0)),
        "repeated_texts": len(split) - len(np.unique(hashes)),
        "positives": int(sizes.sum()),
        "labels_per_text": {"mean": float(sizes.mean()), "highest": int(sizes.max()), "histogram": histogram(sizes)},
        "characters": {
            "lowest": int(characters.min()),
            "median": float(np.median(characters)),
            "highest": int(characters.max()),
            "histogram": histogram(characters),
        },
    }


def _propensity(frequency: np.ndarray, n_train: int, a: float, b: float) -> dict[str, float] | None:
    """How likely labels are to be observed where they hold; of those that occur in training. None without any."""
    seen = frequency[frequency > 0]
    if not len(seen) or n_train < 3:
        return None
    lowest, highest = 1 / inverse_propensity(np.array([seen.min(), seen.max()]), n_train, a, b)
    return {"a": a, "b": b, "lowest": float(lowest), "highest": float(highest)}


def _sample(split: Split, i: int, names: dict[int, str]) -> dict[str, Any]:
    text = next(split.texts(i, i + 1))
    labels = split.labels.row(i)
    return {
        "split": split.name,
        "uid": next(split.uids(i, i + 1)),
        "text": text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…",
        "labels": [names[label] for label in labels[:_SHOWN_LABELS].tolist()],
        "more_labels": max(0, len(labels) - _SHOWN_LABELS),
    }


def _names(dataset: Dataset, labels: Iterable[int]) -> dict[int, str]:
    """Names of some labels, without those of all others in memory."""
    wanted = sorted(labels)
    names: dict[int, str] = {}
    start = 0
    with open_parquet(dataset.path / LABELS_FILE) as file:
        for batch in file.iter_batches(1 << 14, columns=["name"], use_threads=False):
            stop = start + len(batch)
            for label in wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)]:
                names[label] = batch.column(0)[label - start].as_py()
            start = stop
    return names
