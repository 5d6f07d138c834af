"""Measures the classifier step alone, beside one label a group and two dense schemes, on random features.

Features are normalised to length sqrt(D), as the trainer's are; every instance has five labels drawn at random.
Each variant is made, measured and freed before the next one is made. Source of the dense schemes: see `dense`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.bench import dense
from engine.bench.measure import MEMORY, Build, check_choice, machine, measure
from engine.bench.shapes import Shape
from engine.kernels.dispatch import resolve_backend
from engine.kernels.layer import Positives, StepOptions
from engine.model.classifier import WEIGHT_STD, Classifier, ClassifierShape
from engine.peak_memory import bound_workspaces
from engine.planning.classifier_memory import classifier_bytes
from engine.planning.hardware import detect

POSITIVES = 5  # labels an instance
UNGROUPED_LABELS = 131_072  # one label a group is measured on at most so many
LEARNING_RATE = 1e-3
SEED = 0
SCRATCH_BYTES = 256 * 2**20  # what a sparse step takes beside the classifier, generously


@dataclass(frozen=True)
class HeadOptions:
    """How the variants are made and measured; see `engine bench head --help`. `only`: names of VARIANTS."""

    dtype: str = "auto"
    optimizer: str = "rowwise"
    loss: str = "bce"
    backend: str = "auto"
    deterministic: bool = False
    repeats: int | None = None
    only: tuple[str, ...] = ("ours", "g1", "elmo", "renee")
    device: str = "auto"

    def __post_init__(self) -> None:
        check_choice(self.only, VARIANTS, self.repeats)


@dataclass(frozen=True)
class Setting:
    """What all variants share: the shape, how to measure it (dtype resolved), and where."""

    shape: Shape
    options: HeadOptions
    device: torch.device

    def batch(self, labels: int) -> tuple[Tensor, Positives]:
        """(x_BD fp32 on the device, distinct positives among the first `labels` labels)"""
        batch, width = self.shape.batch, self.shape.width
        generator = torch.Generator(self.device).manual_seed(SEED)
        x_BD = torch.randn(batch, width, generator=generator, device=self.device)
        x_BD *= width**0.5 / x_BD.norm(dim=1, keepdim=True)
        rng = np.random.default_rng(SEED)
        each = min(POSITIVES, labels)
        label = [rng.choice(labels, each, replace=False, shuffle=False) for _ in range(batch)]
        return x_BD, Positives.from_rows(np.arange(0, each * batch + 1, each), np.concatenate(label), self.device)


@dataclass(frozen=True)
class Variant:
    """One row of the result before it is measured: `bytes_needed` predicts the peak, `build` makes it."""

    labels: int
    note: str
    bytes_needed: int
    build: Build


def bench_head(shape: Shape, options: HeadOptions, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measures `options.only`; returns {machine, shape, options, memory, variants: [Measurement]}.

    progress: told what is measured next. Raises EnvironmentProblem for a device or a backend that is not there.
    """
    hardware = detect(options.device)
    if options.dtype == "auto":
        options = replace(options, dtype=hardware.compute if hardware.device == "cuda" else "fp32")
    device = torch.device(hardware.device)
    setting = Setting(shape, options, device)
    _, backend = resolve_backend(options.backend, device)
    measurements = []
    for name in options.only:
        variant = VARIANTS[name](setting)
        progress(f"{name}: {variant.labels:,} labels, {variant.note}")
        measurements.append(
            measure(name, variant.labels, variant.note, variant.bytes_needed, variant.build, device, options.repeats)
        )
    return {
        "machine": machine(device),
        "shape": asdict(shape),
        "options": {**asdict(options), "device": hardware.device, "backend": backend},
        "memory": MEMORY[hardware.device],
        "variants": measurements,
    }


def ours(setting: Setting) -> Variant:
    """The sparse classifier as it is trained."""
    return _sparse(setting, setting.shape, f"sparse, groups of {setting.shape.group_size}")


