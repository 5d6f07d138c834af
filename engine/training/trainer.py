"""The training loop: batches in, a better classifier out, able to stop at any step and go on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from engine.config import RunConfig
from engine.data.batches import epoch_batches, prefetch, rounded
from engine.data.label_order import LabelOrder
from engine.errors import EngineError, EnvironmentProblem, MemoryBudgetError, StopRequested
from engine.inference.evaluation import EVALUATION_TOKENS, Ranker, evaluate_rows
from engine.inference.metrics import Metrics
from engine.kernels.layer import LabelLayer, Positives
from engine.model.auxiliary import AuxiliaryObjective
from engine.model.bundle import BundleInfo, save_bundle
from engine.model.classifier import Classifier
from engine.model.encoder import checkpoint_activations
from engine.model.features import by_length
from engine.model.rewiring import GrowthBatch, narrow_layer, replaced_share, rewire_layer, rewires_at
from engine.peak_memory import host_peak_bytes, memory_bytes
from engine.planning.encoders import shape_of
from engine.planning.planner import Plan
from engine.planning.report import memory_line
from engine.progress import bar
from engine.runs import RunDirectory
from engine.training import checkpoints
from engine.training.kept_model import kept_line, score_of, with_mean
from engine.training.optimizers import FlatAdamW
from engine.training.prepare import Material, classifier_shape
from engine.training.randomness import REWIRE, seed_of
from engine.training.recovery import advice, is_out_of_memory, lowered
from engine.training.reporter import Reporter
from engine.training.schedules import Length, warmup_cosine
from engine.training.step import Batch, TrainingStep
from engine.words import counted

LOG_STEPS = 20  # steps between two looks at the loss, which is when the device is waited for


@dataclass
class Progress:
    """Where training stands; a checkpoint's `state.json` holds it. position: batches done in the epoch · best: score of
    the model that is kept · evaluations_since_best: since one was better than all before; equal is not better ·
    seconds: of steps · wall: of all sessions, up to the last checkpoint."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    best: list[float] = field(default_factory=list)
    evaluations_since_best: int = 0
    seconds: float = 0.0
    instances: int = 0
    wall: float = 0.0
    done: bool = False

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Progress:
        """As `vars` gave it. Scores once had no mean P@k: an even number of values, or P@1 alone, which any beats."""
        best = stored["best"] if isinstance(stored["best"], list) else []
        return cls(**stored | {"best": best if len(best) % 2 else with_mean(best)})


