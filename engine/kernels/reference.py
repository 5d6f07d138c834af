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

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.kernels.layer import LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import row_quantum, update_rows
from engine.kernels.running_best import RunningBest

BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
# Gathering one feature for a batch costs about as much as this many multiply-adds of a dense product
# (measured on two AVX-512 cores: 40; on an H200 the same order).
GATHER_COST = 32
RUN = 32  # labels whose best logit is looked at first when the best labels of a dense layer are searched


def step(layer: LabelLayer, x_BD: Tensor, positives: Positives, dx_BD: Tensor, options: StepOptions) -> Tensor | None:
    """One training step of `layer`: updates it in place and adds its share to dx_BD.

    x_BD: features and words, any float dtype · dx_BD: fp32, gradient of the batch-mean loss with respect to the
    features, the first columns of x, taken at the weights before the update; left as it is where options.wants_dx is
    False · returns the layer's part of that loss (fp32 scalar) if `options.want_loss`, else None.
    """
    x_BD = x_BD.detach().float()
    x_DB = x_BD.T.contiguous()
    dx_DB = torch.zeros(dx_BD.shape[::-1], device=x_DB.device)
    factor = options.loss_weight / x_BD.shape[0]
    generator = _generator(layer, options)
    total = torch.zeros((), device=x_BD.device) if options.want_loss else None
    quantum = row_quantum(options.optimizer, layer.group_size if layer.index is not None else 1, layer.fan_in)
    for first, last in blocks(layer, x_DB, quantum):
        product = Product(layer, first, last, x_BD, x_DB)
        logits_RB = product.logits()
        at = positives.between(layer.start + first, layer.start + last)
        if total is not None:
            total += loss_value(logits_RB, at, options.loss) * factor
        grad_RB = loss_gradient_(logits_RB, at, options.loss).mul_(factor)
        grad_RF = product.weight_gradient(grad_RB)
        if options.wants_dx:
            product.add_input_gradient(grad_RB, dx_DB)
        update_rows(layer, first, last, grad_RF, grad_RB.sum(dim=1), options, generator)
    dx_BD += dx_DB.T
    return total


