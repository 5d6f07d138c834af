"""Baselines: right on corpora small enough to check by eye."""

from types import SimpleNamespace

import numpy as np
import pytest

from engine.inference import baselines
from engine.inference.baselines import most_frequent, tfidf_neighbours


def csr(rows):
    offsets = np.cumsum([0, *map(len, rows)])
    return SimpleNamespace(offsets=offsets, ids=np.array([id for row in rows for id in row], dtype=np.int32))


def neighbours(train, rows, test, n_labels=10, k=3, **options):
    return np.concatenate(list(tfidf_neighbours(iter(train), csr(rows), iter(test), n_labels, k, **options)))


ANIMALS = ["a cat purrs softly", "a dog barks loudly", "the dog barks at cats", "parse json text"]
LABELS = [[0, 9], [1, 9], [1, 0, 9], [5]]


def test_most_frequent_is_one_row_for_all_with_ties_by_id():
    ids = most_frequent(np.array([3, 0, 7, 3]), 3, 1000)
    assert ids.shape == (1000, 3)
    assert ids.dtype == np.int32
    assert ids[0].tolist() == ids[-1].tolist() == [2, 0, 3]
    assert ids.strides[0] == 0
    assert most_frequent(np.array([1, 2]), 3, 1).tolist() == [[1, 0, -1]]


def test_the_nearest_text_gives_its_labels():
    top = neighbours(ANIMALS, LABELS, ["dog barks loudly", "json"], neighbours=1, power=1)
    assert top.dtype == np.int32
    assert top.tolist() == [[1, 9, -1], [5, -1, -1]]


def test_votes_are_weighted_by_similarity():
    """Two far neighbours agree on label 2, the near one has label 1: a high power listens to the near one."""
    train, rows = ["red apple pie", "red brick wall", "red brick house"], [[1], [2], [2]]
    assert neighbours(train, rows, ["red apple pie brick"], k=1, neighbours=3, power=5)[0, 0] == 1
    assert neighbours(train, rows, ["red apple brick"], k=1, neighbours=3, power=0.1)[0, 0] == 2


def test_a_text_without_known_terms_gets_the_most_frequent_labels():
    assert neighbours(ANIMALS, LABELS, ["", "zzz"], neighbours=2, power=1).tolist() == [[9, 0, 1], [9, 0, 1]]


def test_texts_without_labels_do_not_vote():
    assert neighbours(["a cat", "cat food"], [[], [3]], ["a cat"], k=1, neighbours=2, power=1).tolist() == [[3]]


def test_settings_are_chosen_on_training_texts_without_their_own_vote():
    """Three in ten labels are noise. Asked about a text with itself in, one neighbour would always be right; with
    itself left out many neighbours are, and they outvote the noise."""
    random = np.random.default_rng(0)

    def texts(topic, n):
        return [" ".join(f"t{topic}w{word}" for word in random.integers(0, 6, 5)) for _ in range(n)]

    train = [text for topic in range(4) for text in texts(topic, 40)]
    rows = [[i // 40] if random.random() < 0.7 else [4 + i % 4] for i in range(160)]
    test = [text for topic in range(4) for text in texts(topic, 10)]
    truth = np.repeat(np.arange(4), 10)
    assert (neighbours(train, rows, test, k=1)[:, 0] == truth).mean() > 0.95
    assert (neighbours(train, rows, test, k=1, neighbours=1, power=1)[:, 0] == truth).mean() < 0.85


def test_chunks_change_nothing(monkeypatch):
    random = np.random.default_rng(1)
    texts = [" ".join(f"w{word}" for word in random.integers(0, 40, 6)) for _ in range(60)]
    rows = [random.choice(10, random.integers(0, 4), replace=False).tolist() for _ in range(50)]
    whole = neighbours(texts[:50], rows, texts[50:])
    monkeypatch.setattr(baselines, "SIMILARITIES_PER_CHUNK", 150)
    assert (neighbours(texts[:50], rows, texts[50:]) == whole).all()
    assert [len(chunk) for chunk in tfidf_neighbours(texts[:50], csr(rows), texts[50:], 10, 3)] == [3, 3, 3, 1]


def test_progress_names_what_is_going_on():
    seen = []
    neighbours(ANIMALS * 300, LABELS * 300, ["cat"] * 5, progress=lambda what, done: seen.append((what, done)))
    assert seen[0] == ("reading training texts", 1000)
    assert seen[-1] == ("comparing test texts", 5)


@pytest.mark.parametrize("k", [1, 5])
def test_top_of_a_sparse_row_equals_a_full_sort(k):
    import scipy.sparse as sp

    random = np.random.default_rng(2)
    dense = random.integers(0, 4, (30, 8)).astype(np.float32)
    ids, values = baselines._top_per_row(sp.csr_matrix(dense), k)
    for row in range(30):
        order = [column for column in np.lexsort((np.arange(8), -dense[row])) if dense[row, column] > 0][:k]
        assert ids[row].tolist() == order + [-1] * (k - len(order))
        assert values[row, : len(order)].tolist() == dense[row, order].tolist()
