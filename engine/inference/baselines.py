"""What a trained model has to beat: the most frequent labels, and the labels of the nearest training texts.

The neighbours are found by TF-IDF (scikit-learn): hashed unigrams and bigrams, sublinear term frequency,
cosine similarity. Each of the n most similar training texts votes for its labels with similarity^p. Which n
and p are best differs much between corpora (10 and 1 for dictionary glosses, 50 and 1 for package
descriptions, 100 and 2 for book titles; a wrong choice costs up to a fifth of P@1), so they are chosen for
every corpus by P@1, then P@5, on a sample of its training texts, each asked about with itself left out: the
baseline is tuned, and never sees the test set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

HASH_BUCKETS = 2**20
NEIGHBOURS = (3, 5, 10, 20, 30, 50, 100, 200)
POWERS = (1, 2, 3, 5)
TUNING_SAMPLE = 2000
# Similarities held at once, as sparse (index, value) pairs of 8 bytes: 128 MiB at the most.
SIMILARITIES_PER_CHUNK = 2**24


class LabelSets(Protocol):
    """The labels of n instances as CSR: offsets int64 [n+1], ids int32 [nnz]."""

    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]


def most_frequent(frequency: NDArray[np.integer], k: int, n: int) -> NDArray[np.int32]:
    """The k labels of the highest `frequency` [L] for each of n texts: int32 [n, k], a read-only view of one row.

    Ties go to the lower id; with fewer than k labels the rest is -1.
    """
    order = np.argsort(-np.asarray(frequency, dtype=np.int64), kind="stable")[:k].astype(np.int32)
    return np.broadcast_to(np.pad(order, (0, k - len(order)), constant_values=-1), (n, k))


def tfidf_neighbours(
    train_texts: Iterable[str],
    train_labels: LabelSets,
    test_texts: Iterable[str],
    n_labels: int,
    k: int,
    *,
    neighbours: int | None = None,
    power: float | None = None,
    seed: int = 0,
    progress: Callable[[str, int], None] | None = None,
) -> Iterator[NDArray[np.int32]]:
    """The k labels with the most votes for each test text, best first, in chunks int32 [b, k] in order.

    Both text streams are read once and not kept: memory holds the training texts' TF-IDF matrix, twice.
    Ties go to the lower id; places without a vote are -1, but a text that shares no term with the training
    texts gets the most frequent labels. `neighbours` and `power` given together replace the choice described
    in the module's text. `progress` is called with what is being done and how many texts of it are done.
    """
    import scipy.sparse as sp
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    report = progress or (lambda what, done: None)
    counts = HashingVectorizer(
        ngram_range=(1, 2), n_features=HASH_BUCKETS, alternate_sign=False, norm=None, dtype=np.float32
    )
    tfidf = TfidfTransformer(sublinear_tf=True)
    train = counts.transform(_counted(train_texts, "reading training texts", report))
    n_train = train.shape[0]
    offsets = np.asarray(train_labels.offsets)
    assert len(offsets) == n_train + 1, (len(offsets), n_train)
    train = tfidf.fit_transform(train).astype(np.float32, copy=False)
    ones = np.ones(offsets[-1], dtype=np.float32)
    labels = sp.csr_matrix((ones, np.asarray(train_labels.ids), offsets), shape=(n_train, n_labels))
    frequency = np.bincount(train_labels.ids, minlength=n_labels)
    chunk = max(1, min(256, SIMILARITIES_PER_CHUNK // n_train))
    by_term = train.T.tocsr()

    if neighbours is None or power is None:
        report("choosing the number of neighbours", 0)
        sample = np.random.default_rng(seed).permutation(n_train)[:TUNING_SAMPLE]
        neighbours, power = _choose(train, by_term, labels, sample, chunk)
    del train

    texts, done = iter(test_texts), 0
    while batch := list(itertools.islice(texts, chunk)):
        similar = tfidf.transform(counts.transform(batch)).astype(np.float32, copy=False) @ by_term
        votes = _votes(*_top_per_row(similar, neighbours), labels, power)
        top, _ = _top_per_row(votes, k)
        empty = top[:, 0] < 0
        top[empty] = most_frequent(frequency, k, empty.sum())
        done += len(batch)
        report("comparing test texts", done)
        yield top


def _choose(train, by_term, labels, sample: NDArray, chunk: int) -> tuple[int, float]:
    """The (neighbours, power) of the best P@1 on the training texts `sample`, each one's own vote left out."""
    found, weight = [], []
    for first in range(0, len(sample), chunk):
        rows = sample[first : first + chunk]
        ids, similarity = _top_per_row(train[rows] @ by_term, max(NEIGHBOURS) + 1)
        itself = ids == rows[:, None]
        # Sorting by "is it itself" moves that one to the end, where it is cut off, and keeps the ranking.
        order = np.argsort(itself, axis=1, kind="stable")[:, :-1]
        found.append(np.where(itself, -1, ids)[np.arange(len(rows))[:, None], order])
        weight.append(similarity[np.arange(len(rows))[:, None], order])
    found, weight = np.concatenate(found), np.concatenate(weight)
    truth = labels[sample]

    def hits(setting: tuple[int, float]) -> tuple[float, float]:
        """At rank 1, and to break the ties where rank 1 is easy, in the first five."""
        n, power = setting
        best, _ = _top_per_row(_votes(found[:, :n], weight[:, :n], labels, power), 5)
        row, rank = np.nonzero(best >= 0)
        hit = np.asarray(truth[row, best[row, rank]]).ravel()
        return hit[rank == 0].sum(), hit.sum()

    return max(itertools.product(NEIGHBOURS, POWERS), key=hits)


def _votes(neighbour: NDArray, similarity: NDArray, labels, power: float):
    """Sparse [b, L] sums of similarity^power over the neighbours [b, n] (-1 = none) that have the label."""
    import scipy.sparse as sp

    weight = np.where(neighbour < 0, 0, similarity) ** power
    offsets = np.arange(len(neighbour) + 1) * neighbour.shape[1]
    shape = (len(neighbour), labels.shape[0])
    return sp.csr_matrix((weight.ravel(), np.maximum(neighbour, 0).ravel(), offsets), shape=shape) @ labels


def _top_per_row(matrix, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Columns and values [rows, k] of the k largest positive entries of each row, the largest first, ties to the
    lower column; -1 and 0 where a row has fewer."""
    columns = np.full((matrix.shape[0], k), -1, dtype=np.int32)
    values = np.zeros((matrix.shape[0], k), dtype=np.float32)
    for row, (first, last) in enumerate(itertools.pairwise(matrix.indptr)):
        value, column = matrix.data[first:last], matrix.indices[first:last]
        if len(value) > k:
            large = np.flatnonzero(value >= np.partition(value, len(value) - k)[len(value) - k])
            value, column = value[large], column[large]
        order = np.lexsort((column, -value))[:k]
        order = order[value[order] > 0]
        columns[row, : len(order)], values[row, : len(order)] = column[order], value[order]
    return columns, values


def _counted(texts: Iterable[str], what: str, report: Callable[[str, int], None]) -> Iterator[str]:
    for done, text in enumerate(texts, start=1):
        yield text
        if done % 1000 == 0:
            report(what, done)
