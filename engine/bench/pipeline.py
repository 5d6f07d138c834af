"""Measures a whole training step: a real encoder architecture with random weights on random tokens, the classifier,
the optimizer; and the peak device memory of everything a training does, from making the model to saving it.

Beside it, in the same process: one label a group, and the same encoder under fp32 AdamW with bf16 autocast below a
dense layer trained by ELMO's or Renée's scheme (see `dense`), without activation checkpointing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.bench import dense
from engine.bench.encoders import new_encoder
from engine.bench.head import POSITIVES, SEED, UNGROUPED_LABELS, deterministic, random_weight, step_floor_bytes
from engine.bench.measure import MEMORY, Measurement, available_bytes, check_choice, free_memory, machine, time_steps
from engine.bench.measure import peak_bytes as peak_of
from engine.bench.shapes import Shape
from engine.config import RunConfig
from engine.errors import EnvironmentProblem
from engine.kernels.dispatch import resolve_backend
from engine.kernels.layer import Positives
from engine.model.classifier import Classifier, ClassifierShape
from engine.model.encoder import FeatureHead, TextEncoder, checkpoint_activations, compile_encoder
from engine.model.features import FeatureModel, Inputs
from engine.model.grouping import balanced_order, label_vectors
from engine.planning.activations import Activations, Precision
from engine.planning.encoders import ENCODERS
from engine.planning.hardware import GIB, Hardware, detect
from engine.planning.memory import ORDER_SHARE
from engine.planning.planner import Plan, Problem, make_plan
from engine.planning.report import training_words
from engine.training import checkpoints
from engine.training.optimizers import make_optimizer
from engine.training.step import Batch, TrainingStep

STEPS = 10_000  # of the imagined training; only the schedule asks
GROUPING_BATCHES = 8
TOPK = 5
VARIANTS = ("ours", "g1", "elmo", "renee")


@dataclass(frozen=True)
class PipelineOptions:
    """See `engine bench pipeline --help`. config: keys of a run that differ from the defaults."""

    config: dict[str, Any]
    only: tuple[str, ...] = VARIANTS
    repeats: int | None = None
    device: str = "auto"
    memory_gib: float | None = None
    saves: bool = True

    def __post_init__(self) -> None:
        check_choice(self.only, VARIANTS, self.repeats)


class Phases:
    """Peak device memory of what is done, part by part (of the process's resident size on a CPU)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.peaks = device, {}

    def end(self, name: str) -> None:
        self.peaks[name] = peak_of(self.device)


def bench_pipeline(shape: Shape, options: PipelineOptions, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measures `options.only`; returns {machine, shape, options, memory, variants: [Measurement]}."""
    hardware = detect(options.device)
    device = torch.device(hardware.device)
    if options.memory_gib and hardware.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gib * GIB / hardware.memory_bytes))
    variants = []
    with deterministic(_config(shape, options).training.deterministic):
        for name in options.only:
            progress(f"{name}: {shape.labels:,} labels")
            free_memory(device)
            try:
                variants.append(_measure(name, shape, options, hardware))
            except torch.OutOfMemoryError as error:
                why = f"out of memory: {str(error).splitlines()[0]}"
                variants.append(Measurement(name, shape.labels, "", skipped=why))
    return {
        "machine": machine(device),
        "shape": asdict(shape),
        "options": asdict(options),
        "memory": MEMORY[hardware.device],
        "variants": variants,
    }


def _measure(name: str, shape: Shape, options: PipelineOptions, hardware: Hardware) -> Measurement:
    device = torch.device(hardware.device)
    if name in ("elmo", "renee"):
        return _dense(name, shape, options, device)
    note = ""
    if name == "g1":
        labels = min(shape.labels, UNGROUPED_LABELS)
        note = f", labels cut from {shape.labels:,}" if labels < shape.labels else ""
        shape = replace(shape, labels=labels, group_size=1)
    return _sparse(name, shape, options, hardware, note)


def _sparse(name: str, shape: Shape, options: PipelineOptions, hardware: Hardware, cut: str) -> Measurement:
    device = torch.device(hardware.device)
    phases = Phases(device)
    config = _config(shape, options)
    encoder = new_encoder(shape.encoder, SEED)
    plan = make_plan(Problem(config, hardware, shape.labels, ENCODERS[shape.encoder], shape.tokens, padded=False))
    if config.encoder.compile:
        compile_encoder(encoder)
    if plan.checkpoint_every:
        checkpoint_activations(encoder, plan.checkpoint_every)
    backend, line = resolve_backend(config.classifier.backend, device)
    model = FeatureModel(encoder, FeatureHead(encoder.width, 0, config.encoder.dropout))
    dtype = torch.bfloat16 if plan.compute == "bf16" else torch.float32
    optimizer = make_optimizer(model, config, device, dtype, plan.optimizer_in_backward, False)
    model.to(device)
    phases.end("encoder")
    inputs = _tokens(encoder, shape, device)
    if shape.group_size > 1:
        _form_groups(model, inputs, shape, plan)
        free_memory(device)
        phases.end("grouping")
    layout = ClassifierShape(
        shape.labels, plan.head, plan.width, plan.fan_in, plan.group_size, config.classifier.optimizer,
        plan.weight_dtype,
    )  # fmt: skip
    classifier = Classifier.new(layout, backend, device, SEED)
    phases.end("classifier")
    take_step = TrainingStep(config, plan.micro_batch, model.train(), classifier, optimizer)
    if plan.cuda_graphs and (problem := take_step.record(shape.tokens)):
        raise EnvironmentProblem(f"CUDA graphs do not work here: {problem}; measure with encoder.cuda_graphs = off")
    batch = Batch(inputs, *_labels(shape))
    numbers = count(1)
    times = time_steps(lambda: take_step(batch, next(numbers), STEPS, 1.0, False), device, options.repeats)
    phases.end("steps")
    with torch.no_grad():
        classifier.topk(model.eval()(inputs), TOPK)
    phases.end("evaluation")
    if options.saves:
        with tempfile.TemporaryDirectory() as folder:
            parts = {"classifier": classifier.tensors(), "encoder": optimizer.tensors()}
            checkpoints.save(Path(folder), 1, parts, {}, keep=2)
        phases.end("checkpoint")
    floor = step_floor_bytes(classifier) + 2 * sum(t.nbytes for t in optimizer.tensors().values())
    layer = f"fan-in {plan.fan_in}, groups of {plan.group_size}, {plan.weight_dtype}{cut}"
    note = f"{layer}, {line}; {training_words(plan)}"
    return Measurement(
        name, shape.labels, note, median(times), min(times), len(times), floor, max(phases.peaks.values()),
        phases=phases.peaks,
    )  # fmt: skip


def _dense(name: str, shape: Shape, options: PipelineOptions, device: torch.device) -> Measurement:
    title = {"elmo": "dense bf16, label chunks, SGD (ELMO's scheme)", "renee": "dense fp32, Adam (Renée's scheme)"}[
        name
    ]
    note = f"{title}; encoder fp32, bf16 autocast, AdamW"
    phases = Phases(device)
    encoder = new_encoder(shape.encoder, SEED)
    parameters = sum(p.numel() for p in encoder.parameters())
    passes = Activations(ENCODERS[shape.encoder], Precision(2, 4, 1, 4, 3), shape.batch, shape.tokens, padded=False)
    needed = 16 * parameters + passes.saved(0)
    if name == "elmo":
        needed += dense.chunked_sgd_bytes(shape.labels, shape.width, shape.batch, device)
    else:
        needed += dense.autograd_adam_bytes(shape.labels, shape.width, shape.batch)
    if needed > (free := available_bytes(device)):
        why = f"needs about {needed / GIB:.2f} GiB, {free / GIB:.2f} GiB are free"
        return Measurement(name, shape.labels, note, skipped=why)
    if _config(shape, options).encoder.compile:
        compile_encoder(encoder)
    encoder.to(device).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=5e-5, fused=True)
    dtype = torch.bfloat16 if name == "elmo" else torch.float32
    weight_LD = random_weight(shape.labels, shape.width, dtype, device)
    layer = dense.ChunkedSGD(weight_LD, 1e-3, SEED) if name == "elmo" else dense.AutogradAdam(weight_LD, 1e-3)
    phases.end("model")
    inputs = _tokens(encoder, shape, device)
    offsets, labels = _labels(shape)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            x_BD = encoder(*inputs).float()
        found = layer.step(x_BD.detach(), Positives.from_rows(offsets, labels, device))
        x_BD.backward(found if name == "elmo" else found[0])
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    times = time_steps(step, device, options.repeats)
    phases.end("steps")
    floor = (2 if name == "elmo" else 6) * weight_LD.nbytes + 24 * parameters
    return Measurement(
        name, shape.labels, note, median(times), min(times), len(times), floor, max(phases.peaks.values()),
        phases=phases.peaks,
    )  # fmt: skip


def _config(shape: Shape, options: PipelineOptions) -> RunConfig:
    return RunConfig.from_flat(
        {
            "training.batch_size": shape.batch,
            "classifier.fan_in": shape.fan_in,
            "classifier.group_size": shape.group_size,
            "classifier.head_fraction": shape.head_fraction,
            "hardware.memory_gib": options.memory_gib or "auto",
            "words.fan_in": 0,  # the figures of other systems are without
            "local.clusters": 0,
            "encoder.cuda_graphs": "off",  # theirs launch the same encoder kernel by kernel
            **options.config,
        }
    )


def _tokens(encoder: TextEncoder, shape: Shape, device: torch.device) -> Inputs:
    """Full texts: (input_ids, attention_mask), int64 [B, T]."""
    generator = torch.Generator().manual_seed(SEED)
    size = (shape.batch, shape.tokens)
    ids = torch.randint(5, encoder.model.config.vocab_size, size, generator=generator)
    return ids.to(device), torch.ones_like(ids).to(device)


def _labels(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """(offsets, labels): some labels an instance, as CSR."""
    rng = np.random.default_rng(SEED)
    each = min(POSITIVES, shape.labels)
    rows = [np.sort(rng.choice(shape.labels, each, replace=False, shuffle=False)) for _ in range(shape.batch)]
    return np.arange(0, each * shape.batch + 1, each), np.concatenate(rows)


@torch.no_grad()
def _form_groups(model: FeatureModel, inputs: Inputs, shape: Shape, plan: Plan) -> None:
    """What a run does before it makes its classifier; here only the memory it takes is of interest."""
    model.eval()
    rng = np.random.default_rng(SEED)

    def features() -> Iterator[tuple[Tensor, np.ndarray, np.ndarray]]:
        offsets, _ = _labels(shape)
        for _ in range(GROUPING_BATCHES):
            yield model.encode(inputs).float(), offsets, rng.integers(0, shape.labels, offsets[-1], dtype=np.int32)

    memory = int(ORDER_SHARE * plan.classifier_bytes)
    vectors = label_vectors(features(), shape.labels, model.encoder.width, SEED, memory)
    balanced_order(vectors, shape.group_size, SEED)
