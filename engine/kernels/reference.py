"""The classifier step in plain torch: the specification of the fused kernels, and the backend that runs anywhere.

One block of labels at a time: logits, loss gradient, weight gradient, update, and the block's share of
dx. Everything is fp32 arithmetic whatever the weights are stored in. No tensor is larger than BLOCK_BYTES
(or one group's), so a step of a hundred million labels needs no more scratch memory than one of a thousand.

A block is computed in one of two ways. *Gather*: every group reads its F features, batched products over
groups; right for groups of many labels. *Expand*: the block's rows are written out over all D features and
multiplied densely; right for small groups (G = 1 above all) on features that are not too wide, where
gathering would move far more than the products cost. Source of the scheme: design of ELMO (chunked
classifier update) and Spartex (fixed fan-in).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.kernels.layer import LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import row_quantum, update_rows

BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
# Gathering one feature for a batch costs about as much as this many multiply-adds of a dense product
# (measured on two AVX-512 cores: 40; on an H200 the same order).
GATHER_COST = 32


@dataclass(frozen=True)
class Block:
    """Rows [first, last) of a layer, either all whole groups of `group` rows or one last short group."""

    first: int
    last: int
    group: int


def step(layer: LabelLayer, x_BD: Tensor, positives: Positives, dx_BD: Tensor, options: StepOptions) -> Tensor | None:
    """One training step of `layer`: updates it in place and adds its share to dx_BD.

    x_BD: features, any float dtype · dx_BD: fp32, gradient of the batch-mean loss with respect to x_BD,
    taken at the weights before the update · returns the layer's part of that loss (fp32 scalar) if
    `options.want_loss`, else None.
    """
    x_BD = x_BD.detach().float()
    x_DB = x_BD.T.contiguous()
    dx_DB = torch.zeros_like(x_DB)
    factor = options.loss_weight / x_BD.shape[0]
    generator = _generator(layer, options)
    total = torch.zeros((), device=x_BD.device) if options.want_loss else None
    for block in blocks(layer, x_DB, row_quantum(options.optimizer, layer.group_size, layer.fan_in)):
        product = Product(layer, block, x_BD, x_DB)
        logits_RB = product.logits()
        at = positives.between(layer.start + block.first, layer.start + block.last)
        if total is not None:
            total += loss_value(logits_RB, at, options.loss) * factor
        grad_RB = loss_gradient_(logits_RB, at, options.loss).mul_(factor)
        grad_RF = product.weight_gradient(grad_RB)
        product.add_input_gradient(grad_RB, dx_DB)
        update_rows(layer, block.first, block.last, grad_RF, grad_RB.sum(dim=1), options, generator)
    dx_BD += dx_DB.T
    return total


def blocks(layer: LabelLayer, x_DB: Tensor, quantum: int = 1) -> Iterator[Block]:
    """Cuts the layer's rows into blocks whose largest temporary tensor fits BLOCK_BYTES."""
    width, batch = x_DB.shape
    group = layer.group_size if layer.index is not None else 1
    if layer.index is None or _expands(layer, width):
        row_floats = max(width, batch)
    else:
        row_floats = max(layer.fan_in / group * batch, batch, layer.fan_in)
    quantum = max(quantum, group) if layer.index is not None else max(quantum, 1)
    rows = int(BLOCK_BYTES[x_DB.device.type] / 4 / row_floats) // quantum * quantum
    rows = max(rows, quantum)
    whole = layer.labels // group * group
    for first in range(0, whole, rows):
        yield Block(first, min(first + rows, whole), group)
    if whole < layer.labels:
        yield Block(whole, layer.labels, layer.labels - whole)


def _expands(layer: LabelLayer, width: int) -> bool:
    return layer.index is not None and layer.group_size * width <= GATHER_COST * layer.fan_in


