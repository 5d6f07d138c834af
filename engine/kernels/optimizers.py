"""Updates of one block of classifier rows, in fp32 arithmetic: rowwise, sgd, adamw8bit.

The block's gradient exists, the layer's never does. Rowwise keeps one second moment a label:
v <- beta2 v + (1 - beta2) mean_f g^2, w <- w (1 - lr wd) - lr g / (sqrt(v / (1 - beta2^t)) + eps);
the bias moves with its label's step size. Columns that read words have a second moment and a learning rate of their
own: words are rare and features are not, and one step size for both would starve the words. adamw8bit is AdamW with
8-bit moments, its bias with fp32 moments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.kernels.adamw8bit import QUANTIZATION_BLOCK, adamw8bit_, new_moments
from engine.kernels.layer import LabelLayer, StepOptions
from engine.kernels.products import Part
from engine.kernels.rounding import stochastic_round


def new_state(optimizer: str, weight: Tensor, words: int = 0) -> dict[str, Tensor]:
    """Zero state for weight [L, F], whose last `words` columns read words, on its device: rowwise 4 bytes a label, 8 if
    it reads words, sgd none, adamw8bit about 2 a weight."""
    labels, fan_in = weight.shape
    device = weight.device
    if optimizer == "sgd":
        return {}
    if optimizer == "rowwise":
        names = ["second_moment", "word_moment"] if words else ["second_moment"]
        return {name: torch.zeros(labels, device=device) for name in names}
    assert optimizer == "adamw8bit", optimizer
    moments = new_moments(labels * fan_in, device)
    return {
        **{name: t.view(labels, fan_in) if name.startswith("moment") else t for name, t in moments.items()},
        "bias_moment1": torch.zeros(labels, device=device),
        "bias_moment2": torch.zeros(labels, device=device),
    }


def row_quantum(optimizer: str, group_size: int, fan_in: int) -> int:
    """A block of rows has to start at a multiple of this: whole groups, and whole quantization blocks."""
    if optimizer != "adamw8bit":
        return group_size
    return group_size * (QUANTIZATION_BLOCK // math.gcd(group_size * fan_in, QUANTIZATION_BLOCK))


def update_rows(
    layer: LabelLayer,
    first: int,
    last: int,
    parts: list[Part],
    gradients: list[Tensor],
    grad_bias_R: Tensor,
    options: StepOptions,
    generator: torch.Generator | None,
) -> None:
    """Moves the rows [first, last) of `layer` in place. parts, gradients: of its features and, where it reads any, of
    its words; gradients and grad_bias_R are fp32 and may be overwritten."""
    bias = layer.bias[first:last]
    if options.optimizer == "adamw8bit":
        weight = layer.rows(first, last).contiguous()
        adamw8bit_(
            weight,
            torch.cat(gradients, dim=1) if len(gradients) > 1 else gradients[0],
            layer.state,
            first * layer.fan_in,
            step=options.step,
            learning_rate=options.learning_rate,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
        _adam_bias(layer, first, last, bias, grad_bias_R, options)
        _store(layer, first, last, slice(None), weight, generator)
        return
    kinds = (
        ("second_moment", options.learning_rate, layer.features),
        ("word_moment", options.word_learning_rate, layer.words),
    )
    for part, grad_RC, kind in zip(parts, gradients, kinds[: len(parts)], strict=True):
        rate_R = _move(layer, first, part.value_RC, grad_RC, *kind, options)
        _store(layer, first, last, part.at, part.value_RC, generator)
        if part is parts[0]:
            bias.sub_(grad_bias_R * rate_R)


def _move(
    layer: LabelLayer,
    first: int,
    value_RC: Tensor,
    grad_RC: Tensor,
    moment: str,
    learning_rate: float,
    read: int,
    options: StepOptions,
) -> Tensor:
    """One step of some columns, rowwise or sgd; returns the step sizes, [R] or a scalar. read: how many columns there
    are of their kind; those that are not here have no gradient."""
    rate = torch.full((), learning_rate, device=grad_RC.device)
    if options.optimizer == "rowwise":
        moment_R = layer.state[moment][first : first + len(grad_RC)]
        mean_square = torch.linalg.vector_norm(grad_RC, dim=1).square_().div_(read)
        moment_R.lerp_(mean_square, 1.0 - options.beta2)
        rms = moment_R.div(1.0 - options.beta2**options.step).sqrt_()
        rate = rate / rms.add_(options.eps)
    decay = 1.0 - learning_rate * options.weight_decay
    if decay != 1.0:
        value_RC.mul_(decay)
    value_RC.addcmul_(grad_RC, rate[:, None] if rate.ndim else rate, value=-1.0)
    return rate


def _store(
    layer: LabelLayer,
    first: int,
    last: int,
    at: slice | Tensor,
    value_RC: Tensor,
    generator: torch.Generator | None,
) -> None:
    """value_RC, which LabelLayer.rows gave, back to its rows."""
    if layer.weight.dtype == torch.float32 and isinstance(at, slice):
        return  # a view of the rows, which was changed in place
    layer.put(first, last, at, stochastic_round(value_RC.mul_(layer.scale), layer.weight.dtype, generator))


def _adam_bias(layer: LabelLayer, first: int, last: int, bias: Tensor, grad: Tensor, options: StepOptions) -> None:
    moment1 = layer.state["bias_moment1"][first:last].lerp_(grad, 1.0 - options.beta1)
    moment2 = layer.state["bias_moment2"][first:last].lerp_(grad.square(), 1.0 - options.beta2)
    rms = moment2.div(1.0 - options.beta2**options.step).sqrt_().add_(options.eps)
    bias.sub_(moment1.div(1.0 - options.beta1**options.step).div_(rms).mul_(options.learning_rate))
