"""Words beside the features, and which of them a group of labels reads."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from engine.data.tokens import RaggedTokens
from engine.model.word_choice import NO_PAIR, WordStatistics
from engine.model.words import Words

VOCABULARY, PAD, START = 12, 0, 1


def ragged(texts):
    offsets = np.cumsum([0, *map(len, texts)])
    return RaggedTokens(np.concatenate([np.array(text, dtype=np.uint16) for text in texts]), offsets)


def tf_idf(texts, idf):
    """The formula, word by word."""
    rows = np.zeros((len(texts), VOCABULARY))
    for row, text in zip(rows, texts, strict=True):
        for word in set(text):
            row[word] = (1 + np.log(text.count(word))) * idf[word]
        row /= max(np.linalg.norm(row), 1e-12)
    return rows


TEXTS = [[START, 4, 5, 5, 5, 6], [START, 4, 7, 7], [START, 4, 8], [START, 5, 9, 7], [START]]


def test_statistics_are_tf_idf_of_the_sample():
    statistics = WordStatistics(ragged([[START, 11], *TEXTS]), np.arange(1, 6), VOCABULARY, [PAD, START])
    expected = np.zeros(VOCABULARY)
    expected[[4, 5, 7]] = np.log(5 / np.array([3, 2, 2])) + 1  # 6, 8 and 9 are in one text only, 11 in none
    np.testing.assert_allclose(statistics.idf, expected, rtol=1e-6)
    np.testing.assert_allclose(statistics.weight_NV.toarray(), tf_idf(TEXTS, expected), rtol=1e-5)


def test_columns_of_a_batch_are_those_of_the_statistics():
    statistics = WordStatistics(ragged(TEXTS), np.arange(5), VOCABULARY, [PAD, START])
    padded, _ = ragged(TEXTS).pad(np.arange(5), PAD)
    x_BD = torch.randn(5, 3)
    read_BX = Words(torch.from_numpy(statistics.idf)).beside(x_BD, torch.from_numpy(padded))
    assert torch.equal(read_BX[:, :3], x_BD)
    np.testing.assert_allclose(read_BX[:, 3:], statistics.weight_NV.toarray(), rtol=1e-5, atol=1e-7)
    assert not read_BX[4, 3:].any()  # a text without a word


def test_the_columns_take_no_more_memory_than_themselves_and_the_tokens():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, kinds, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor):
                self.most = max(self.most, result.untyped_storage().nbytes())
            return result

    words, ids = Words(torch.rand(5_000)), torch.randint(0, 5_000, (16, 30))
    with Largest() as largest:
        words.beside(torch.randn(16, 8), ids)
    assert largest.most == 4 * 16 * 5_008


def test_a_group_reads_the_words_that_weigh_most_in_the_texts_of_its_labels():
    rng = np.random.default_rng(0)
    texts = [[START, *rng.integers(2, VOCABULARY, 6).tolist()] for _ in range(40)]
    labels = [np.sort(rng.choice(11, rng.integers(0, 4), replace=False)) for _ in texts]
    offsets, positions = np.cumsum([0, *map(len, labels)]), np.concatenate(labels)
    statistics = WordStatistics(ragged(texts), np.arange(40), VOCABULARY, [PAD, START])
    first, count, group, words = 2, 9, 4, 3  # labels 2 to 10 in groups of 4, 4 and 1
    score = np.zeros((3, VOCABULARY))
    weight = statistics.weight_NV.toarray()
    for label in range(first, first + count):
        own = [text for text, of in enumerate(labels) if label in of]
        if own:
            score[(label - first) // group] += weight[own].sum(0) / np.sqrt(len(own))
    found = torch.cat([chosen for _, chosen in statistics.choose(offsets, positions, first, count, group, words)])
    assert found.shape == (3, words)
    np.testing.assert_array_equal(found, np.sort(np.argsort(-score, axis=1)[:, :words], axis=1))


def test_blocks_of_groups_choose_as_all_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    texts = [[START, *rng.integers(2, VOCABULARY, 5).tolist()] for _ in range(30)]
    offsets, positions = np.arange(31), rng.integers(0, 20, 30)
    statistics = WordStatistics(ragged(texts), np.arange(30), VOCABULARY, [PAD, START])
    whole = list(statistics.choose(offsets, positions, 0, 20, 2, 4))
    monkeypatch.setattr("engine.model.word_choice.BLOCK_SCORES", 3 * VOCABULARY)
    blocks = list(statistics.choose(offsets, positions, 0, 20, 2, 4))
    assert [first for first, _ in blocks] == [0, 3, 6, 9] and len(whole) == 1
    assert torch.equal(torch.cat([words for _, words in blocks]), whole[0][1])


PAIRED = [
    [START, 4, 5, 4, 5, 6],
    [START, 4, 5, 6],
    [START, 6, 4, 5, START, 4],
    [START, 5, 6, 6, 6],
    [START, 7, 4],
    [6, 4],
]


def pairs_of(text):
    return [first * VOCABULARY + second for first, second in pairwise(text) if START not in (first, second)]


def test_the_most_frequent_pairs_of_neighbours_are_words_of_a_length_of_their_own():
    statistics = WordStatistics(ragged(PAIRED), np.arange(6), VOCABULARY, [PAD, START], pairs=5)
    keys = [
        4 * VOCABULARY + 5,
        5 * VOCABULARY + 6,
        6 * VOCABULARY + 4,
    ]  # (5, 4), (6, 6) and (7, 4) are in one text only
    assert statistics.pairs.tolist() == [*keys, NO_PAIR, NO_PAIR]
    weight = statistics.weight_NV.toarray()
    pieces = WordStatistics(ragged(PAIRED), np.arange(6), VOCABULARY, [PAD, START]).weight_NV.toarray()
    np.testing.assert_array_equal(weight[:, :VOCABULARY], pieces)
    texts = [pairs_of(text) for text in PAIRED]
    idf = np.array([np.log(6 / sum(key in text for text in texts)) + 1 for key in keys])
    np.testing.assert_allclose(statistics.idf[VOCABULARY:], [*idf, 0, 0], rtol=1e-6)
    count = np.array([[text.count(key) for key in keys] for text in texts])
    expected = np.where(count, 1 + np.log(np.maximum(count, 1)), 0) * idf
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(weight[:, VOCABULARY:], np.pad(expected, ((0, 0), (0, 2))), rtol=1e-5)


def test_fewer_pairs_are_the_most_frequent():
    statistics = WordStatistics(ragged(PAIRED), np.arange(6), VOCABULARY, [PAD, START], pairs=1)
    assert statistics.pairs.tolist() == [4 * VOCABULARY + 5]
    none = WordStatistics(ragged([[START, 4], [5]]), np.arange(2), VOCABULARY, [PAD, START], pairs=2)
    assert none.pairs.tolist() == [NO_PAIR, NO_PAIR] and not none.idf[VOCABULARY:].any()


def test_columns_of_pairs_in_a_batch_are_those_of_the_statistics():
    statistics = WordStatistics(ragged(PAIRED), np.arange(6), VOCABULARY, [PAD, START], pairs=5)
    padded, _ = ragged(PAIRED).pad(np.arange(6), PAD)
    words = Words(torch.from_numpy(statistics.idf), torch.from_numpy(statistics.pairs))
    read_BX = words.beside(torch.randn(6, 3), torch.from_numpy(padded))
    np.testing.assert_allclose(read_BX[:, 3:], statistics.weight_NV.toarray(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("block", "keys"), [(2, 1), (3, 6), (6, 1 << 22)])
def test_pairs_are_counted_in_pieces_as_at_once(monkeypatch, block, keys):
    rng = np.random.default_rng(2)
    texts = [[START, *rng.integers(2, 6, 12).tolist()] for _ in range(40)]  # at most 16 pairs, in many texts each
    whole = WordStatistics(ragged(texts), np.arange(40), VOCABULARY, [PAD, START], pairs=16)
    monkeypatch.setattr("engine.model.word_choice.BLOCK_TEXTS", block)
    monkeypatch.setattr("engine.model.word_choice.MOST_KEYS", max(keys, 16))
    parts = WordStatistics(ragged(texts), np.arange(40), VOCABULARY, [PAD, START], pairs=16)
    np.testing.assert_array_equal(parts.pairs, whole.pairs)
    np.testing.assert_array_equal(parts.weight_NV.toarray(), whole.weight_NV.toarray())


def test_of_too_many_pairs_those_of_one_text_are_forgotten(monkeypatch):
    often = [[START, 4, 5], [START, 4, 5]]
    monkeypatch.setattr("engine.model.word_choice.MOST_KEYS", 2)
    monkeypatch.setattr("engine.model.word_choice.BLOCK_TEXTS", 2)
    texts = [*often, [START, 6, 7], [START, 8, 9], [START, 6, 7], [START, 9, 8], *often]
    statistics = WordStatistics(ragged(texts), np.arange(8), VOCABULARY, [PAD, START], pairs=3)
    assert statistics.pairs.tolist() == [4 * VOCABULARY + 5, NO_PAIR, NO_PAIR]  # 6, 7 came twice, but far apart


def test_a_group_reads_pairs_only_if_it_may():
    statistics = WordStatistics(ragged(PAIRED), np.arange(6), VOCABULARY, [PAD, START], pairs=3)
    chosen = {}
    for with_pairs in (True, False):
        ((_, words),) = statistics.choose(np.arange(7), np.zeros(6, int), 0, 1, 1, 6, with_pairs=with_pairs)
        chosen[with_pairs] = words[0].tolist()
    assert max(chosen[True]) >= VOCABULARY > max(chosen[False])
