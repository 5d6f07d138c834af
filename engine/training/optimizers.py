"""The optimizer of the encoder and the intermediate layer, and its state as plain named tensors."""

from __future__ import annotations

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
    """The state by "parameter.entry": (tensors, numbers). Tensors are copies on the CPU."""
    tensors, numbers = {}, {}
    for parameter, state in optimizer.state_dict()["state"].items():
        for entry, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{entry}"] = value.detach().cpu().clone()
            else:
                numbers[f"{parameter}.{entry}"] = value
    return tensors, numbers


def load_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
    """The inverse of `state_tensors`."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        parameter, _, entry = name.partition(".")
        state.setdefault(int(parameter), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
