"""The words of a text as columns that the classifier reads beside the encoder's features.

An encoder blurs rare names into features of a few hundred numbers; labels of a title or of a package are often decided
by one exact word. A word here is a piece of the tokenizer's vocabulary, so that nothing but the token ids is needed.
Its column is (1 + log c) idf for c occurrences, and the columns of a text have length 1 (TF-IDF with sublinear term
frequency: Manning, Raghavan & Schuetze, Introduction to Information Retrieval, section 6.4).

Shape suffixes: B instances, T tokens, D features, V vocabulary, X = D + V.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Words(nn.Module):
    """idf: fp32 [V], 0 for what is no word: special tokens, and pieces that too few texts have."""

    def __init__(self, idf: Tensor) -> None:
        super().__init__()
        self.register_buffer("idf", idf)

    @torch.no_grad()
    def beside(self, x_BD: Tensor, ids_BT: Tensor) -> Tensor:
        """x_BD fp32 and token ids int64 → fp32 [B, X], a view of contiguous columns. Padding is a special token.

        The same bits on every run: where a piece occurs several times, all write the same number.
        """
        batch, width = x_BD.shape
        x_XB = torch.zeros(width + len(self.idf), batch, device=x_BD.device)
        x_XB[:width] = x_BD.T
        word_VB, ids_TB = x_XB[width:], ids_BT.T.contiguous()
        word_VB.scatter_add_(0, ids_TB, torch.ones(ids_TB.shape, device=x_BD.device))
        count_TB = word_VB.gather(0, ids_TB)
        value_TB = count_TB.log().add_(1).mul_(self.idf[ids_TB])
        length_B = value_TB.square().div_(count_TB).sum(0).sqrt_()  # every occurrence a share of its piece's square
        word_VB.scatter_(0, ids_TB, value_TB.div_(length_B.clamp_(min=1e-6)))
        return x_XB.T