def blocks(layer: LabelLayer, x_DB: Tensor, quantum: int = 1) -> Iterator[tuple[int, int]]:
    """Spans of rows whose largest temporary tensor fits BLOCK_BYTES.

    They start at multiples of `quantum` and of the group size; the last may end within a group.
    """
    width, batch = x_DB.shape
    if layer.index is None or _expands(layer, width):
        row_floats = max(width, batch)
    else:
        row_floats = max(layer.fan_in / layer.group_size * batch, batch, layer.fan_in)
    if layer.index is not None:
        quantum = max(quantum, layer.group_size)
    rows = max(quantum, int(BLOCK_BYTES[x_DB.device.type] / 4 / row_floats) // quantum * quantum)
    for first in range(0, layer.labels, rows):
        yield first, min(first + rows, layer.labels)


def _expands(layer: LabelLayer, width: int) -> bool:
    return layer.index is not None and layer.group_size * width <= GATHER_COST * layer.fan_in


class Product:
    """The three products of the rows [first, last): logits, weight gradient, input gradient."""

    def __init__(self, layer: LabelLayer, first: int, last: int, x_BD: Tensor, x_DB: Tensor) -> None:
        self.x_BD, self.x_DB = x_BD, x_DB
        self.rows, self.group, self.features = last - first, layer.group_size, layer.features
        self.bias_R = layer.bias[first:last]
        self.index_KF = None  # feature ids of the K groups; None when the product is dense
        self.rows_index_RF = None  # the same per row, where rows are written out over all features
        self.weight = layer.rows(first, last)
        if layer.index is None:
            return
        index_KF = layer.index[first // self.group : -(-last // self.group)].long()
        if _expands(layer, x_DB.shape[0]):
            self.rows_index_RF = index_KF.repeat_interleave(self.group, dim=0)[: self.rows]
            expanded = self.weight.new_zeros(self.rows, x_DB.shape[0])
            self.weight = expanded.scatter_(1, self.rows_index_RF, self.weight)
        else:
            self.index_KF = index_KF
            self.weight = self._by_group(self.weight)
            self.x_KFB = x_DB.index_select(0, index_KF.view(-1)).view(*index_KF.shape, -1)

    def _by_group(self, rows: Tensor) -> Tensor:
        """[R, n] as [K, G, n], a last short group filled up with zeros."""
        missing = -self.rows % self.group
        if missing:
            rows = nnf.pad(rows, (0, 0, 0, missing))
        return rows.reshape(-1, self.group, rows.shape[1])

    def logits(self) -> Tensor:
        """[R, B]"""
        if self.index_KF is None:
            return torch.addmm(self.bias_R[:, None], self.weight, self.x_DB)
        logits_RB = (self.weight @ self.x_KFB).view(-1, self.x_DB.shape[1])[: self.rows]
        return logits_RB.add_(self.bias_R[:, None])

    def logits_in_runs(self) -> Tensor:
        """[C, B, N]: the R labels in C runs of N, the last filled up with -inf.

        The order in which a few instances are multiplied many times faster than in that of `logits`.
        """
        if self.index_KF is None:
            logits_BR = torch.addmm(self.bias_R, self.x_BD, self.weight.T)
            return _filled_up(logits_BR, RUN).view(len(self.x_BD), -1, RUN).transpose(0, 1)
        logits_KBG = self.x_KFB.transpose(1, 2) @ self.weight.transpose(1, 2)
        return logits_KBG.add_(_filled_up(self.bias_R, self.group).view(-1, 1, self.group))

    def weight_gradient(self, grad_RB: Tensor) -> Tensor:
        """[R, F]"""
        if self.index_KF is not None:
            return (self._by_group(grad_RB) @ self.x_KFB.transpose(1, 2)).flatten(0, 1)[: self.rows]
        dense = grad_RB @ self.x_BD
        return dense if self.rows_index_RF is None else dense.gather(1, self.rows_index_RF)

    def add_input_gradient(self, grad_RB: Tensor, dx_DB: Tensor) -> None:
        """dx_DB += W^T grad, of the features alone"""
        if self.index_KF is None:
            dx_DB.addmm_(self.weight.T[: len(dx_DB)], grad_RB)
            return
        share_KFB = self.weight[:, :, : self.features].transpose(1, 2) @ self._by_group(grad_RB)
        dx_DB.index_add_(0, self.index_KF[:, : self.features].reshape(-1), share_KFB.view(-1, grad_RB.shape[1]))


def _filled_up(values: Tensor, multiple: int) -> Tensor:
    """The last dimension filled up with -inf to a multiple."""
    missing = -values.shape[-1] % multiple
    return nnf.pad(values, (0, missing), value=-torch.inf) if missing else values


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
    layer: LabelLayer, x_BD: Tensor, positives: Positives, loss: str, quantum: int, width: int
) -> Iterator[tuple[int, Tensor]]:
    """What each group would gain from each of the `width` features: yields (first group, [K, D] fp32) block by block.

    Blocks start at multiples of `quantum` rows (a multiple of the group size).

    The square root of the summed squares of the group's loss gradient by the D possible connections
    (RigL, Evci et al. 2020, growth criterion, taken over the rows that share an index set).
    """
    x_BD = x_BD.detach().float()
    x_DB = x_BD.T.contiguous()
    features_BD = x_BD[:, :width]
    rows = max(quantum, int(BLOCK_BYTES[x_BD.device.type] / 4 / max(width, x_BD.shape[0])) // quantum * quantum)
    for first in range(0, layer.labels, rows):
        last = min(first + rows, layer.labels)
        product = Product(layer, first, last, x_BD, x_DB)
        at = positives.between(layer.start + first, layer.start + last)
        full_RD = loss_gradient_(product.logits(), at, loss) @ features_BD
        group = torch.arange(last - first, device=full_RD.device) // layer.group_size
        energy_KD = full_RD.new_zeros(int(-(-(last - first) // layer.group_size)), width)
        yield first // layer.group_size, energy_KD.index_add_(0, group, full_RD.square_()).sqrt_()


def topk(layers: list[LabelLayer], x_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best labels of each instance: (logits fp32 [B, k] descending, label-order ids int64 [B, k]).

    Streams over label blocks and keeps a running best, so that no [B, L] tensor exists. Which of
    equal logits comes first is not defined. k may not exceed the number of labels.
    """
    x_BD = x_BD.float()
    x_DB = x_BD.T.contiguous()
    best = RunningBest.empty(len(x_BD), k, x_BD.device)
    for layer in layers:
        for first, last in blocks(layer, x_DB):
            best.add(Product(layer, first, last, x_BD, x_DB).logits_in_runs(), layer.start + first)
    return best.value_BK, best.id_BK


def _generator(layer: LabelLayer, options: StepOptions) -> torch.Generator | None:
    """Randomness of one step of one layer, a function of (seed, step, layer) alone."""
    if layer.weight.dtype == torch.float32:
        return None
    generator = torch.Generator(layer.weight.device)
    return generator.manual_seed((options.seed * 1_000_003 + options.step) * 2 + (layer.start > 0))
