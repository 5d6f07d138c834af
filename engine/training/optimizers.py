"""The optimizer of the encoder and the intermediate layer, and its state as plain named tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from engine.config import RunConfig
from engine.model.features import FeatureModel

BETAS = (0.9, 0.999)


def make_optimizer(model: FeatureModel, config: RunConfig) -> torch.optim.Optimizer | None:
    """AdamW over the trainable parameters, 8-bit states by default; None where nothing below the classifier trains.

    Biases and normalisation weights are not decayed. Every group carries its peak learning rate as "peak".
    """
    groups: list[dict[str, Any]] = []
    if model.encoder is not None:
        peak, decay = config.encoder.learning_rate, config.encoder.weight_decay
        groups += _groups(model.encoder, peak, decay)
    if model.head.linear is not None:
        groups += _groups(model.head.linear, config.intermediate.learning_rate, 0.0)
    if not groups:
        return None
    if config.encoder.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=BETAS)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, betas=BETAS)


def _groups(module: torch.nn.Module, peak: float, decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    parts = (([p for p in parameters if p.ndim > 1], decay), ([p for p in parameters if p.ndim <= 1], 0.0))
    return [{"params": part, "lr": peak, "peak": peak, "weight_decay": wd} for part, wd in parts if part]


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The state by path, such as "3/exp_avg": (tensors, numbers). Tensors are copies on the CPU."""
    tensors, numbers = {}, {}
    for path, value in _leaves(optimizer.state_dict()["state"], ""):
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().clone()
        else:
            numbers[path] = value
    return tensors, numbers


def load_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
    """The inverse of `state_tensors`."""
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**tensors, **numbers}.items():
        parameter, *entries, last = path.split("/")
        place = state.setdefault(int(parameter), {})
        for entry in entries:
            place = place.setdefault(entry, {})
        place[last] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _leaves(tree: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in nested dictionaries; bitsandbytes nests its quantized state."""
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}/")
        else:
            yield path, value
