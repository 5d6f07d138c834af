"""The last layer: a dense head for the most frequent labels and a sparse tail for all others.

Holds the layers and hands every computation to the kernels' backend. Everything the size of the
classifier is made and kept in place, block by block: no second copy ever exists.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import ModuleType

import torch
from torch import Tensor

from engine.kernels.layer import LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import new_state
from engine.model.rewiring import narrow_layer

WEIGHT_STD = 0.02
BIAS = -6.0
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}
INIT_ELEMENTS = 1 << 22  # random numbers drawn at once


@dataclass(frozen=True)
class ClassifierShape:
    """labels L = head + tail, width D, fan_in F and group_size G of the tail; optimizer and storage type."""

    labels: int
    head: int
    width: int
    fan_in: int
    group_size: int
    optimizer: str = "rowwise"
    weight_dtype: str = "fp32"


@dataclass
class ClassifierStep:
    """A step on its way: dx_BD fp32, of the layers done so far, and their losses (None where not asked for)."""

    dx_BD: Tensor
    losses: list[Tensor | None] = field(default_factory=list)

    @classmethod
    def new(cls, x_BD: Tensor) -> ClassifierStep:
        """One that has not begun, for features x_BD."""
        return cls(torch.zeros(x_BD.shape, device=x_BD.device))

    def loss(self) -> Tensor | None:
        return None if None in self.losses else sum(self.losses[1:], self.losses[0])


class Classifier:
    """layers: head (dense) and tail (sparse), of which one may be missing; backend: see engine.kernels.dispatch."""

    def __init__(self, shape: ClassifierShape, layers: list[LabelLayer], backend: ModuleType) -> None:
        self.shape, self.layers, self.backend = shape, layers, backend

    @classmethod
    def new(cls, shape: ClassifierShape, backend: ModuleType, device: torch.device | str, seed: int) -> Classifier:
        """Random weights and connections, bias BIAS, optimizer state zero."""
        generator = torch.Generator(device).manual_seed(seed)
        tail = shape.labels - shape.head
        layers = []
        if shape.head:
            layers.append(_new_layer(shape, 0, shape.head, None, generator))
        if tail:
            groups = -(-tail // shape.group_size)
            index = random_index(groups, shape.fan_in, shape.width, generator)
            layers.append(_new_layer(shape, shape.head, tail, index, generator))
        return cls(shape, layers, backend)

    @classmethod
    def from_tensors(cls, shape: ClassifierShape, tensors: dict[str, Tensor], backend: ModuleType) -> Classifier:
        """A classifier for prediction around `tensors`, named as by `tensors()`; without optimizer state."""
        layers = []
        for part, start in (("head", 0), ("tail", shape.head)):
            if f"{part}.weight" in tensors:
                weight, bias = tensors[f"{part}.weight"], tensors[f"{part}.bias"]
                layers.append(LabelLayer(weight, bias, tensors.get(f"{part}.index"), shape.group_size, start))
        return cls(shape, layers, backend)

    def step(self, x_BD: Tensor, positives: Positives, options: StepOptions) -> tuple[Tensor, Tensor | None]:
        """Trains on one batch. x_BD: features · returns (dx_BD fp32, the loss if options.want_loss)."""
        unfinished = ClassifierStep.new(x_BD)
        self.go_on(unfinished, x_BD, positives, options)
        return unfinished.dx_BD, unfinished.loss()

    def go_on(self, begun: ClassifierStep, x_BD: Tensor, positives: Positives, options: StepOptions) -> None:
        """Trains the layers that are not yet done in `begun`: a step that ran out of memory trains none twice."""
        for layer in self.layers[len(begun.losses) :]:
            begun.losses.append(self.backend.step(layer, x_BD, positives, begun.dx_BD, options))

    def narrow(self, fan_in: int) -> None:
        """Lowers the fan-in of the tail; each group keeps its strongest connections."""
        narrow_layer(self.layers[-1], fan_in, self.shape.optimizer)
        self.shape = replace(self.shape, fan_in=fan_in)

    def topk(self, x_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(logits fp32 [B, k] descending, label-order ids int64 [B, k])"""
        return self.backend.topk(self.layers, x_BD, min(k, self.shape.labels))

    def tensors(self, with_state: bool = True) -> dict[str, Tensor]:
        """Everything a checkpoint needs, or without state everything prediction needs, by name; no copies."""
        return {
            f"{'tail' if layer.index is not None else 'head'}.{name}": tensor
            for layer in self.layers
            for name, tensor in layer.tensors().items()
            if with_state or not name.startswith("state.")
        }


def _new_layer(
    shape: ClassifierShape, start: int, labels: int, index: Tensor | None, generator: torch.Generator
) -> LabelLayer:
    device = generator.device
    fan_in = shape.width if index is None else shape.fan_in
    weight = torch.empty(labels, fan_in, dtype=DTYPES[shape.weight_dtype], device=device)
    layer = LabelLayer(weight, torch.full((labels,), BIAS, device=device), index, shape.group_size, start)
    rows = max(1, INIT_ELEMENTS // fan_in)
    for first in range(0, labels, rows):
        block = weight[first : first + rows]
        block.copy_(torch.randn(block.shape, generator=generator, device=device).mul_(WEIGHT_STD * layer.scale))
    layer.state = new_state(shape.optimizer, weight)
    return layer


def random_index(groups: int, fan_in: int, width: int, generator: torch.Generator) -> Tensor:
    """[M, F] int16 (int32 from 32,768 features on): distinct feature ids, ascending in each row."""
    dtype = torch.int16 if width <= 32767 else torch.int32
    index = torch.empty(groups, fan_in, dtype=dtype, device=generator.device)
    rows = max(1, INIT_ELEMENTS // width)
    for first in range(0, groups, rows):
        block = index[first : first + rows]
        noise = torch.rand(len(block), width, generator=generator, device=generator.device)
        block.copy_(noise.topk(fan_in, dim=1).indices.sort(dim=1).values)
    return index
