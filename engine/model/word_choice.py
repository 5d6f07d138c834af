"""Which words there are, and which of them the groups of labels read. Counted on the host, chosen on the device.

Words are pieces of the tokenizer and the most frequent pairs of neighbours. A group reads those that weigh most in the
texts of its labels, pairs among them if it reads many: where there is room for few, pieces do better. A label counts
with the root of the number of its texts: by the number itself a frequent label would choose for all, by one each the
rare ones would. They are chosen once, since a word that a label's texts do not have has nothing to learn there.

Shape suffixes: N texts of a sample, L labels, M groups, P pairs, V pieces and pairs, W words a group reads.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from engine.model.features import Tokens

FEWEST_TEXTS = 2  # that have a piece, or a pair of them, so that it is a word
MOST_KEYS = 1 << 21  # pairs whose texts are counted at once
NO_PAIR = np.iinfo(np.int64).max
BLOCK_TEXTS = 512
BLOCK_SCORES = 1 << 22  # of groups × V at once


class WordStatistics:
    """TF-IDF of a sample of the training texts. idf: fp32 [V], 0 for what is no word · pairs: int64 [P] ascending, as
    engine.model.words.Words has them, behind those that there are NO_PAIR · weight_NV: the pieces and the pairs of a
    row each of length 1."""

    def __init__(self, tokens: Tokens, rows: np.ndarray, vocabulary: int, special: list[int], pairs: int = 0) -> None:
        """rows: int64, of `tokens` · vocabulary: how many pieces · special: ids that are no words · pairs: P, the most
        frequent ones."""
        self.pieces, self.pairs = vocabulary, np.full(pairs, NO_PAIR)
        if pairs:
            found = _frequent_pairs(tokens, rows, vocabulary, special, pairs)
            self.pairs[: len(found)] = found
        counts = _counts(tokens, rows, vocabulary, self.pairs)
        texts = np.bincount(counts.indices, minlength=vocabulary + pairs)
        is_word = texts >= FEWEST_TEXTS
        is_word[special] = False
        idf = np.where(is_word, np.log(len(rows) / np.maximum(texts, 1)) + 1.0, 0.0).astype(np.float32)
        _weigh(counts, idf, vocabulary)
        counts.eliminate_zeros()
        self.idf, self.weight_NV = idf, counts

    def choose(
        self,
        offsets: np.ndarray,
        positions: np.ndarray,
        first: int,
        labels: int,
        group_size: int,
        words: int,
        device: torch.device | str = "cpu",
        with_pairs: bool = True,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields (first group, words int64 [K, W] ascending) of the groups of the labels at [first, first + labels).

        offsets int64 [N + 1], positions: label-order ids of the texts of the sample, as CSR. A group whose texts have
        fewer words reads any others, which change nothing. with_pairs: whether pairs are among them.
        """
        text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        own = (positions >= first) & (positions < first + labels)
        label, text = positions[own] - first, text[own]
        share = 1.0 / np.sqrt(np.bincount(label, minlength=labels)[label])
        groups, vocabulary = -(-labels // group_size), len(self.idf)
        read = vocabulary if with_pairs else self.pieces
        shape = (groups, self.weight_NV.shape[0])
        share_MN = csr_matrix((share.astype(np.float32), (label // group_size, text)), shape=shape)
        at_once = max(1, BLOCK_SCORES // vocabulary)
        for start in range(0, groups, at_once):
            score_KV = (share_MN[start : start + at_once] @ self.weight_NV).toarray()[:, :read]
            best_KW = torch.from_numpy(score_KV).to(device).topk(words, dim=1, sorted=False).indices
            yield start, best_KW.sort(dim=1).values


def _counts(tokens: Tokens, rows: np.ndarray, vocabulary: int, pairs: np.ndarray) -> csr_matrix:
    """[N, V] how often each piece, and each of the pairs, occurs, fp32."""
    ids, values, sizes = [], [], []
    columns = vocabulary + len(pairs)
    for start in range(0, len(rows), BLOCK_TEXTS):
        block = rows[start : start + BLOCK_TEXTS]
        padded, mask = tokens.pad(block, 0)
        text, place = np.nonzero(mask)
        found = text * columns + padded[text, place]
        if len(pairs):
            text, key = _neighbours(padded, mask, vocabulary)
            at = np.minimum(np.searchsorted(pairs, key), len(pairs) - 1)
            is_pair = pairs[at] == key
            found = np.concatenate([found, text[is_pair] * columns + vocabulary + at[is_pair]])
        keys, counts = np.unique(found, return_counts=True)
        ids.append((keys % columns).astype(np.int32))
        values.append(counts.astype(np.float32))
        sizes.append(np.bincount(keys // columns, minlength=len(block)))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    return csr_matrix((np.concatenate(values), np.concatenate(ids), offsets), shape=(len(rows), columns))


def _weigh(counts: csr_matrix, idf: np.ndarray, pieces: int) -> None:
    """From counts to TF-IDF, in place and a block of texts at a time: there are as many numbers as tokens and pairs."""
    for start in range(0, counts.shape[0], BLOCK_TEXTS):
        bounds = counts.indptr[start : start + BLOCK_TEXTS + 1]
        column, weight = (values[bounds[0] : bounds[-1]] for values in (counts.indices, counts.data))
        np.log(weight, out=weight)
        weight += 1.0
        weight *= idf[column]
        kind = 2 * np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)) + (column >= pieces)
        length = np.sqrt(np.bincount(kind, np.square(weight))).astype(np.float32)
        weight /= np.maximum(length, 1e-12)[kind]


def _frequent_pairs(tokens: Tokens, rows: np.ndarray, vocabulary: int, special: list[int], most: int) -> np.ndarray:
    """The pairs of neighbouring pieces that most texts have, at least FEWEST_TEXTS, ascending: int64.

    Where there are more different ones than MOST_KEYS, those that one text had so far are forgotten now and then.
    """
    is_special = np.zeros(vocabulary, dtype=bool)
    is_special[special] = True
    keys, texts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    waiting: list[np.ndarray] = []
    for start in range(0, len(rows), BLOCK_TEXTS):
        padded, mask = tokens.pad(rows[start : start + BLOCK_TEXTS], 0)
        text, key = _neighbours(padded, mask & ~is_special[padded], vocabulary)
        order = np.lexsort((key, text))  # once a text
        text, key = text[order], key[order]
        waiting.append(key[np.append(True, (np.diff(text) > 0) | (np.diff(key) > 0))[: len(key)]])
        if sum(map(len, waiting)) >= MOST_KEYS or start + BLOCK_TEXTS >= len(rows):
            both = np.concatenate([keys, *waiting])
            weight = np.concatenate([texts, np.ones(len(both) - len(keys), dtype=np.int64)])
            keys, at = np.unique(both, return_inverse=True)
            texts, waiting = np.bincount(at, weight, len(keys)).astype(np.int64), []
            if len(keys) > MOST_KEYS:
                keys, texts = keys[texts > 1], texts[texts > 1]
    best = np.argsort(-texts, kind="stable")[:most]
    return np.sort(keys[best[texts[best] >= FEWEST_TEXTS]])


def _neighbours(padded: np.ndarray, mask: np.ndarray, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """(text, pair) of all neighbouring pieces: int64, text by text."""
    text, place = np.nonzero(mask[:, :-1] & mask[:, 1:])
    return text, padded[text, place] * vocabulary + padded[text, place + 1]
