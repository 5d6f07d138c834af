"""The classifier step of labels that read every feature and every word: plain torch, on the words of the batch alone.

A few very frequent labels read tens of thousands of words, of which the texts of a batch have some thousand. The others
are 0 in x, and neither is a weight moved by them nor do they change a logit: their columns are left out of the step.

Shape suffixes: B instances, D features, W words, P words that occur in the batch, X = D + W.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine.kernels import reference
from engine.kernels.layer import LabelLayer, Positives, StepOptions


def step(layer: LabelLayer, x_BD: Tensor, positives: Positives, dx_BD: Tensor, options: StepOptions) -> Tensor | None:
    """As engine.kernels.reference.step, with the same result but for the order of sums; x_BD: [B, X].

    Where weights move without a gradient (weight decay, moments a weight), all columns are computed.
    """
    if options.weight_decay or options.optimizer == "adamw8bit":
        return reference.step(layer, x_BD, positives, dx_BD, options)
    x_XB = x_BD.detach().float().T
    words_P = (x_XB[layer.features :] != 0).any(dim=1).nonzero()[:, 0]
    columns = torch.cat([torch.arange(layer.features, device=x_XB.device), words_P + layer.features])
    stored = layer.weight if layer.weight.element_size() > 1 else layer.weight.view(torch.int8)  # fp8 cannot be picked
    some = stored.index_select(1, columns).view(layer.weight.dtype)
    few = replace(layer, weight=some, absent=layer.words - len(words_P))
    loss = reference.step(few, x_XB.index_select(0, columns).T, positives, dx_BD, options)
    stored.index_copy_(1, columns, few.weight.view(stored.dtype))
    return loss
