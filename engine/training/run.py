"""The training of a run, from its beginning or its last checkpoint to its result."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from engine.config import RunConfig
from engine.data.label_order import LabelOrder
from engine.errors import DataError, EnvironmentProblem, MemoryBudgetError
from engine.inference.comparison import compare_baselines
from engine.inference.evaluation import EVALUATION_TOKENS, Ranker, evaluate_rows
from engine.inference.metrics import Metrics
from engine.kernels.dispatch import resolve_backend
from engine.model.bundle import load_bundle, read_info, recover_bundle
from engine.model.classifier import Classifier
from engine.model.features import FeatureInputs, by_length
from engine.peak_memory import bound_workspaces, host_peak_bytes, memory_bytes
from engine.planning.hardware import CUDA_CONTEXT, GIB, detect
from engine.planning.planner import Plan
from engine.planning.report import memory_line
from engine.runs import RunDirectory
from engine.training import checkpoints
from engine.training.new_run import refuse_changes
from engine.training.prepare import (
    TORCH,
    Material,
    classifier_shape,
    feature_file,
    features_of,
    gather,
    new_auxiliary,
    new_classifier,
    open_dataset,
    plan_run,
    prepare_encoder,
    prepare_words,
    tokens_of,
)
from engine.training.recovery import is_out_of_memory
from engine.training.reporter import Reporter
from engine.training.trainer import Trainer


def train(run: RunDirectory, config: RunConfig, profile: str, reporter: Reporter) -> dict[str, Any]:
    """Trains the run from its last checkpoint, or from the beginning if it has none. Returns its result.

    Raises MemoryBudgetError with advice where the memory does not suffice.
    """
    try:
        return _train(run, config, profile, reporter)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryBudgetError(
            f"{str(error).splitlines()[0]} Close other programs that use this memory and go on with `engine train "
            f"--resume {run.path}`, or start a run with a smaller hardware.memory_gib, for which a plan is made"
        ) from error


def _train(run: RunDirectory, config: RunConfig, profile: str, reporter: Reporter) -> dict[str, Any]:
    started = time.monotonic()
    hardware = detect(config.hardware.device)
    reporter.say(f"run       {run.path}")
    gib = hardware.memory_bytes / GIB
    reporter.say(f"hardware  {hardware.name}, {gib:.1f} GiB, {hardware.cores} cores; profile {profile}")
    recover_bundle(run.model)
    accelerator = _accelerator(config, hardware.device, hardware.compute)
    dataset = open_dataset(config, reporter)
    checkpoint = checkpoints.latest(run.checkpoints)
    material = gather(config, hardware, dataset, reporter)
    if checkpoint:
        _check_identity(checkpoint, config, material)
    plan = _plan(run, config, hardware, material, checkpoint, reporter)
    saved = None
    if checkpoint and checkpoints.has_part(checkpoint, "words"):  # earlier ones have none
        saved = checkpoints.load_tensors(checkpoint, "words")
    words = prepare_words(plan, material, reporter, saved)
    optimizer = prepare_encoder(config, plan, material, accelerator.device)
    if checkpoint:
        backend, _ = resolve_backend(config.classifier.backend, accelerator.device)
        order = LabelOrder.from_labels(checkpoints.load_tensors(checkpoint, "order")["label_at"].numpy(), plan.head)
        classifier = Classifier.new(classifier_shape(config, plan), backend, accelerator.device, 0)
    else:
        classifier, order = new_classifier(
            config, plan, material, words, accelerator.device, accelerator.autocast, reporter
        )
    del words  # many times the size of the vocabulary
    auxiliary = new_auxiliary(config, plan, material, classifier)
    trainer = Trainer(config, plan, material, classifier, order, auxiliary, optimizer, accelerator, run, reporter)
    if hardware.device == "cuda":
        start = checkpoint or trainer.save()
        if start is not None:  # what the trial changes is loaded again
            trainer.confirm()
            trainer.load(start)
    elif checkpoint:
        trainer.load(checkpoint)
    if checkpoint:
        reporter.say(f"resuming  at step {trainer.progress.step:,} of {trainer.total:,}")
    earlier = trainer.progress.wall
    trainer.fit(started)
    plan, progress = trainer.plan, trainer.progress
    peak = memory_bytes(accelerator.device)
    run.write_json("plan.json", {**plan.to_json(), "measured_bytes": peak})
    reporter.say(f"memory    {memory_line(plan.predicted_bytes, peak)}")
    del trainer, classifier, auxiliary, optimizer
    gc.collect()  # trainer and step refer to each other; the best model may not fit beside what they hold
    if hardware.device == "cuda":
        torch.cuda.empty_cache()
    metrics = _test(run, config, hardware, material, reporter)
    result = {
        "metrics": metrics.get("model", {}),
        "baselines": {name: values for name, values in metrics.items() if name != "model"},
        "labels": plan.labels,
        "width": plan.width,
        "fan_in": "dense" if plan.is_dense else plan.fan_in,
        "group_size": plan.group_size,
        "words": plan.words,
        "steps": progress.step,
        "model_step": read_info(run.model).step,
        "peak_memory_bytes": peak,
        "host_peak_bytes": host_peak_bytes(),
        "training_seconds": round(progress.seconds, 1),
        "wall_seconds": round(earlier + time.monotonic() - started, 1),
        "instances_per_second": round(progress.instances / max(1e-9, progress.seconds), 1),
    }
    run.write_json("result.json", result)
    return result


def _accelerator(config: RunConfig, device: str, compute: str) -> Accelerator:
    """Accelerate decides the device and the autocast type. Raises EnvironmentProblem for several processes."""
    # a bf16 encoder is bf16 throughout; fp16 needs its parameters in fp32
    mixed = "fp16" if config.encoder.trainable == "all" and compute == "fp16" else "no"
    accelerator = Accelerator(mixed_precision=mixed, cpu=device == "cpu")
    if accelerator.num_processes > 1:
        raise EnvironmentProblem("training runs in one process; start it with `engine train`, not `accelerate launch`")
    if device == "cuda":
        _prepare_cuda(config)
    return accelerator


def _prepare_cuda(config: RunConfig) -> None:
    if config.hardware.memory_gib != "auto":
        total = torch.cuda.get_device_properties(0).total_memory
        allowed = (config.hardware.memory_gib - config.hardware.reserve_gib) * GIB - CUDA_CONTEXT
        torch.cuda.set_per_process_memory_fraction(max(0.01, min(1.0, allowed / total)))
    bound_workspaces(config.training.deterministic)
    if config.training.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)


def _plan(
    run: RunDirectory, config: RunConfig, hardware, material: Material, checkpoint: Path | None, reporter: Reporter
) -> Plan:
    """The plan of this run: the stored one when it goes on, so that a change of the machine changes nothing."""
    if checkpoint:
        plan = Plan.from_json(run.read_json("plan.json"))
        return replace(plan, cuda_graphs=False) if config.encoder.cuda_graphs == "off" else plan
    plan = plan_run(config, hardware, material, reporter)
    run.write_json("plan.json", plan.to_json())
    return plan


def _check_identity(checkpoint: Path, config: RunConfig, material: Material) -> None:
    state = checkpoints.load_state(checkpoint)
    refuse_changes(RunConfig.from_flat(state["config"]), config, checkpoint)
    if state["dataset"] != material.dataset.digest:
        raise DataError(f"{material.dataset.path} has changed since {checkpoint} was written; start a new run")
    if state["encoder"] != material.encoder_digest:
        raise DataError(f"encoder {config.encoder.name} has changed since {checkpoint} was written; start a new run")


def _test(run: RunDirectory, config: RunConfig, hardware, material: Material, reporter: Reporter) -> dict[str, dict]:
    """Metrics of the best model and of the baselines on the test split; empty without one."""
    dataset = material.dataset
    if dataset.test is None or not len(dataset.test):
        reporter.say("there is no test split: no test metrics")
        return {}
    reporter.enter("evaluating", reporter.step, reporter.total, "test set")
    inputs = tokens_of(dataset.test, material.tokenizer, config, dataset.cache, reporter)
    lengths = inputs.tokens.lengths()
    features = None
    if material.frozen:  # before the model is loaded, which brings an encoder of its own
        file = feature_file(dataset, dataset.test, config, material.encoder_digest, hardware.compute)
        features = features_of(material.encoder, inputs, file, hardware.device, reporter)
    backend, _ = resolve_backend(config.classifier.backend, hardware.device)
    bundle = load_bundle(run.model, hardware.device, TORCH[hardware.compute], backend)
    if features is not None:
        inputs = FeatureInputs(features, inputs if bundle.model.words is not None else None)
        bundle.model.encoder = None
    e = config.evaluation

    def new_metrics() -> Metrics:
        return Metrics(
            e.k,
            frequency=material.label_frequency,
            n_train=len(dataset.train),
            propensity_a=e.propensity_a,
            propensity_b=e.propensity_b,
        )

    with reporter.stage("testing", "texts") as update:
        done = 0

        def count(rows: int) -> None:
            nonlocal done
            done += rows
            update(done, len(dataset.test))

        batches = [np.sort(rows) for rows in by_length(lengths, EVALUATION_TOKENS)]
        test = dataset.test
        ranker = Ranker(bundle.model, bundle.classifier, bundle.order, inputs, hardware.device, test.filter)
        found = evaluate_rows(ranker, test.labels, batches, new_metrics(), count)
    metrics = {"model": found}
    if e.baselines:
        metrics |= compare_baselines(dataset, new_metrics, max(e.k), reporter.stage, reporter.say)
    return metrics
