"""Chooses, once a run, the backend that computes the classifier: the same functions, other machines."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from engine.errors import ConfigError, EnvironmentProblem
from engine.kernels import reference
from engine.kernels.self_test import cause, self_test

OLDEST_CAPABILITY = (8, 0)  # of a GPU for the fused kernels: bf16 on tensor cores


def resolve_backend(name: str, device: torch.device | str) -> tuple[ModuleType, str]:
    """(module with `step`, `topk` and `gradient_energy`, one line that says which and why).

    name: auto, torch or triton. auto takes triton where it works. Raises EnvironmentProblem when triton is asked for
    and does not work, ConfigError for any other name.
    """
    if name not in ("auto", "torch", "triton"):
        raise ConfigError(f"classifier.backend = {name!r} is unknown; use auto, torch or triton")
    if name == "torch":
        return reference, "torch, label block by label block"
    problem = triton_problem(torch.device(device))
    if problem is None:
        from engine.kernels import triton_backend

        return triton_backend, "triton, fused kernels"
    if name == "triton":
        raise EnvironmentProblem(f"classifier.backend = triton does not work here: {problem}; use auto or torch")
    return reference, f"torch, label block by label block ({problem})"


def triton_problem(device: torch.device) -> str | None:
    """Why the fused kernels cannot run on `device`, or None."""
    if device.type != "cuda":
        return "the fused kernels need a CUDA device"
    if torch.version.hip:
        return "the fused kernels are for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, the fused kernels need 8.0"
    return fused_step_problem(device)


@cache
def fused_step_problem(device: torch.device) -> str | None:
    """Why a tiny fused step does not work on `device`, or None; tried once a process."""
    try:
        from engine.kernels import triton_backend
    except Exception as error:  # a broken installation raises more than ImportError
        return cause(error)
    return self_test(triton_backend.step, device)
