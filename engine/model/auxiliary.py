"""The auxiliary objective: also predict clusters of labels, through a small dense classifier.

It gives the features a dense gradient while the sparse classifier's is still poor (Spartex, Ullah et al.,
NeurIPS 2024). loss = (1 - w) main + w auxiliary; w falls by a cosine to 0 at `stop_at`. The meta-labels are
nodes of the tree that formed the groups; their classifier is one more dense layer under the same kernels.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from engine.config import Auxiliary
from engine.kernels.layer import LabelLayer, Positives
from engine.model.classifier import Classifier, ClassifierShape
from engine.model.label_tree import tree_bounds
from engine.model.meta_labels import wanted_meta_labels


class AuxiliaryObjective:
    """A dense classifier over meta-labels. `classifier` has the same interface as the main one."""

    def __init__(self, auxiliary: Auxiliary, weight: float, main: Classifier, seed: int) -> None:
        self.weight, self.stop_at = weight, auxiliary.stop_at
        shape = main.shape
        wanted = wanted_meta_labels(auxiliary, shape.labels)
        bounds = [np.zeros(1, dtype=np.int64)]
        for layer in main.layers:
            most = max(1, round(wanted * layer.labels / shape.labels))
            bounds.append(tree_bounds(layer.labels, layer.group_size, most)[1:] + layer.start)
        self.bounds = np.concatenate(bounds)
        meta_labels = len(self.bounds) - 1
        dense = ClassifierShape(meta_labels, meta_labels, shape.width, shape.width, 1, shape.optimizer, "fp32")
        self.classifier = Classifier.new(dense, main.backend, main.layers[0].weight.device, seed)

    @property
    def layers(self) -> list[LabelLayer]:
        return self.classifier.layers

    def weight_at(self, step: int, total: int) -> float:
        """The weight at `step` of `total` training steps."""
        stop = self.stop_at * total
        return 0.0 if step >= stop else self.weight * 0.5 * (1.0 + math.cos(math.pi * step / stop))

    def positives(self, offsets: np.ndarray, positions: np.ndarray, device: torch.device | str) -> Positives:
        """The meta-labels of a batch, each once an instance, from CSR rows of label-order ids."""
        instance = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        meta = np.searchsorted(self.bounds, positions, side="right") - 1
        pairs = np.unique(instance * (len(self.bounds) - 1) + meta)
        instance, meta = np.divmod(pairs, len(self.bounds) - 1)
        return Positives.from_rows(np.searchsorted(instance, np.arange(len(offsets))), meta, device)
