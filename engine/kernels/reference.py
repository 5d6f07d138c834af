"""The classifier step in plain torch: the specification of the fused kernels, and the backend that runs anywhere.

One block of labels at a time: logits, loss gradient, weight gradient, update, and the block's share of
dx (see engine.kernels.products). Everything is fp32 arithmetic whatever the weights are stored in. No tensor is larger
than BLOCK_BYTES (or one group's, or where it reads words a few times that), so a step of a hundred million labels needs
no more scratch memory than one of a thousand. Source of the scheme: design of ELMO (chunked classifier update) and
Spartex (fixed fan-in).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.kernels.layer import LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import row_quantum, update_rows
from engine.kernels.products import BLOCK_BYTES, Columns, Product, block_rows
from engine.kernels.running_best import RunningBest


def step(layer: LabelLayer, x_BD: Tensor, positives: Positives, dx_BD: Tensor, options: StepOptions) -> Tensor | None:
    """One training step of `layer`: updates it in place and adds its share to dx_BD.

    x_BD: features and words, any float dtype · dx_BD: fp32, gradient of the batch-mean loss with respect to the
    features, the first columns of x, taken at the weights before the update; left as it is where options.wants_dx is
    False · returns the layer's part of that loss (fp32 scalar) if `options.want_loss`, else None.
    """
    moves_all = options.weight_decay > 0 or options.optimizer == "adamw8bit"
    x = Columns.of(x_BD.detach().float(), layer, moves_all)
    dx_DB = torch.zeros(dx_BD.shape[::-1], device=dx_BD.device) if options.wants_dx else None
    generator = _generator(layer, options)
    total = torch.zeros((), device=dx_BD.device) if options.want_loss else None
    quantum = row_quantum(options.optimizer, layer.group_size if layer.index is not None else 1, layer.fan_in)
    for first, last in blocks(layer, x, quantum):
        loss = _step_block(layer, first, last, x, positives, dx_DB, options, generator)
        if total is not None:
            total += loss
    if dx_DB is not None:
        dx_BD += dx_DB.T
    return total


def _step_block(
    layer: LabelLayer,
    first: int,
    last: int,
    x: Columns,
    positives: Positives,
    dx_DB: Tensor | None,
    options: StepOptions,
    generator: torch.Generator | None,
) -> Tensor | None:
    """`step` of the rows [first, last). A function, so that nothing of one block is left when the next begins."""
    factor, loss = options.loss_weight / x.batch, None
    product = Product(layer, first, last, x)
    logits_RB = product.logits()
    at = positives.between(layer.start + first, layer.start + last)
    if options.want_loss:
        loss = loss_value(logits_RB, at, options.loss) * factor
    grad_RB = loss_gradient_(logits_RB, at, options.loss).mul_(factor)
    gradients = product.gradients(grad_RB)
    if dx_DB is not None:
        product.add_input_gradient(grad_RB, dx_DB)
    update_rows(layer, first, last, product.parts, gradients, grad_RB.sum(dim=1), options, generator)
    return loss


def blocks(layer: LabelLayer, x: Columns, quantum: int = 1) -> Iterator[tuple[int, int]]:
    """Spans of rows, see `block_rows`; the last may end within a group."""
    rows = block_rows(layer, x, quantum)
    for first in range(0, layer.labels, rows):
        yield first, min(first + rows, layer.labels)


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
    x = Columns.of(x_BD.detach().float(), layer, moves_all=False)
    most = int(BLOCK_BYTES[x_BD.device.type] / 4 / width) // quantum * quantum
    rows = max(quantum, min(most, block_rows(layer, x, quantum)))
    for first in range(0, layer.labels, rows):
        last = min(first + rows, layer.labels)
        yield first // layer.group_size, _energy_of_block(layer, first, last, x, positives, loss, width)


def _energy_of_block(
    layer: LabelLayer, first: int, last: int, x: Columns, positives: Positives, loss: str, width: int
) -> Tensor:
    """`gradient_energy` of the rows [first, last), [K, D]."""
    at = positives.between(layer.start + first, layer.start + last)
    full_RD = loss_gradient_(Product(layer, first, last, x).logits(), at, loss) @ x.x_XB[:width].T
    group_R = torch.arange(last - first, device=full_RD.device) // layer.group_size
    energy_KD = full_RD.new_zeros(-(-(last - first) // layer.group_size), width)
    return energy_KD.index_add_(0, group_R, full_RD.square_()).sqrt_()


def topk(layers: list[LabelLayer], x_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best labels of each instance: (logits fp32 [B, k] descending, label-order ids int64 [B, k]).

    Streams over label blocks and keeps a running best, so that no [B, L] tensor exists. Which of
    equal logits comes first is not defined. k may not exceed the number of labels.
    """
    best = RunningBest.empty(len(x_BD), k, x_BD.device)
    for layer in layers if len(x_BD) else []:
        x = Columns.of(x_BD.float(), layer, moves_all=False)
        for first, last in blocks(layer, x):
            best.add(Product(layer, first, last, x).logits_in_runs(), layer.start + first)
    return best.value_BK, best.id_BK


def _generator(layer: LabelLayer, options: StepOptions) -> torch.Generator | None:
    """Randomness of one step of one layer, a function of (seed, step, layer) alone."""
    if layer.weight.dtype == torch.float32:
        return None
    generator = torch.Generator(layer.weight.device)
    return generator.manual_seed((options.seed * 1_000_003 + options.step) * 2 + (layer.start > 0))