class Trainer:
    """Trains `classifier` and the model below it. Everything it holds is in a checkpoint, or a function of the seed."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        material: Material,
        classifier: Classifier,
        order: LabelOrder,
        auxiliary: AuxiliaryObjective | None,
        optimizer: FlatAdamW | None,
        accelerator: Accelerator,
        run: RunDirectory,
        reporter: Reporter,
    ) -> None:
        self.config, self.plan, self.material = config, plan, material
        self.classifier, self.order, self.auxiliary = classifier, order, auxiliary
        self.optimizer, self.run, self.reporter = optimizer, run, reporter
        self.device, self.autocast = accelerator.device, accelerator.autocast
        self.model = material.model.to(self.device).train()
        self.progress = Progress()
        self.batches_an_epoch = -(-len(material.train_rows) // config.training.batch_size)
        self.total = config.training.epochs * self.batches_an_epoch
        if config.training.max_steps:
            self.total = min(self.total, config.training.max_steps)
        length = Length(self.total, self.batches_an_epoch)
        self.step = TrainingStep(
            config, plan.micro_batch, self.model, classifier, optimizer, auxiliary, self.autocast, self._lower, length
        )
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)
        self.began = self.saved_at = time.monotonic()
        self.notches_before = plan.notches  # of earlier sessions of the run
        self.train_inputs = material.train_inputs
        if plan.cuda_graphs:
            self._use_graphs()

    def _use_graphs(self) -> None:
        longest = int(self.material.lengths.max(initial=1))
        problem = "there is no GPU"  # the run has begun on another machine
        if self.device.type == "cuda":
            problem = self.step.record(longest)
        if problem is None:
            self.train_inputs = replace(self.material.train_inputs, length=partial(rounded, longest=longest))
            return
        self.reporter.say(f"warning   CUDA graphs do not work here ({problem}); training goes on without them, slower")
        self.plan = replace(self.plan, cuda_graphs=False)
        self.run.write_json("plan.json", self.plan.to_json())

    # Memory

    def confirm(self) -> None:
        """Takes one step, rewiring included, and one evaluation that need as much memory as any of the run will, but
        for some tens of MiB that CUDA graphs of other lengths may add.

        State is left changed. Raises MemoryBudgetError if they do not fit, however far the plan may be lowered.
        """
        m, size = self.material, self.config.training.batch_size
        labels = m.labels
        longest = m.train_rows[np.argsort(-m.lengths[m.train_rows], kind="stable")[:size]]
        fullest = labels.select(m.train_rows[np.argsort(-labels.sizes()[m.train_rows], kind="stable")[:size]])
        inputs = tuple(part.to(self.device) for part in self.train_inputs(longest))
        batch = Batch(inputs, fullest.offsets, self.order.position_of[fullest.ids])
        result = self.step(batch, self.total + 1, self.total + 1, 1.0, True)
        if not self.plan.is_dense and self.config.rewire.method != "none":
            self._replace_connections(batch, result.read_BX, self.total + 1, self.config.rewire.fraction)
        rows = m.validation_rows if len(m.validation_rows) else m.train_rows[m.train_rows < len(m.dataset.train)]
        # not stoppable: what would be saved is the trial's
        self.score(rows[next(iter(by_length(m.lengths[rows], EVALUATION_TOKENS)))], lambda rows: None)
        line = memory_line(self.plan.predicted_bytes, memory_bytes(self.device))
        self.reporter.say(f"confirmed {line} (one worst-case step and evaluation)")

    def _lower(self, problem: str) -> None:
        """After a step ran out of memory: the plan one notch lower. Raises MemoryBudgetError when none is left."""
        config, encoder = self.config, self.material.encoder
        found = lowered(self.plan, config, shape_of(encoder.model.config.to_dict()), self.notches_before)
        if found is None:
            raise MemoryBudgetError(advice(self.plan, problem, self.run.path))
        before, (self.plan, change) = self.plan, found
        if self.plan.checkpoint_every != before.checkpoint_every:
            checkpoint_activations(encoder, self.plan.checkpoint_every)
        if self.plan.fan_in != before.fan_in:
            self.classifier.narrow(self.plan.fan_in)
        if self.optimizer is not None and not self.plan.optimizer_in_backward:
            self.optimizer.step_after_backward()
        self.step.micro_batch = self.plan.micro_batch
        if before.cuda_graphs:
            self.step.stop_recording()
            self.train_inputs = self.material.train_inputs
        self.run.write_json("plan.json", self.plan.to_json())
        self.reporter.say(f"memory    {problem} Step {self.progress.step:,} goes on with {change}")

    # Running

    def fit(self, started: float) -> None:
        """Trains to the end; started: the monotonic time at which this session began.

        Raises StopRequested after saving, when that is asked for.
        """
        self.began = started - self.progress.wall
        self.reporter.say(f"rates     {self.step.rates_line()}")
        self.reporter.enter("training", self.progress.step, self.total)
        self.saved_at = time.monotonic()
        with bar("training", "steps", self.total, self.progress.step) as self.bar:
            while not self.progress.done:
                self._train_epoch()
                if self._evaluates_now():
                    self._evaluate()
                self.progress.done = self.progress.step >= self.total or self._out_of_patience()
                self.progress.epoch += 1
                self.progress.position = 0
                self.save()
        if kept := kept_line(self.run):
            self.reporter.say(f"kept      {kept}")

    def _train_epoch(self) -> None:
        progress, since, counted = self.progress, time.monotonic(), 0
        for batch in self._batches(progress.epoch, progress.position):
            if progress.step >= self.total:
                break
            progress.step += 1
            wants_loss = progress.step % LOG_STEPS == 0 or progress.step == self.total
            loss = self.train_step(batch, wants_loss)
            progress.position += 1
            progress.instances += batch.size
            counted += batch.size
            self.bar.update(1)
            self.reporter.step = progress.step
            self.run.heartbeat(progress.step, self.total)
            if wants_loss:
                now = time.monotonic()
                self._log(loss, counted / max(1e-9, now - since))
                progress.seconds += now - since
                since, counted = now, 0
            self._checkpoint_or_stop()
        progress.seconds += time.monotonic() - since

    def _batches(self, epoch: int, position: int) -> Iterator[Batch]:
        m = self.material
        size, seed = self.config.training.batch_size, self.config.run.seed
        chosen = epoch_batches(m.train_rows, m.batching_lengths, size, seed, epoch)

        def load() -> Iterator[Batch]:
            for number in range(position, len(chosen)):
                rows = chosen[number]
                labels = m.labels.select(rows)
                inputs = self.train_inputs(rows)
                if self.device.type == "cuda":  # a copy from pageable memory would wait for the steps before it
                    inputs = tuple(part.pin_memory() for part in inputs)
                yield Batch(inputs, labels.offsets, self.order.position_of[labels.ids])

        for batch in prefetch(load()):
            yield replace(batch, inputs=tuple(part.to(self.device, non_blocking=True) for part in batch.inputs))

    def _checkpoint_or_stop(self) -> None:
        if self.reporter.stopping():
            self.save(must=True)
            raise StopRequested(
                f"stopped at step {self.progress.step:,} of {self.total:,} and saved",
                f"engine train --resume {self.run.path}",
            )
        if time.monotonic() - self.saved_at > self.config.checkpoint.every_minutes * 60:
            self.save()

    # One step

    def train_step(self, batch: Batch, wants_loss: bool) -> Tensor | None:
        """One optimizer step on one batch; returns the loss (fp32 scalar) if asked for."""
        step = self.progress.step
        factor = warmup_cosine(step, self.total, self.config.training.warmup_steps)
        result = self.step(batch, step, self.total, factor, wants_loss)
        self.finite &= result.finite
        self._rewire(batch, result.read_BX, step)
        return result.loss

    def _rewire(self, batch: Batch, read_BX: Tensor, step: int) -> None:
        rewire = self.config.rewire
        if self.plan.is_dense or not rewires_at(step, self.total, rewire):
            return
        count = self._replace_connections(batch, read_BX, step, replaced_share(step, self.total, rewire))
        if count:
            self.run.event("rewire", step=step, replaced=count, fan_in=self.plan.fan_in)

    def _replace_connections(self, batch: Batch, read_BX: Tensor, step: int, share: float) -> int:
        """Rewires the tail; returns how many connections every group replaced. Without CUDA graphs, where these leave
        too little memory."""
        try:
            return self._rewire_tail(batch, read_BX, step, share)
        except RuntimeError as error:
            if self.step.graphs is None or not is_out_of_memory(error):
                raise
            problem = str(error).splitlines()[0]
        self._lower(problem)
        return self._rewire_tail(batch, read_BX, step, share)

    def _rewire_tail(self, batch: Batch, read_BX: Tensor, step: int, share: float) -> int:
        generator = torch.Generator(self.device).manual_seed(seed_of(self.config.run.seed, REWIRE, step))
        tail = self.classifier.layers[-1]
        growth = None
        if self.config.rewire.method == "rigl":
            positives = Positives.from_rows(batch.offsets, batch.positions, self.device)
            growth = GrowthBatch(self.classifier.backend, read_BX, positives, self.config.classifier.loss)
        return rewire_layer(tail, self.plan.width, share, generator, growth, self.classifier.shape.local_read)

    def _log(self, loss: Tensor, rate: float) -> None:
        value = float(loss)
        self._require_finite()
        memory = memory_bytes(self.device)
        progress = self.progress
        self.bar.set_postfix_str(
            f"epoch {progress.epoch + 1}, loss {value:.2f}, {rate:,.0f} instances/s, {memory / 2**20:,.0f} MiB",
            refresh=False,
        )
        self.run.event(
            "step",
            step=progress.step,
            epoch=progress.epoch,
            loss=value,
            learning_rate=self.step.classifier_rate
            * warmup_cosine(progress.step, self.total, self.config.training.warmup_steps),
            instances_per_second=round(rate, 1),
            eta_seconds=round((self.total - progress.step) * self.config.training.batch_size / max(rate, 1e-9)),
            memory_bytes=memory,
            host_bytes=host_peak_bytes(),
        )

    def _require_finite(self) -> None:
        if not bool(self.finite):
            raise EngineError(
                f"features or gradients are not finite at step {self.progress.step:,}: training diverged. The last "
                f"checkpoint in {self.run.checkpoints} is good; start again with lower learning rates"
            )

    # Evaluation

    def _evaluates_now(self) -> bool:
        finished = self.progress.position >= self.batches_an_epoch
        last = self.progress.step >= self.total
        return last or (finished and (self.progress.epoch + 1) % self.config.evaluation.every_epochs == 0)

    def _evaluate(self) -> None:
        """Scores on validation and keeps the model if none so far is better."""
        self._require_finite()
        rows = self.material.validation_rows
        metrics = self.score(rows, lambda rows: self._checkpoint_or_stop()) if len(rows) else {}
        progress, score = self.progress, score_of(metrics)
        is_kept, is_tie = not score or score >= progress.best, bool(score) and score == progress.best
        self.run.event("eval", step=progress.step, epoch=progress.epoch, metrics=metrics, best=is_kept, tie=is_tie)
        if metrics:
            shown = "  ".join(f"P@{k} {metrics[f'P@{k}']:.2%}" for k in self.config.evaluation.k)
            note = "  as good as the best, kept" if is_tie else "  best so far, kept" if is_kept else ""
            self.reporter.say(f"epoch {progress.epoch + 1:>3}  validation {shown}{note}", event=False)
        progress.evaluations_since_best = 0 if is_kept and not is_tie else progress.evaluations_since_best + 1
        if is_kept:
            progress.best = score
            self._save_bundle(metrics)

    def score(self, rows: np.ndarray, progress: Callable[[int], None]) -> dict[str, float]:
        """Metrics on rows of the train split (int64). progress: called after each batch with its size."""
        m, e = self.material, self.config.evaluation
        metrics = Metrics(
            e.k,
            frequency=m.label_frequency,
            n_train=len(m.dataset.train),
            propensity_a=e.propensity_a,
            propensity_b=e.propensity_b,
        )
        batches = [rows[batch] for batch in by_length(m.lengths[rows], EVALUATION_TOKENS)]
        train = m.dataset.train
        ranker = Ranker(
            self.model, self.classifier, self.order, m.train_inputs, self.device, train.filter, self.autocast
        )
        return evaluate_rows(ranker, train.labels, batches, metrics, progress)

    def _out_of_patience(self) -> bool:
        patience = self.config.evaluation.patience
        if not patience or self.progress.evaluations_since_best < patience:
            return False
        self.reporter.say(f"stopping early: no better model in {counted(patience, 'evaluation')} (evaluation.patience)")
        return True

    # Saving

    def _save_bundle(self, metrics: dict) -> None:
        m = self.material
        info = BundleInfo(
            shape=classifier_shape(self.config, self.plan),
            loss=self.config.classifier.loss,
            pooling=self.config.encoder.pooling,
            max_tokens=self.config.data.max_tokens,
            encoder_width=m.encoder.width,
            intermediate=self.config.intermediate.width,
            dataset=m.dataset.name,
            step=self.progress.step,
            adapter=self.plan.adapter,
        )
        try:
            save_bundle(
                self.run.model, info, m.encoder, m.tokenizer, self.model, self.classifier, self.order,
                m.dataset.path / "labels.parquet", metrics,
            )  # fmt: skip
        except OSError as error:
            raise EnvironmentProblem(
                f"the model was not saved: {error}; free some space, then resume the run"
            ) from error

    def save(self, must: bool = False) -> Path | None:
        """Writes a checkpoint, and returns it. When the disk does not take it: raises if `must`, else says so, returns
        None, and training goes on."""
        self._require_finite()
        self.progress.wall = time.monotonic() - self.began
        tensors = {
            "classifier": self.classifier.tensors(),
            "order": {"label_at": torch.from_numpy(self.order.label_at)},
        }
        state: dict[str, Any] = {"progress": vars(self.progress), **self.identity()}
        if self.model.words is not None:
            tensors["words"] = self.model.words.state_dict()
        if self.auxiliary:
            tensors["auxiliary"] = self.auxiliary.classifier.tensors()
        if self.optimizer is not None:
            tensors["encoder"] = self.optimizer.tensors()
            state["optimizer"] = self.optimizer.numbers()
        started, saved = time.monotonic(), None
        try:
            saved = checkpoints.save(
                self.run.checkpoints, self.progress.step, tensors, state, self.config.checkpoint.keep
            )
        except EnvironmentProblem as error:
            if must:
                raise
            self.reporter.say(f"warning: {error}; training goes on without it")
        else:
            self.run.event("checkpoint", step=self.progress.step, seconds=round(time.monotonic() - started, 2))
        self.saved_at = time.monotonic()
        return saved

    def identity(self) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        return {
            "config": self.config.flat(),
            "dataset": self.material.dataset.digest,
            "encoder": self.material.encoder_digest,
        }

    @torch.no_grad()
    def load(self, checkpoint) -> None:
        """Continues from `checkpoint` (its folder). The label order is loaded by whoever made the classifier."""
        state = checkpoints.load_state(checkpoint)
        self.progress = Progress.from_json(state["progress"])
        self._load_classifier(checkpoint)
        if self.auxiliary:
            checkpoints.load_into(checkpoint, "auxiliary", self.auxiliary.classifier.tensors())
        if self.optimizer is not None:
            checkpoints.load_into(checkpoint, "encoder", self.optimizer.tensors())
            self.optimizer.load_numbers(state["optimizer"])

    def _load_classifier(self, checkpoint: Path) -> None:
        """Also from a checkpoint of before the fan-in was lowered, which is narrowed on the host."""
        tensors, tail = self.classifier.tensors(), self.classifier.layers[-1]
        saved = checkpoints.tensor_shape(checkpoint, "classifier", "tail.weight") if tail.index is not None else None
        if saved is None or saved[1] <= tail.fan_in:
            checkpoints.load_into(checkpoint, "classifier", tensors)
            return
        found = checkpoints.load_tensors(checkpoint, "classifier")
        state = {name.removeprefix("tail.state."): t for name, t in found.items() if name.startswith("tail.state.")}
        tensors_of_tail = (found[f"tail.{name}"] for name in ("weight", "bias", "index"))
        wide = LabelLayer(*tensors_of_tail, tail.group_size, 0, state, tail.words)
        narrow_layer(wide, tail.features, self.config.classifier.optimizer)
        found |= {f"tail.{name}": tensor for name, tensor in wide.tensors().items()}
        for name, tensor in tensors.items():
            tensor.copy_(found[name])
