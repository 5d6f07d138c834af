"""One tiny classifier step, to learn before a training whether a backend compiles, starts and computes right here.

What breaks on users' machines shows only then: no C compiler for the launcher, a driver older than the compiler's
output, a GPU newer than the compiler.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from engine.kernels import reference
from engine.kernels.layer import LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import new_state

LABELS, FAN_IN, WIDTH, BATCH = 32, 16, 32, 16
TOLERANCE = 0.05  # of the largest value of a tensor: products and stored weights have 8 bits
LEARNING_RATE = 0.1  # moves weights by far more than the tolerance


def self_test(step: Callable, device: torch.device | str) -> str | None:
    """Runs `step` (see `reference.step`) beside the reference: one line on what is wrong with it, or None.

    Raises torch.OutOfMemoryError, which says nothing about `step`.
    """
    try:
        found = _results(step, device)
        expected = _results(reference.step, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers and drivers raise anything
        return cause(error)
    for name, value in expected.items():
        error = (found[name] - value).abs().max().item() / value.abs().max().item()
        if not error <= TOLERANCE:  # so that NaN is wrong, too
            return f"it computes wrong results here ({name} is off by {error:.0%})"
    return None


def cause(error: BaseException) -> str:
    """What went wrong in one line, and what helps where that is known."""
    if isinstance(error, ImportError) and error.name == "triton":
        return "triton is not installed; on Windows the package is triton-windows"
    if isinstance(error, subprocess.CalledProcessError):
        command = error.cmd if isinstance(error.cmd, str) else " ".join(error.cmd[:1])
        return f"{command} failed; install gcc and the C headers of Python (python3-dev)"
    line = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    if "C compiler" in line:
        return f"{line.rstrip('.')}; install gcc (on Windows: the package triton-windows, which brings a compiler)"
    return line


def _results(step: Callable, device: torch.device | str) -> dict[str, Tensor]:
    """What one step of a rowwise-trained bf16 layer leaves, on the CPU in fp32."""
    random = torch.Generator().manual_seed(1)
    index_MF = torch.randperm(WIDTH, generator=random)[None, :FAN_IN].sort(dim=1).values.to(torch.uint16)
    weight_LF = (torch.randn(LABELS, FAN_IN, generator=random) * 0.5).to(torch.bfloat16)
    layer = LabelLayer(weight_LF.to(device), torch.zeros(LABELS, device=device), index_MF.to(device), LABELS)
    layer.state = new_state("rowwise", layer.weight)
    x_BD = torch.randn(BATCH, WIDTH, generator=random).to(device)
    dx_BD = torch.zeros(BATCH, WIDTH, device=device)
    positives = Positives.from_rows(np.arange(BATCH + 1), np.arange(BATCH) * 2, device)
    options = StepOptions(learning_rate=LEARNING_RATE, want_loss=True)
    loss = step(layer, x_BD, positives, dx_BD, options)
    left = {"dx": dx_BD, "loss": loss, "weight": layer.weight, "bias": layer.bias, **layer.state}
    return {name: tensor.float().cpu() for name, tensor in left.items()}
