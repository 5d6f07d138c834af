"""Chooses, once a run, the backend that computes the classifier: the same functions, other machines."""

from __future__ import annotations

from types import ModuleType

import torch

from engine.errors import ConfigError
from engine.kernels import reference


def resolve_backend(name: str, device: torch.device | str) -> tuple[ModuleType, str]:
    """(module with `step`, `topk` and `gradient_energy`, one line that says which and why).

    name: auto or torch. Raises ConfigError for any other name.
    """
    if name not in ("auto", "torch"):
        raise ConfigError(f"classifier.backend = {name!r} is unknown; use auto or torch")
    return reference, f"classifier backend: torch, label block by label block, on {device}"
