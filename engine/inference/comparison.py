"""The baselines on a dataset's test split, so that a table shows what the model is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from engine.data.store import Dataset
from engine.inference.baselines import most_frequent, tfidf_neighbours
from engine.inference.filtering import extra_width, filtered
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
    test, frequency = dataset.test, dataset.label_frequency()
    width = min(k + extra_width(test.filter, np.arange(len(test))), dataset.n_labels)

    def score(chunks: Iterator[np.ndarray]) -> dict[str, float]:
        """Of predictions int [b, width] of all test texts in order."""
        metrics, start = new_metrics(), 0
        for ids in filtered(chunks, test.filter, k):
            chosen = test.labels.select(np.arange(start, start + len(ids)))
            metrics.update(ids, chosen.offsets, chosen.ids)
            start += len(ids)
        return metrics.result() | ({} if test.filter is None else {"filtered_pairs": len(test.filter.ids)})

    same = most_frequent(frequency, width, len(test))
    found = {"most frequent labels": score(same[first : first + CHUNK] for first in range(0, len(test), CHUNK))}
    if len(dataset.train) > MOST_TEXTS:
        say(f"no nearest-neighbour baseline: more than {MOST_TEXTS:,} training texts")
        return found
    with stage("TF-IDF neighbours", "texts") as update:

        def report(what: str, done: int) -> None:
            """Reading the training texts comes first, then the choice of the settings, then the test texts."""
            train, all_texts = len(dataset.train), len(dataset.train) + len(test)
            update({"reading training texts": 0, "comparing test texts": train}.get(what, train) + done, all_texts)

        found["TF-IDF neighbours"] = score(
            tfidf_neighbours(
                dataset.train.texts(),
                dataset.train.labels,
                test.texts(),
                dataset.n_labels,
                width,
                progress=report,
            )
        )
    return found