def one_label_a_group(setting: Setting) -> Variant:
    """The same with features of its own for every label, which only torch computes."""
    capped = replace(setting.shape, labels=min(setting.shape.labels, UNGROUPED_LABELS), group_size=1)
    note = "sparse, one label a group"
    if capped.labels < setting.shape.labels:
        note += f", labels cut from {setting.shape.labels:,}"
    return _sparse(setting, capped, note)


def elmo(setting: Setting) -> Variant:
    """Dense, in chunks of labels."""
    shape = setting.shape

    def build() -> tuple[Callable[[], object], int]:
        weight_LD = random_weight(shape.labels, shape.width, torch.bfloat16, setting.device)
        layer = dense.ChunkedSGD(weight_LD, LEARNING_RATE, SEED)
        x_BD, positives = setting.batch(shape.labels)
        return lambda: layer.step(x_BD, positives), 2 * weight_LD.nbytes

    needed = dense.chunked_sgd_bytes(shape.labels, shape.width, shape.batch, setting.device)
    return Variant(shape.labels, "dense bf16, label chunks, SGD, BCE (ELMO's scheme)", needed, build)


def renee(setting: Setting) -> Variant:
    """Dense, all at once."""
    shape = setting.shape

    def build() -> tuple[Callable[[], object], int]:
        weight_LD = random_weight(shape.labels, shape.width, torch.float32, setting.device)
        layer = dense.AutogradAdam(weight_LD, LEARNING_RATE)
        x_BD, positives = setting.batch(shape.labels)
        return lambda: layer.step(x_BD, positives), 3 * 2 * weight_LD.nbytes  # weights and two moments

    needed = dense.autograd_adam_bytes(shape.labels, shape.width, shape.batch)
    return Variant(shape.labels, "dense fp32, bf16 autocast, autograd, Adam, BCE (Renée's scheme)", needed, build)


VARIANTS: dict[str, Callable[[Setting], Variant]] = {
    "ours": ours,
    "g1": one_label_a_group,
    "elmo": elmo,
    "renee": renee,
}


def _sparse(setting: Setting, shape: Shape, note: str) -> Variant:
    options = setting.options
    numbers = (shape.labels, shape.head, shape.width, shape.fan_in, shape.group_size)

    def build() -> tuple[Callable[[], object], int]:
        backend, _ = resolve_backend(options.backend, setting.device)
        layout = ClassifierShape(*numbers, optimizer=options.optimizer, weight_dtype=options.dtype)
        classifier = Classifier.new(layout, backend, setting.device, SEED)
        x_BD, positives = setting.batch(shape.labels)
        base = StepOptions(options.loss, options.optimizer, LEARNING_RATE, deterministic=options.deterministic)
        numbered = count(1)

        def step() -> None:
            with deterministic(options.deterministic):
                classifier.step(x_BD, positives, replace(base, step=next(numbered)))

        return step, step_floor_bytes(classifier)

    layers = [
        (shape.head, shape.width, 0, options.dtype, 0),
        (shape.labels - shape.head, shape.fan_in, shape.group_size, options.dtype, 0),
    ]
    parts = classifier_bytes(layers, options.optimizer, shape.width)
    if shape.head:
        note += f", {shape.head:,} dense labels"
    note += f", {options.dtype}, {options.optimizer}, {options.loss}"
    return Variant(shape.labels, note, sum(parts.values()) + SCRATCH_BYTES, build)


def step_floor_bytes(classifier: Classifier) -> int:
    """Weights, bias and optimizer state read and written once, the feature ids read once."""
    tensors = classifier.tensors()
    return sum(tensor.nbytes * (1 if name.endswith(".index") else 2) for name, tensor in tensors.items())


def random_weight(labels: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Dense weights [L, D] as the trainer would draw them."""
    weight_LD = torch.empty(labels, width, dtype=dtype, device=device)
    return weight_LD.normal_(std=WEIGHT_STD, generator=torch.Generator(device).manual_seed(SEED))


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Torch's own operations too, where results must be the same bits every time, as in training."""
    bound_workspaces(wanted)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(wanted or before[0], warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
