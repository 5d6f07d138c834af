"""Updates of one block of classifier rows, in fp32 arithmetic: rowwise, sgd, adamw8bit.

The block's gradient exists, the layer's never does. Rowwise keeps one second moment a label:
v <- beta2 v + (1 - beta2) mean_f g^2, w <- w (1 - lr wd) - lr g / (sqrt(v / (1 - beta2^t)) + eps);
the bias moves with its label's step size. adamw8bit is AdamW with 8-bit moments, its bias with fp32 moments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.kernels.adamw8bit import QUANTIZATION_BLOCK, adamw8bit_, new_moments
from engine.kernels.layer import LabelLayer, StepOptions
from engine.kernels.rounding import stochastic_round


def new_state(optimizer: str, weight: Tensor) -> dict[str, Tensor]:
    """Zero state for weight [L, F] on its device: rowwise 4 bytes a label, sgd none, adamw8bit about 2 a weight."""
    labels, fan_in = weight.shape
    device = weight.device
    if optimizer == "sgd":
        return {}
    if optimizer == "rowwise":
        return {"second_moment": torch.zeros(labels, device=device)}
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
    grad_RF: Tensor,
    grad_bias_R: Tensor,
    options: StepOptions,
    generator: torch.Generator | None,
) -> None:
    """Moves the rows [first, last) of `layer` in place; grad_RF and grad_bias_R are fp32 and may be overwritten."""
    weight = layer.rows(first, last)
    bias = layer.bias[first:last]
    decay = 1.0 - options.learning_rate * options.weight_decay
    if options.optimizer == "adamw8bit":
        weight = weight.contiguous()
        adamw8bit_(
            weight,
            grad_RF,
            layer.state,
            first * layer.fan_in,
            step=options.step,
            learning_rate=options.learning_rate,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
        )
        _adam_bias(layer, first, last, bias, grad_bias_R, options)
    else:
        rate = torch.full((), options.learning_rate, device=weight.device)
        if options.optimizer == "rowwise":
            moment = layer.state["second_moment"][first:last]
            mean_square = torch.linalg.vector_norm(grad_RF, dim=1).square_().div_(grad_RF.shape[1])
            moment.lerp_(mean_square, 1.0 - options.beta2)
            rms = moment.div(1.0 - options.beta2**options.step).sqrt_()
            rate = rate / rms.add_(options.eps)
            grad_RF.mul_(rate[:, None])
        else:
            grad_RF.mul_(rate)
        bias.sub_(grad_bias_R * rate)
        weight = weight.mul_(decay) if decay != 1.0 else weight
        weight.sub_(grad_RF)
    _store(layer, first, last, weight, generator)


def _store(layer: LabelLayer, first: int, last: int, weight: Tensor, generator: torch.Generator | None) -> None:
    if layer.weight.dtype == torch.float32:
        return  # `weight` is a view of the rows and was changed in place
    layer.weight[first:last] = stochastic_round(weight.mul_(layer.scale), layer.weight.dtype, generator)


def _adam_bias(layer: LabelLayer, first: int, last: int, bias: Tensor, grad: Tensor, options: StepOptions) -> None:
    moment1 = layer.state["bias_moment1"][first:last].lerp_(grad, 1.0 - options.beta1)
    moment2 = layer.state["bias_moment2"][first:last].lerp_(grad.square(), 1.0 - options.beta2)
    rms = moment2.div(1.0 - options.beta2**options.step).sqrt_().add_(options.eps)
    bias.sub_(moment1.div(1.0 - options.beta1**options.step).div_(rms).mul_(options.learning_rate))