class Product:
    """The three products of one block: logits, weight gradient, input gradient."""

    def __init__(self, layer: LabelLayer, block: Block, x_BD: Tensor, x_DB: Tensor) -> None:
        self.x_BD, self.x_DB = x_BD, x_DB
        self.bias_R = layer.bias[block.first : block.last]
        self.group = block.group
        self.index_KF = None  # feature ids of the block's K groups; None when the product is dense
        self.rows_index_RF = None  # the same per row, where rows are written out over all features
        self.weight = layer.rows(block.first, block.last)
        if layer.index is None:
            return
        groups = slice(block.first // layer.group_size, -(-block.last // layer.group_size))
        index_KF = layer.index[groups].long()
        if _expands(layer, x_DB.shape[0]):
            self.rows_index_RF = index_KF.repeat_interleave(self.group, dim=0)
            expanded = self.weight.new_zeros(block.last - block.first, x_DB.shape[0])
            self.weight = expanded.scatter_(1, self.rows_index_RF, self.weight)
        else:
            self.index_KF = index_KF
            self.weight = self.weight.reshape(-1, self.group, layer.fan_in)
            self.x_KFB = x_DB.index_select(0, index_KF.view(-1)).view(*index_KF.shape, -1)

    def logits(self) -> Tensor:
        """[R, B]"""
        if self.index_KF is None:
            return torch.addmm(self.bias_R[:, None], self.weight, self.x_DB)
        return (self.weight @ self.x_KFB).view(-1, self.x_DB.shape[1]).add_(self.bias_R[:, None])

    def weight_gradient(self, grad_RB: Tensor) -> Tensor:
        """[R, F]"""
        if self.index_KF is not None:
            grad_KGB = grad_RB.view(-1, self.group, grad_RB.shape[1])
            return (grad_KGB @ self.x_KFB.transpose(1, 2)).view(len(grad_RB), -1)
        dense = grad_RB @ self.x_BD
        return dense if self.rows_index_RF is None else dense.gather(1, self.rows_index_RF)

    def add_input_gradient(self, grad_RB: Tensor, dx_DB: Tensor) -> None:
        """dx_DB += W^T grad"""
        if self.index_KF is None:
            dx_DB.addmm_(self.weight.T, grad_RB)
            return
        grad_KGB = grad_RB.view(-1, self.group, grad_RB.shape[1])
        share_KFB = self.weight.transpose(1, 2) @ grad_KGB
        dx_DB.index_add_(0, self.index_KF.view(-1), share_KFB.view(-1, grad_RB.shape[1]))


def loss_value(logits_RB: Tensor, at: tuple[Tensor, Tensor], loss: str) -> Tensor:
    """Loss summed over labels and instances; `at` are the (row, instance) pairs of the positives."""
    positive = logits_RB[at]
    if loss == "bce":
        return nnf.softplus(logits_RB).sum() - positive.sum()
    wrong = (1 + logits_RB).clamp_(min=0).square_().sum()
    return wrong - (1 + positive).clamp_(min=0).square_().sum() + (1 - positive).clamp_(min=0).square_().sum()


def loss_gradient_(logits_RB: Tensor, at: tuple[Tensor, Tensor], loss: str) -> Tensor:
    """Derivative of `loss_value` by the logits, [R, B], in the memory of the logits.

    bce: sigmoid(z) - y. squared hinge max(0, 1 - s z)^2 with s = +-1: -2 s max(0, 1 - s z).
    """
    if loss == "bce":
        gradient = logits_RB.sigmoid_()
        gradient[at] -= 1.0
        return gradient
    positive = logits_RB[at]
    gradient = logits_RB.add_(1).clamp_(min=0).mul_(2)
    gradient[at] = (positive - 1).clamp_(max=0).mul_(2)
    return gradient


def gradient_energy(
    layer: LabelLayer, x_BD: Tensor, positives: Positives, loss: str, quantum: int
) -> Iterator[tuple[int, Tensor]]:
    """What each group would gain from each feature: yields (first group, [K, D] fp32) block by block.

    Blocks start at multiples of `quantum` rows (a multiple of the group size).

    The square root of the summed squares of the group's loss gradient by the D possible connections
    (RigL, Evci et al. 2020, growth criterion, taken over the rows that share an index set).
    """
    x_BD = x_BD.detach().float()
    x_DB = x_BD.T.contiguous()
    width = x_BD.shape[1]
    group = layer.group_size
    rows = max(quantum, int(BLOCK_BYTES[x_BD.device.type] / 4 / max(width, x_BD.shape[0])) // quantum * quantum)
    for first in range(0, layer.labels, rows):
        last = min(first + rows, layer.labels)
        whole = first + (last - first) // group * group
        energy = []
        for block in (Block(first, whole, group), Block(whole, last, last - whole)):
            if block.first == block.last:
                continue
            logits_RB = Product(layer, block, x_BD, x_DB).logits()
            at = positives.between(layer.start + block.first, layer.start + block.last)
            full_RD = loss_gradient_(logits_RB, at, loss) @ x_BD
            energy.append(torch.linalg.vector_norm(full_RD.view(-1, block.group, width), dim=1))
        yield first // group, torch.cat(energy)


def topk(layers: list[LabelLayer], x_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best labels of each instance: (logits fp32 [B, k] descending, label-order ids int64 [B, k]).

    Streams over label blocks and keeps a running best, so that no [B, L] tensor exists. Of equal logits the
    smaller label-order id comes first. k may not exceed the number of labels.
    """
    x_BD = x_BD.float()
    x_DB = x_BD.T.contiguous()
    batch = x_BD.shape[0]
    best = x_BD.new_full((batch, k), -torch.inf)
    best_id = torch.full((batch, k), -1, dtype=torch.int64, device=x_BD.device)
    for layer in layers:
        for block in blocks(layer, x_DB):
            logits_BR = Product(layer, block, x_BD, x_DB).logits().T
            value, row = logits_BR.topk(min(k, logits_BR.shape[1]), dim=1)
            merged = torch.cat([best, value], dim=1)
            merged_id = torch.cat([best_id, row + (layer.start + block.first)], dim=1)
            order = merged.argsort(dim=1, descending=True, stable=True)[:, :k]
            best, best_id = merged.gather(1, order), merged_id.gather(1, order)
    return best, best_id


def _generator(layer: LabelLayer, options: StepOptions) -> torch.Generator | None:
    """Randomness of one step of one layer, a function of (seed, step, layer) alone."""
    if layer.weight.dtype == torch.float32:
        return None
    generator = torch.Generator(layer.weight.device)
    return generator.manual_seed((options.seed * 1_000_003 + options.step) * 2 + (layer.start > 0))
