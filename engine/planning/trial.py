"""Trains a classifier on random features for about a second, on the device and with the kernels that training takes.

The tiny step of the kernels' self-test shows that they compute right; this one shows how fast this machine is,
at the width of the default encoder.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from engine.errors import EnvironmentProblem
from engine.kernels.adamw8bit import adamw8bit_, new_moments
from engine.kernels.dispatch import resolve_backend
from engine.kernels.layer import Positives, StepOptions
from engine.kernels.self_test import cause
from engine.model.classifier import Classifier, ClassifierShape
from engine.planning.hardware import Hardware

LABELS = {"cuda": 1_000_000, "cpu": 20_000}
WIDTH, FAN_IN, GROUP_SIZE, BATCH = 384, 64, 32, 128
WARM_UP, FEWEST, MOST, SECONDS = 2, 3, 100, 1.5  # steps not timed, and timed: until so long has passed
ELEMENTS = 8192  # of the tensor on which the 8-bit optimizer is tried


@dataclass(frozen=True)
class Trial:
    """ms: mean time of one step · kernels: which computed it, and why · labels_per_second: labels / step time."""

    kernels: str
    labels: int
    fan_in: int
    batch: int
    dtype: str
    steps: int
    ms: float
    labels_per_second: float


def run_trial(hardware: Hardware) -> Trial:
    """Raises EnvironmentProblem if the loss does not fall, and whatever torch raises where it cannot compute."""
    device = torch.device(hardware.device)
    dtype = hardware.compute if device.type == "cuda" else "fp32"
    backend, kernels = resolve_backend("auto", device)
    labels = LABELS[device.type]
    shape = ClassifierShape(labels, 0, WIDTH, FAN_IN, GROUP_SIZE, weight_dtype=dtype)
    classifier = Classifier.new(shape, backend, device, 0)
    x_BD = torch.randn(BATCH, WIDTH, generator=torch.Generator(device).manual_seed(0), device=device)
    own = np.random.default_rng(0).choice(labels, BATCH, replace=False)  # a label for each instance
    positives = Positives.from_rows(np.arange(BATCH + 1), own, device)
    losses = []

    def step() -> None:
        options = StepOptions(step=len(losses) + 1, want_loss=True)
        losses.append(classifier.step(x_BD, positives, options)[1].item())  # waits for the device

    for _ in range(WARM_UP):
        step()
    began = time.perf_counter()
    while len(losses) < WARM_UP + MOST:
        step()
        seconds = time.perf_counter() - began
        if seconds > SECONDS and len(losses) >= WARM_UP + FEWEST:
            break
    if not (math.isfinite(losses[-1]) and losses[-1] < losses[0]):
        raise EnvironmentProblem(f"the classifier does not learn here: its loss went from {losses[0]} to {losses[-1]}")
    steps = len(losses) - WARM_UP
    return Trial(
        kernels, labels, FAN_IN, BATCH, dtype, steps, round(1e3 * seconds / steps, 3), round(labels * steps / seconds)
    )


def optimizer_problem(device: torch.device | str) -> str | None:
    """Why bitsandbytes' 8-bit AdamW does not work on `device`, or None."""
    try:
        weight = torch.ones(ELEMENTS, device=device)
        moments = new_moments(ELEMENTS, device)
        settings = {"learning_rate": 0.5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        adamw8bit_(weight, torch.ones_like(weight), moments, 0, step=1, **settings)
        moved = (weight - 0.5).abs().max().item()  # Adam's first step is the learning rate
    except Exception as error:  # native libraries raise anything
        return cause(error)
    return None if moved < 0.05 else f"it computes wrong results here (a weight is off by {moved:.2g})"
