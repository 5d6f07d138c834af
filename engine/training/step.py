"""One training step: encoder forward, fused classifier step, encoder backward, AdamW.

With several micro-batches the encoder runs twice (once without a graph for the features of the whole batch, then
again per micro-batch with one), so that the classifier still sees the whole batch and the result does not depend
on the micro-batch size but for rounding (GradCache: Gao et al. 2021).

A step that runs out of memory goes on where it was after the plan has been lowered: what has been updated is not
updated again. Where that was the encoder's backward pass, its dropout is drawn anew for the smaller micro-batches.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from engine.config import RunConfig
from engine.kernels.layer import Positives, StepOptions
from engine.model.auxiliary import AuxiliaryObjective
from engine.model.classifier import Classifier, ClassifierStep
from engine.model.features import FeatureModel, Inputs
from engine.model.recompute import seed_dropout
from engine.training.optimizers import FlatAdamW
from engine.training.randomness import DROPOUT, seed_of
from engine.training.recovery import is_out_of_memory


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
    """read_BX: what the classifier read, features and words · loss: fp32 scalar, if asked for · finite: bool scalar on
    the device."""

    read_BX: Tensor
    loss: Tensor | None
    finite: Tensor


@dataclass
class _Begun:
    """A step on its way. x_BD: the features, once known · main, extra: of the classifier and the auxiliary one."""

    batch: Batch
    step: int
    total: int
    factor: float
    wants_loss: bool
    x_BD: Tensor | None = None
    main: ClassifierStep | None = None
    extra: ClassifierStep | None = None


class TrainingStep:
    """What a step works on. optimizer None: nothing below the classifier trains. autocast: fp16, where used.

    lower: called with the allocator's message when a step runs out of memory; makes the next attempt need less
    (`micro_batch` may be changed) or raises. None: the error is passed on.
    """

    def __init__(
        self,
        config: RunConfig,
        micro_batch: int,
        model: FeatureModel,
        classifier: Classifier,
        optimizer: FlatAdamW | None,
        auxiliary: AuxiliaryObjective | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        lower: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.micro_batch, self.model, self.classifier = config, micro_batch, model, classifier
        self.optimizer, self.auxiliary, self.autocast, self.lower = optimizer, auxiliary, autocast, lower
        self.device = classifier.layers[0].weight.device

    def __call__(self, batch: Batch, step: int, total: int, factor: float, wants_loss: bool) -> StepResult:
        """step: counted from 1, of `total` · factor: share of the peak learning rates."""
        begun = _Begun(batch, step, total, factor, wants_loss)
        while True:
            try:
                return self._go_on(begun)
            except RuntimeError as error:
                if self.lower is None or not is_out_of_memory(error):
                    raise
                problem = str(error).splitlines()[0]
            # Only here, where the error is gone, is nothing left that holds the tensors of the attempt.
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.lower(problem)

    def _go_on(self, begun: _Begun) -> StepResult:
        batch = begun.batch
        spans = [slice(start, start + self.micro_batch) for start in range(0, batch.size, self.micro_batch)]
        at_once = self.optimizer is None or len(spans) == 1
        with_graph = None
        if begun.x_BD is None and at_once:
            with_graph = self._features(begun, slice(None), 0)
            begun.x_BD = with_graph.detach()
        elif begun.x_BD is None:
            with torch.no_grad():
                begun.x_BD = torch.cat([self._features(begun, span, n) for n, span in enumerate(spans)])
        read_BX = self.model.with_words(begun.x_BD, batch.inputs)
        dx_BD, loss = self._classify(begun, read_BX)
        if self.optimizer is None:
            return StepResult(read_BX, loss, self.classifier.is_finite())
        finite = torch.isfinite(dx_BD).all()
        with self.optimizer.stepping(begun.step, begun.factor):
            if at_once and with_graph is not None:
                self.optimizer.backward(with_graph, dx_BD)
            else:
                for n, span in enumerate(spans):
                    self.optimizer.backward(self._features(begun, span, n), dx_BD[span])
        finite = finite & torch.isfinite(self.optimizer.grad_norm)
        return StepResult(read_BX, loss, finite)

    def _features(self, begun: _Begun, span: slice, micro: int) -> Tensor:
        """Features with dropout that is the same whenever this micro-batch of this step is computed."""
        seed_dropout(seed_of(self.config.run.seed, DROPOUT, begun.step, micro), self.device)
        with self.autocast():
            return self.model(tuple(part[span] for part in begun.batch.inputs)).float()

    def _classify(self, begun: _Begun, read_BX: Tensor) -> tuple[Tensor, Tensor | None]:
        """Trains the classifiers, as far as they have not been in this step: (dx_BD fp32, loss if asked for)."""
        c, batch, x_BD = self.config.classifier, begun.batch, begun.x_BD
        share = self.auxiliary.weight_at(begun.step, begun.total) if self.auxiliary else 0.0
        options = StepOptions(
            loss=c.loss,
            optimizer=c.optimizer,
            learning_rate=c.learning_rate * begun.factor,
            word_learning_rate=self.config.words.learning_rate * begun.factor,
            beta2=c.beta2,
            weight_decay=c.weight_decay,
            step=begun.step,
            seed=self.config.run.seed,
            loss_weight=1.0 - share,
            want_loss=begun.wants_loss,
            wants_dx=self.optimizer is not None,
            deterministic=self.config.training.deterministic,
        )
        begun.main = begun.main or ClassifierStep.new(x_BD)
        positives = Positives.from_rows(batch.offsets, batch.positions, self.device)
        self.classifier.go_on(begun.main, read_BX, positives, options, self.config.slows_head_words)
        if not share:
            return begun.main.dx_BD, begun.main.loss()
        width = self.auxiliary.classifier.shape.width
        begun.extra = begun.extra or ClassifierStep.new(x_BD, width)
        meta = self.auxiliary.positives(batch.offsets, batch.positions, self.device)
        self.auxiliary.classifier.go_on(begun.extra, x_BD[:, :width], meta, replace(options, loss_weight=share))
        loss = begun.main.loss() + begun.extra.loss() if begun.wants_loss else None
        dx_BD = begun.main.dx_BD.clone()
        dx_BD[:, :width] += begun.extra.dx_BD
        return dx_BD, loss
