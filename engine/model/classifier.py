"""The last layer: a head for the most frequent labels, which reads every feature, and a sparse tail for all others.

Either may read words of the text, too: columns of x behind the D features (see engine.model.words).

Holds the layers and hands every computation to the kernels' backend. Everything the size of the
classifier is made and kept in place, block by block: no second copy ever exists.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt
from types import ModuleType

import torch
from torch import Tensor

from engine.kernels.layer import LabelLayer, Positives, StepOptions
from engine.kernels.optimizers import new_state
from engine.model.local_layout import LocalLayout
from engine.model.rewiring import narrow_layer

WEIGHT_STD = 0.02
BIAS = -6.0
# Learning rates are those of a label that reads so many columns. The rowwise step is about the same for every column,
# so that a logit moves by the learning rate times their number. For features, which every text has, a rate that falls
# with the root of that trained best, from 64 to 384; for words, of which a text has a few, one that falls with their
# number, from 64 to 1,024. Frequent labels of a frozen encoder have more to learn from words: head labels do best with
# the rate of MOST_RATE_WORDS, however many they read, those that read all with that of RATE_WORDS (docs/accuracy.md).
RATE_FEATURES, RATE_WORDS, FEWEST_WORDS, MOST_RATE_WORDS = 64, 256, 64, 512
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}
INIT_ELEMENTS = 1 << 22  # random numbers drawn at once


@dataclass(frozen=True)
class ClassifierShape:
    """labels L = head + tail, width D, fan_in F and group_size G of the tail; optimizer and storage type.

    words, head_words: how many of the `vocabulary` words a tail and a head label read beside the features · clusters,
    coarse, local: of how many clusters of the tail, and of coarser ones, each has so many features of its own, behind
    the D others · lead: how many of the head labels, the most frequent ones, read all words.
    """

    labels: int
    head: int
    width: int
    fan_in: int
    group_size: int
    optimizer: str = "rowwise"
    weight_dtype: str = "fp32"
    words: int = 0
    head_words: int = 0
    vocabulary: int = 0
    clusters: int = 0
    coarse: int = 0
    local: int = 0
    lead: int = 0

    @property
    def parts(self) -> dict[str, tuple[int, int, int, int]]:
        """(first label, labels, features, words) of the layers there are, by name, in the order of labels."""
        found = {
            "lead": (0, self.lead, self.features, self.vocabulary),
            "head": (self.lead, self.head - self.lead, self.width, self.head_words),
            "tail": (self.head, self.labels - self.head, self.fan_in, self.words),
        }
        return {name: part for name, part in found.items() if part[1]}

    @property
    def features(self) -> int:
        """Columns of x before the words."""
        return self.width + self.local_columns

    @property
    def local_columns(self) -> int:
        """Features of all clusters together."""
        return (self.clusters + self.coarse) * self.local

    @property
    def local_read(self) -> int:
        """Local features among the fan-in of a tail label; a fan-in may have been lowered since they were chosen."""
        return min(self.local * (2 if self.coarse else 1), self.fan_in)

    @property
    def layout(self) -> LocalLayout | None:
        """Of the local features."""
        if not self.clusters:
            return None
        return LocalLayout(self.labels - self.head, self.group_size, self.width, self.clusters, self.coarse, self.local)


@dataclass
class ClassifierStep:
    """A step on its way: dx_BD fp32, of the layers done so far, and their losses (None where not asked for)."""

    dx_BD: Tensor
    losses: list[Tensor | None] = field(default_factory=list)

    @classmethod
    def new(cls, x_BD: Tensor, width: int | None = None) -> ClassifierStep:
        """One that has not begun, for x_BD, whose first `width` columns (None: all) are features."""
        return cls(torch.zeros(len(x_BD), width or x_BD.shape[1], device=x_BD.device))

    def loss(self) -> Tensor | None:
        return None if None in self.losses else sum(self.losses[1:], self.losses[0])


class Classifier:
    """layers: lead (all words), head (all features) and tail (sparse), as far as there are any; backend: see
    engine.kernels.dispatch."""

    def __init__(self, shape: ClassifierShape, layers: list[LabelLayer], backend: ModuleType) -> None:
        self.shape, self.layers, self.backend = shape, layers, backend

    @classmethod
    def new(cls, shape: ClassifierShape, backend: ModuleType, device: torch.device | str, seed: int) -> Classifier:
        """Random weights and connections to features, bias BIAS, optimizer state zero.

        Weights of words are zero, and every group reads the first words there are: see `read_words`.
        """
        generator = torch.Generator(device).manual_seed(seed)
        layers = [_new_layer(shape, *part, generator) for part in shape.parts.values()]
        return cls(shape, layers, backend)

    @classmethod
    def from_tensors(cls, shape: ClassifierShape, tensors: dict[str, Tensor], backend: ModuleType) -> Classifier:
        """A classifier for prediction around `tensors`, named as by `tensors()`; without optimizer state."""
        layers = []
        for part, (start, _, _, words) in shape.parts.items():
            weight, bias, index = tensors[f"{part}.weight"], tensors[f"{part}.bias"], tensors.get(f"{part}.index")
            layers.append(LabelLayer(weight, bias, index, shape.group_size, start, words=words))
        return cls(shape, layers, backend)

    def step(self, x_BD: Tensor, positives: Positives, options: StepOptions) -> tuple[Tensor, Tensor | None]:
        """Trains on one batch. x_BD: features and words · returns (dx_BD fp32, the loss if options.want_loss)."""
        unfinished = ClassifierStep.new(x_BD, self.shape.features)
        self.go_on(unfinished, x_BD, positives, options)
        return unfinished.dx_BD, unfinished.loss()

    def go_on(
        self,
        begun: ClassifierStep,
        x_BD: Tensor,
        positives: Positives,
        options: StepOptions,
        slows_head_words: bool = True,
    ) -> None:
        """Trains the layers that are not yet done in `begun`: a step that ran out of memory trains none twice.

        The learning rates in `options` are those of a label that reads RATE_FEATURES features and RATE_WORDS words.
        slows_head_words: False gives the words of head labels, where others are not dense, the rate of MOST_RATE_WORDS
        at the least. Those of labels that read all have the rate of RATE_WORDS.
        """
        for layer in self.layers[len(begun.losses) :]:
            word_rate = options.word_learning_rate
            beside_a_tail = layer.start < self.shape.head < self.shape.labels
            most = layer.words if slows_head_words or not beside_a_tail else MOST_RATE_WORDS
            if not layer.reads_all:
                word_rate *= RATE_WORDS / max(FEWEST_WORDS, min(layer.words, most))
            rate = options.learning_rate * sqrt(RATE_FEATURES / layer.features)
            own = replace(options, learning_rate=rate, word_learning_rate=word_rate)
            begun.losses.append(self.backend.step(layer, x_BD, positives, begun.dx_BD, own))

    def is_finite(self) -> Tensor:
        """bool scalar: whether the biases are, which move with everything else. Without a temporary of their size."""
        return torch.stack([layer.bias.sum() for layer in self.layers]).isfinite().all()

    def read_words(self, layer: LabelLayer, first: int, words_KW: Tensor) -> None:
        """The groups of `layer` from `first` on read these words: ids below the vocabulary, ascending in each row."""
        part = layer.index[first : first + len(words_KW), layer.features :]
        part.copy_(words_KW + self.shape.features)

    def read_local(self) -> None:
        """Every group reads the local features of its clusters, instead of the first there are."""
        tail, layout = self.layers[-1], self.shape.layout
        rows = max(1, INIT_ELEMENTS // self.shape.fan_in)
        for first in range(0, len(tail.index), rows):
            part = tail.index[first : first + rows, tail.features - self.shape.local_read : tail.features]
            part.copy_(torch.from_numpy(layout.columns(first, len(part))))

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
            f"{part}.{name}": tensor
            for part, layer in zip(self.shape.parts, self.layers, strict=True)
            for name, tensor in layer.tensors().items()
            if with_state or not name.startswith("state.")
        }


def _new_layer(
    shape: ClassifierShape, start: int, labels: int, fan_in: int, words: int, generator: torch.Generator
) -> LabelLayer:
    device, index = generator.device, None
    reads_all = start < shape.lead
    if not reads_all and (start == shape.head or words or shape.clusters):
        groups = -(-labels // shape.group_size)
        local = shape.local_read if start == shape.head else 0
        columns = (words, shape.vocabulary, local, shape.features)
        index = random_index(groups, fan_in, shape.width, generator, *columns)
    weight = torch.empty(labels, fan_in + words, dtype=DTYPES[shape.weight_dtype], device=device)
    bias = torch.full((labels,), BIAS, device=device)
    layer = LabelLayer(weight, bias, index, shape.group_size, start, words=words)
    if shape.clusters and start == shape.head:
        layer.readers = shape.layout.groups_a_cluster
    rows = max(1, INIT_ELEMENTS // (fan_in + words))
    for first in range(0, labels, rows):
        block = weight[first : first + rows]
        noise = torch.randn(len(block), fan_in, generator=generator, device=device)
        block[:, :fan_in].copy_(noise.mul_(WEIGHT_STD * layer.scale))
        block[:, fan_in:].zero_()
    layer.state = new_state(shape.optimizer, weight, words)
    return layer


def random_index(
    groups: int,
    fan_in: int,
    width: int,
    generator: torch.Generator,
    words: int = 0,
    vocabulary: int = 0,
    local: int = 0,
    features: int | None = None,
) -> Tensor:
    """[M, fan_in + words] uint16 (int32 from 65,537 columns of x on), ascending in each row: distinct ids below
    `width`, `local` of the fan-in the first columns behind these, and the first `words` of the vocabulary, whose
    columns follow `features` (None: width) others."""
    features = features or width
    dtype = torch.uint16 if features + vocabulary <= 1 << 16 else torch.int32
    index = torch.empty(groups, fan_in + words, dtype=dtype, device=generator.device)
    index[:, fan_in:] = torch.arange(features, features + words, device=generator.device)
    index[:, fan_in - local : fan_in] = torch.arange(width, width + local, device=generator.device)
    rows = max(1, INIT_ELEMENTS // width)
    for first in range(0, groups, rows):
        block = index[first : first + rows, : fan_in - local]
        noise = torch.rand(len(block), width, generator=generator, device=generator.device)
        block.copy_(noise.topk(fan_in - local, dim=1).indices.sort(dim=1).values)
    return index
