"""The baselines on a dataset's test split, so that a table shows what the model is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from engine.data.store import Dataset
from engine.inference.baselines import most_frequent, tfidf_neighbours
from engine.inference.metrics import Metrics

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

MOST_TEXTS = 100_000  # of train; above, finding neighbours would take longer than is worth waiting for
CHUNK = 4096


def compare_baselines(
    dataset: Dataset,
    new_metrics: Callable[[], Metrics],
    k: int,
    stage: Callable[..., AbstractContextManager[Callable[[int, int], None]]],
    say: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """{name: metrics} of the most frequent labels and of TF-IDF nearest neighbours at cut-off k.

    stage: makes a progress display, see Reporter.stage.
    """
    labels, frequency = dataset.test.labels, dataset.label_frequency()
    found = {"most frequent labels": _score(most_frequent(frequency, k, len(labels)), labels, new_metrics())}
    if len(dataset.train) > MOST_TEXTS:
        say(f"no nearest-neighbour baseline: more than {MOST_TEXTS:,} training texts")
        return found
    metrics, start = new_metrics(), 0
    train, test = len(dataset.train), len(dataset.test)
    with stage("TF-IDF neighbours", "texts") as update:

        def report(what: str, done: int) -> None:
            """Reading the training texts comes first, then the choice of the settings, then the test texts."""
            update({"reading training texts": 0, "comparing test texts": train}.get(what, train) + done, train + test)

        for ids in tfidf_neighbours(
            dataset.train.texts(),
            dataset.train.labels,
            dataset.test.texts(),
            dataset.n_labels,
            k,
            progress=report,
        ):
            rows = np.arange(start, start + len(ids))
            chosen = labels.select(rows)
            metrics.update(ids, chosen.offsets, chosen.ids)
            start += len(ids)
    found["TF-IDF neighbours"] = metrics.result()
    return found


def _score(ids: np.ndarray, labels, metrics: Metrics) -> dict[str, float]:
    for start in range(0, len(ids), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(ids)))
        chosen = labels.select(rows)
        metrics.update(ids[rows], chosen.offsets, chosen.ids)
    return metrics.result()
