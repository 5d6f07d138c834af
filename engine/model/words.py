"""The words of a text as columns that the classifier reads beside the encoder's features.

An encoder blurs rare names into features of a few hundred numbers; labels of a title or of a package are often decided
by one exact word. A word here is a piece of the tokenizer's vocabulary or a pair of neighbouring pieces, so that
nothing but the token ids is needed. Its column is (1 + log c) idf for c occurrences, and the columns of a text have
length 1, those of pieces and those of pairs by themselves: pairs take nothing from pieces (TF-IDF with sublinear term
frequency: Manning, Raghavan & Schuetze, Introduction to Information Retrieval, section 6.4).

Shape suffixes: B instances, T tokens, D features, P pairs, V pieces and pairs, X = D + V.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Words(nn.Module):
    """idf: fp32 [V], 0 for what is no word: special tokens, and pieces that too few texts have · pairs: int64 [P]
    ascending, (first piece) * (V - P) + second piece, which columns V - P to V - 1 stand for; None: no pairs."""

    def __init__(self, idf: Tensor, pairs: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("idf", idf)
        self.register_buffer("pairs", pairs)
        self.pieces = len(idf) - (0 if pairs is None else len(pairs))
        self.no_word = int((idf[: self.pieces] != 0).int().argmin())  # the first such piece

    @torch.no_grad()
    def beside(self, x_BD: Tensor, ids_BT: Tensor, without_B: Tensor | None = None) -> Tensor:
        """x_BD fp32 and token ids int64 → fp32 [B, X], a view of contiguous columns. Padding is a special token.

        without_B: bool, texts that are to have no words.
        The same bits on every run: where a piece occurs several times, all write the same number.
        """
        batch, width = x_BD.shape
        x_XB = torch.zeros(width + len(self.idf), batch, device=x_BD.device)
        x_XB[:width] = x_BD.T
        if without_B is not None:
            ids_BT = ids_BT.masked_fill(without_B[:, None], self.no_word)
        ids_TB = ids_BT.T.contiguous()
        self._write(x_XB[width:], ids_TB)
        if self.pairs is not None:
            self._write(x_XB[width:], self._pairs(ids_TB))
        return x_XB.T

    def _write(self, word_VB: Tensor, ids_TB: Tensor) -> None:
        """What the words weigh in their texts; word_VB has zeros there before."""
        word_VB.scatter_add_(0, ids_TB, torch.ones(ids_TB.shape, device=word_VB.device))
        count_TB = word_VB.gather(0, ids_TB)
        value_TB = count_TB.log().add_(1).mul_(self.idf[ids_TB])
        length_B = value_TB.square().div_(count_TB).sum(0).sqrt_()  # every occurrence a share of its word's square
        word_VB.scatter_(0, ids_TB, value_TB.div_(length_B.clamp_(min=1e-6)))

    def _pairs(self, ids_TB: Tensor) -> Tensor:
        """Columns of neighbouring pieces, int64 [T - 1, B]; `no_word` for those that are no word."""
        key_TB = ids_TB[:-1] * self.pieces + ids_TB[1:]
        at_TB = torch.searchsorted(self.pairs, key_TB).clamp_(max=len(self.pairs) - 1)
        return torch.where(self.pairs[at_TB] == key_TB, at_TB + self.pieces, self.no_word)
