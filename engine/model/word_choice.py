"""Which words there are, and which of them the groups of labels read. Counted on the host, chosen on the device.

A group reads the words that weigh most in the texts of its labels. A label counts with the root of the number of its
texts: by the number itself a frequent label would choose for all, by one each the rare ones would. They are chosen
once, since a word that a label's texts do not have has nothing to learn there.

Shape suffixes: N texts of a sample, L labels, M groups, V vocabulary, W words a group reads.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from engine.model.features import Tokens

FEWEST_TEXTS = 2  # that have a piece, so that it is a word
BLOCK_TEXTS = 512
BLOCK_SCORES = 1 << 22  # of groups × V at once


class WordStatistics:
    """TF-IDF of a sample of the training texts. idf: fp32 [V], 0 for what is no word · weight_NV: rows of length 1."""

    def __init__(self, tokens: Tokens, rows: np.ndarray, vocabulary: int, special: list[int]) -> None:
        """rows: int64, of `tokens` · special: ids that are no words."""
        counts = _counts(tokens, rows, vocabulary)
        texts = np.bincount(counts.indices, minlength=vocabulary)
        is_word = texts >= FEWEST_TEXTS
        is_word[special] = False
        idf = np.where(is_word, np.log(len(rows) / np.maximum(texts, 1)) + 1.0, 0.0).astype(np.float32)
        np.log(counts.data, out=counts.data)  # in place: there are as many numbers as tokens
        counts.data += 1.0
        counts.data *= idf[counts.indices]
        counts.eliminate_zeros()
        square = counts.multiply(counts).sum(axis=1)
        length = np.sqrt(np.asarray(square, dtype=np.float32).reshape(-1))
        counts.data /= np.repeat(np.maximum(length, 1e-12), np.diff(counts.indptr))
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
    ) -> Iterator[tuple[int, Tensor]]:
        """Yields (first group, words int64 [K, W] ascending) of the groups of the labels at [first, first + labels).

        offsets int64 [N + 1], positions: label-order ids of the texts of the sample, as CSR. A group whose texts have
        fewer words reads any others, which change nothing.
        """
        text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        own = (positions >= first) & (positions < first + labels)
        label, text = positions[own] - first, text[own]
        share = 1.0 / np.sqrt(np.bincount(label, minlength=labels)[label])
        groups, vocabulary = -(-labels // group_size), len(self.idf)
        shape = (groups, self.weight_NV.shape[0])
        share_MN = csr_matrix((share.astype(np.float32), (label // group_size, text)), shape=shape)
        at_once = max(1, BLOCK_SCORES // vocabulary)
        for start in range(0, groups, at_once):
            score_KV = (share_MN[start : start + at_once] @ self.weight_NV).toarray()
            best_KW = torch.from_numpy(score_KV).to(device).topk(words, dim=1, sorted=False).indices
            yield start, best_KW.sort(dim=1).values


def _counts(tokens: Tokens, rows: np.ndarray, vocabulary: int) -> csr_matrix:
    """[N, V] how often each piece occurs, fp32."""
    ids, values, sizes = [], [], []
    for start in range(0, len(rows), BLOCK_TEXTS):
        block = rows[start : start + BLOCK_TEXTS]
        padded, mask = tokens.pad(block, 0)
        text, place = np.nonzero(mask)
        keys, counts = np.unique(text * vocabulary + padded[text, place], return_counts=True)
        ids.append((keys % vocabulary).astype(np.int32))
        values.append(counts.astype(np.float32))
        sizes.append(np.bincount(keys // vocabulary, minlength=len(block)))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    return csr_matrix((np.concatenate(values), np.concatenate(ids), offsets), shape=(len(rows), vocabulary))
