"""Activation checkpointing: a layer keeps its input only and is computed again in the backward pass (Chen et al. 2016).

Made for a host that launches kernels more slowly than the GPU runs them: no hooks into the saving of tensors, and
no generator states to store, because a layer's dropout is seeded by the generator's seed and the layer's number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

ODD = 0x9E3779B97F4A7C15


def recompute_layers(layers: list[nn.Module]) -> None:
    """Makes the layers recompute themselves where gradients are asked for; those that do already stay as they are."""
    for number, layer in enumerate(layers):
        if not isinstance(layer.forward, partial):
            layer.forward = partial(_forward, layer.forward, number)


def compile_layers(layers: list[nn.Module]) -> None:
    """Compiles (torch.compile) what the layers compute: one of them, for all run the same code. Before they are made to
    recompute themselves, so that a compiled layer is what is computed again."""
    for layer in layers:
        assert not isinstance(layer.forward, partial), "layers that recompute themselves are compiled too late"
        layer.forward = torch.compile(layer.forward, dynamic=True)


def _forward(forward: Callable, number: int, hidden: Tensor, *rest: Any, **named: Any) -> Any:
    """hidden: the input that gradients flow to; the others are masks and switches."""
    if not torch.is_grad_enabled():
        return forward(hidden, *rest, **named)
    seed = (torch.initial_seed() + (number + 1) * ODD) % 2**63
    return _Recomputed.apply(partial(_with_rest, forward, rest, named), seed, hidden)


def _with_rest(forward: Callable, rest: tuple, named: dict[str, Any], hidden: Tensor) -> Any:
    return forward(hidden, *rest, **named)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Callable, seed: int, hidden: Tensor) -> Any:
        kind = hidden.device.type
        ctx.layer, ctx.seed = layer, seed
        ctx.autocast = partial(
            torch.autocast, kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
        )
        ctx.save_for_backward(hidden)
        seed_dropout(seed, hidden.device)
        return layer(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, Tensor | None]:
        (saved,) = ctx.saved_tensors
        hidden = saved.detach().requires_grad_(ctx.needs_input_grad[2])
        seed_dropout(ctx.seed, hidden.device)
        with torch.enable_grad(), ctx.autocast():
            found = ctx.layer(hidden)
        found = found if isinstance(found, tuple) else (found,)
        pairs = [(a, g) for a, g in zip(found, gradients, strict=True) if g is not None and a.requires_grad]
        torch.autograd.backward([a for a, _ in pairs], [g for _, g in pairs])
        return None, None, hidden.grad


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seeds the generators that dropout draws from (torch.manual_seed does the same at a millisecond a call)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
