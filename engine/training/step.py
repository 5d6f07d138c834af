"""One training step: encoder forward, fused classifier step, encoder backward, AdamW.

With several micro-batches the encoder runs twice (once without a graph for the features of the whole batch, then
again per micro-batch with one), so that the classifier still sees the whole batch and the result does not depend
on the micro-batch size but for rounding (GradCache: Gao et al. 2021).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from engine.config import RunConfig
from engine.kernels.layer import Positives, StepOptions
from engine.model.auxiliary import AuxiliaryObjective
from engine.model.classifier import Classifier
from engine.model.features import FeatureModel, Inputs
from engine.model.recompute import seed_dropout
from engine.training.optimizers import FlatAdamW
from engine.training.randomness import DROPOUT, seed_of


@dataclass(frozen=True)
class Batch:
    """inputs: on the device of the step · offsets, positions: labels as label-order ids, CSR."""

    inputs: Inputs
    offsets: np.ndarray
    positions: np.ndarray

    @property
    def size(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class StepResult:
    """x_BD: the features the classifier saw · loss: fp32 scalar, if asked for · finite: bool scalar on the device."""

    x_BD: Tensor
    loss: Tensor | None
    finite: Tensor


class TrainingStep:
    """What a step works on. optimizer None: nothing below the classifier trains. autocast: fp16, where used."""

    def __init__(
        self,
        config: RunConfig,
        micro_batch: int,
        model: FeatureModel,
        classifier: Classifier,
        optimizer: FlatAdamW | None,
        auxiliary: AuxiliaryObjective | None = None,
        autocast=nullcontext,
    ) -> None:
        self.config, self.micro_batch, self.model, self.classifier = config, micro_batch, model, classifier
        self.optimizer, self.auxiliary, self.autocast = optimizer, auxiliary, autocast
        self.device = classifier.layers[0].weight.device

    def __call__(self, batch: Batch, step: int, total: int, factor: float, wants_loss: bool) -> StepResult:
        """step: counted from 1, of `total` · factor: share of the peak learning rates."""
        spans = [slice(start, start + self.micro_batch) for start in range(0, batch.size, self.micro_batch)]
        if self.optimizer is None or len(spans) == 1:
            x_BD = self._features(batch, slice(None), step, 0)
        else:
            with torch.no_grad():
                x_BD = torch.cat([self._features(batch, span, step, n) for n, span in enumerate(spans)])
        dx_BD, loss = self._classify(batch, x_BD.detach(), step, total, factor, wants_loss)
        finite = torch.isfinite(dx_BD).all()
        if self.optimizer is not None:
            with self.optimizer.stepping(step, factor):
                if len(spans) == 1:
                    self.optimizer.backward(x_BD, dx_BD)
                else:
                    for n, span in enumerate(spans):
                        self.optimizer.backward(self._features(batch, span, step, n), dx_BD[span])
            finite = finite & torch.isfinite(self.optimizer.grad_norm)
        return StepResult(x_BD.detach(), loss, finite)

    def _features(self, batch: Batch, span: slice, step: int, micro: int) -> Tensor:
        """Features with dropout that is the same whenever this micro-batch of this step is computed."""
        seed_dropout(seed_of(self.config.run.seed, DROPOUT, step, micro), self.device)
        with self.autocast():
            return self.model(tuple(part[span] for part in batch.inputs)).float()

    def _classify(
        self, batch: Batch, x_BD: Tensor, step: int, total: int, factor: float, wants_loss: bool
    ) -> tuple[Tensor, Tensor | None]:
        c = self.config.classifier
        share = self.auxiliary.weight_at(step, total) if self.auxiliary else 0.0
        options = StepOptions(
            loss=c.loss,
            optimizer=c.optimizer,
            learning_rate=c.learning_rate * factor,
            beta2=c.beta2,
            weight_decay=c.weight_decay,
            step=step,
            seed=self.config.run.seed,
            loss_weight=1.0 - share,
            want_loss=wants_loss,
            deterministic=self.config.training.deterministic,
        )
        positives = Positives.from_rows(batch.offsets, batch.positions, self.device)
        dx_BD, loss = self.classifier.step(x_BD, positives, options)
        if share:
            meta = self.auxiliary.positives(batch.offsets, batch.positions, self.device)
            more, extra = self.auxiliary.classifier.step(x_BD, meta, replace(options, loss_weight=share))
            dx_BD += more
            loss = loss + extra if wants_loss else None
        return dx_BD, loss
