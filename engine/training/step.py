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
from engine.training.graphs import GraphedPass
from engine.training.optimizers import FlatAdamW
from engine.training.randomness import DROPOUT, WITHOUT_WORDS, seed_of
from engine.training.recovery import is_out_of_memory
from engine.training.schedules import Length, classifier_rate, texts_without_words


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
    (`micro_batch` and `graphs` may be changed) or raises. None: the error is passed on · graphs: what computes what is
    below the classifier, where it is trained on whole batches, see `record`; None: torch, kernel by kernel · length:
    of the training, which rates and texts without words depend on; None: training.epochs of one step.
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
        length: Length | None = None,
    ) -> None:
        self.config, self.micro_batch, self.model, self.classifier = config, micro_batch, model, classifier
        self.optimizer, self.auxiliary, self.autocast, self.lower = optimizer, auxiliary, autocast, lower
        self.device = classifier.layers[0].weight.device
        length, words = length or Length(config.training.epochs, 1), model.words is not None
        self.classifier_rate = classifier_rate(config, length, classifier.shape)
        self.texts_without_words = texts_without_words(config, length) if words else 0.0
        self.graphs: GraphedPass | None = None

    def rates_line(self) -> str:
        """The peak learning rates, for people, and how many texts come without words."""
        config, parts = self.config, [f"classifier {self.classifier_rate:.2g}"]
        below = [name for name in self.model.head.parts() if name != "local"]
        parts += [f"{name} {config[f'{name}.learning_rate']:.2g}" for name in below]
        if self.model.words is not None:
            parts.append(f"words {config.words.learning_rate:.2g}")
        if config.encoder.trainable == "all":
            parts.append(f"encoder {config.encoder.learning_rate:.2g}")
        without = f"; {self.texts_without_words:.0%} of the texts without words" if self.texts_without_words else ""
        return f"{', '.join(parts)} at the peak{without}"

    def record(self, tokens: int) -> str | None:
        """From here on CUDA graphs compute what is below the classifier; tokens: of the longest text there will be.

        Returns why that does not work here, or None.
        """
        size, width = self.config.training.batch_size, self.classifier.shape.features
        try:
            places = self.optimizer.keep_gradients()
            self.graphs = GraphedPass(self.model, places, size, tokens, width, self.device, self.autocast)
            problem = self.graphs.problem()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error).splitlines()[0]
        if problem is not None:
            self.stop_recording()
        return problem

    def stop_recording(self) -> None:
        """Ends what `record` began, and frees its memory."""
        self.graphs = None
        self.optimizer.drop_gradients()
        torch.cuda.empty_cache()

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
        at_once = self.model.encoder is None or len(spans) == 1  # an adapter is no reason to take texts in parts
        backward = None
        if begun.x_BD is None and at_once and self.graphs is not None:
            begun.x_BD, backward = self.graphs.features(batch.inputs, self._seed(begun, 0)), self.graphs.backward
        elif begun.x_BD is None and at_once:
            with_graph = self._features(begun, slice(None), 0)
            begun.x_BD, backward = with_graph.detach(), with_graph.backward
        elif begun.x_BD is None:
            with torch.no_grad():
                begun.x_BD = torch.cat([self._features(begun, span, n) for n, span in enumerate(spans)])
        read_BX = self.model.with_words(begun.x_BD, batch.inputs, self._without_words(begun))
        dx_BD, loss = self._classify(begun, read_BX)
        if self.optimizer is None:
            return StepResult(read_BX, loss, self.classifier.is_finite())
        finite = torch.isfinite(dx_BD).all()
        with self.optimizer.stepping(begun.step, begun.factor):
            if backward is not None:
                backward(self.optimizer.scaled(dx_BD))
            else:
                for n, span in enumerate(spans):
                    self._features(begun, span, n).backward(self.optimizer.scaled(dx_BD[span]))
        finite = finite & torch.isfinite(self.optimizer.grad_norm)
        if self.model.encoder is None:
            finite = finite & self.classifier.is_finite()  # which may have moved far more than what lies below it
        return StepResult(read_BX, loss, finite)

    def _features(self, begun: _Begun, span: slice, micro: int) -> Tensor:
        """Features with dropout that is the same whenever this micro-batch of this step is computed."""
        seed_dropout(self._seed(begun, micro), self.device)
        with self.autocast():
            return self.model(tuple(part[span] for part in begun.batch.inputs)).float()

    def _without_words(self, begun: _Begun) -> Tensor | None:
        """bool [B], the texts that have no words in this step; their share follows the learning rates."""
        share = self.texts_without_words * begun.factor
        if not share:
            return None
        draws = np.random.default_rng(seed_of(self.config.run.seed, WITHOUT_WORDS, begun.step)).random(begun.batch.size)
        return torch.from_numpy(draws < share).to(self.device, non_blocking=True)

    def _seed(self, begun: _Begun, micro: int) -> int:
        return seed_of(self.config.run.seed, DROPOUT, begun.step, micro)

    def _classify(self, begun: _Begun, read_BX: Tensor) -> tuple[Tensor, Tensor | None]:
        """Trains the classifiers, as far as they have not been in this step: (dx_BD fp32, loss if asked for)."""
        c, batch, x_BD = self.config.classifier, begun.batch, begun.x_BD
        share = self.auxiliary.weight_at(begun.step, begun.total) if self.auxiliary else 0.0
        options = StepOptions(
            loss=c.loss,
            optimizer=c.optimizer,
            learning_rate=self.classifier_rate * begun.factor,
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
