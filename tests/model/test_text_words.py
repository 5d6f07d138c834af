"""Words beside the features, and which of them a group of labels reads."""

import numpy as np
import torch

from engine.data.tokens import RaggedTokens
from engine.model.word_choice import WordStatistics
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
