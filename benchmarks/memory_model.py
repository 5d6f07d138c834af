"""How far the planner's predicted peak is from the measured one, over many configurations.

    python benchmarks/memory_model.py [--json FILE] [--only NAMES] [--tiny]

Each case does what a training does, with random weights, tokens and labels: features (a frozen encoder), encoder and
optimizer, groups, classifier, three steps, a rewiring, an evaluation; all in one process. On a GPU what is measured
is the peak of torch's allocator, on a CPU the largest resident size between phases, which earlier cases still raise:
there the predictions alone mean something. --tiny shrinks every case, to see on any machine that it runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.bench.encoders import new_encoder
from engine.bench.measure import free_memory, machine, machine_line, peak_bytes
from engine.config import RunConfig
from engine.inference.evaluation import top_labels
from engine.kernels.dispatch import resolve_backend
from engine.model.auxiliary import AuxiliaryObjective
from engine.model.classifier import Classifier, ClassifierShape
from engine.model.encoder import FeatureHead, TextEncoder, checkpoint_activations
from engine.model.features import FeatureModel, Inputs
from engine.model.grouping import balanced_order, label_vectors
from engine.model.local_features import MeanTexts, local_directions
from engine.model.local_layout import LocalLayout
from engine.model.meta_labels import first_weight
from engine.model.rewiring import rewire_layer
from engine.model.words import Words
from engine.peak_memory import bound_workspaces
from engine.planning.encoders import ENCODERS
from engine.planning.hardware import Hardware, detect
from engine.planning.memory import EVALUATION_TOKENS, FEATURE_TOKENS, GROUPING_TOKENS, ORDER_SHARE
from engine.planning.planner import Plan, Problem, make_plan
from engine.training.optimizers import make_optimizer
from engine.training.step import Batch, TrainingStep

MIB = 2**20
STEPS, SEED, LABELS_A_TEXT, BATCHES = 3, 0, 5, 4
MINILM, DISTILROBERTA, BERT = "all-MiniLM-L6-v2", "distilroberta-base", "bert-base-uncased"
# Predicted phases that one measured phase spans.
STEP_PHASES = (
    "forward",
    "classifier step",
    "backward",
    "update in backward",
    "embedding gradient",
    "update",
)


@dataclass(frozen=True)
class Case:
    """labels L, fan-in F, texts a batch, tokens a text (padded: of the longest) · keys: of the configuration."""

    encoder: str
    labels: int
    fan_in: int
    batch: int
    tokens: int
    head: float = 0.0
    padded: bool = True
    keys: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        texts = f"{self.batch}x{self.tokens}{'' if self.padded else ' full'}"
        rest = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.keys.items())
        return f"{self.encoder} L={self.labels:,} F={self.fan_in} {texts} head={self.head:g} {rest}".rstrip()


FROZEN = {"encoder.trainable": "none"}
WITHIN = {"encoder.optimizer_in_backward": True}
WORDS = {"words.fan_in": 256}


def again(every: int) -> dict[str, object]:
    return {"encoder.checkpointing": f"every_{every}"}


def parts(size: int) -> dict[str, object]:
    return {"training.micro_batch": size}


CASES = [
    Case(MINILM, 39_034, 64, 128, 96, 0.05),
    Case(MINILM, 39_034, 64, 128, 96, 0.05, keys=again(1)),
    Case(MINILM, 39_034, 32, 32, 32, 0.05),
    Case(MINILM, 131_072, 192, 256, 64, 0.05, padded=False),
    Case(MINILM, 670_091, 96, 256, 128, keys=again(2)),
    Case(MINILM, 670_091, 64, 128, 128, 0.05, keys=WITHIN),
    Case(MINILM, 2_812_281, 16, 64, 64, keys=parts(16)),
    Case(MINILM, 2_812_281, 128, 128, 96, keys=FROZEN),
    Case(MINILM, 40_000, 64, 64, 256, 0.05, keys={"encoder.optimizer": "adamw"}),
    Case(DISTILROBERTA, 40_000, 384, 64, 128, 0.05),
    Case(DISTILROBERTA, 670_091, 128, 128, 128, padded=False),
    Case(DISTILROBERTA, 670_091, 256, 128, 64, 0.05, keys=again(1)),
    Case(DISTILROBERTA, 2_812_281, 64, 128, 128, keys=parts(32)),
    Case(DISTILROBERTA, 8_623_847, 64, 128, 128, padded=False, keys=WITHIN),
    Case(DISTILROBERTA, 8_623_847, 32, 64, 128, keys={**WITHIN, **again(1)}),
    Case(DISTILROBERTA, 8_623_847, 64, 128, 32, keys=FROZEN),
    Case(DISTILROBERTA, 131_072, 64, 32, 256, 0.05),
    Case(DISTILROBERTA, 131_072, 16, 256, 32, 0.05, keys={"classifier.group_size": 64}),
    Case(BERT, 40_000, 64, 32, 256, 0.05),
    Case(BERT, 131_072, 192, 64, 64, 0.05, keys={"classifier.group_size": 16}),
    Case(BERT, 670_091, 128, 64, 128, padded=False, keys=WITHIN),
    Case(BERT, 670_091, 128, 64, 128, keys=again(1)),
    Case(BERT, 670_091, 64, 128, 128, 0.05, keys=parts(16)),
    Case(BERT, 2_812_281, 128, 128, 128, padded=False, keys=WITHIN),
    Case(BERT, 2_812_281, 128, 128, 128, keys={**WITHIN, **again(1)}),
    Case(BERT, 2_812_281, 96, 128, 128, keys={**parts(32), **again(3)}),
    Case(BERT, 670_091, 256, 256, 64, 0.01, keys={"classifier.weight_dtype": "fp8"}),
    Case(BERT, 131_072, 64, 64, 128, 0.05, keys={"classifier.backend": "torch"}),
    Case(MINILM, 39_034, 64, 128, 96, 0.05, keys=WORDS),
    Case(MINILM, 670_091, 64, 256, 32, 0.05, keys={**WORDS, **FROZEN}),
    Case(DISTILROBERTA, 670_091, 64, 128, 64, 0.01, keys={**WORDS, **again(1)}),
    Case(BERT, 2_812_281, 64, 128, 128, keys={**WORDS, **WITHIN, **again(1)}),
]


def shrunk(case: Case) -> Case:
    """The same case a hundred times smaller, on the smallest encoder."""
    keys = case.keys | ({"training.micro_batch": 2} if "training.micro_batch" in case.keys else {})
    size = {"labels": case.labels // 100, "batch": max(4, case.batch // 32), "tokens": case.tokens // 8}
    return replace(case, encoder=MINILM, fan_in=min(case.fan_in, 96), keys=keys, **size)


def plan_case(case: Case, hardware: Hardware) -> tuple[RunConfig, Plan]:
    config = RunConfig.from_flat(
        {
            "classifier.fan_in": case.fan_in,
            "classifier.group_size": 32,
            "classifier.head_fraction": case.head,
            "training.batch_size": case.batch,
            "training.micro_batch": case.batch,
            "encoder.checkpointing": "off",
            "encoder.optimizer_in_backward": False,
            "words.fan_in": 0,
            **case.keys,
        }
    )
    shape = ENCODERS[case.encoder]
    return config, make_plan(Problem(config, hardware, case.labels, shape, case.tokens, case.padded))


class Measured:
    """Peaks of the phases of one case, in bytes."""

    def __init__(self, case: Case, config: RunConfig, plan: Plan, encoder: TextEncoder) -> None:
        self.case, self.config, self.plan, self.encoder = case, config, plan, encoder
        self.device = torch.device(plan.device)
        self.trained = config.encoder.trainable == "all"
        self.rng = np.random.default_rng(SEED)
        self.peaks: dict[str, int] = {}
        self.before = 0  # bytes that earlier cases left on the device

    def run(self) -> dict[str, int]:
        free_memory(self.device)
        if self.device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()  # as in a process that has just begun
            self.before = torch.cuda.memory_allocated(self.device)
        peak_bytes(self.device)
        if not self.trained:
            self._features()
        model, optimizer = self._model()
        backend, _ = resolve_backend(self.config.classifier.backend, self.device)
        layout = ClassifierShape(
            self.plan.labels, self.plan.head, self.plan.width, self.plan.fan_in, self.plan.group_size,
            self.config.classifier.optimizer, self.plan.weight_dtype, self.plan.words, self.plan.head_words,
            self.plan.vocabulary, self.plan.clusters, self.plan.coarse, self.plan.local,
        )  # fmt: skip
        if not self.plan.is_dense and (self.plan.group_size > 1 or layout.clusters):
            self._group(model, layout.layout if layout.clusters else None)
        classifier = Classifier.new(layout, backend, self.device, SEED)
        if layout.clusters:
            classifier.read_local()
        weight = first_weight(self.config.auxiliary, self.plan.sparsity, self.trained)
        auxiliary = AuxiliaryObjective(self.config.auxiliary, weight, classifier, SEED) if weight else None
        self._end("classifier")
        step = TrainingStep(self.config, self.plan.micro_batch, model.train(), classifier, optimizer, auxiliary)
        if self.plan.cuda_graphs and (problem := step.record(self.case.tokens)):
            raise SystemExit(problem)
        batch = Batch(self._inputs(self.case.batch), *self._labels(self.case.batch))
        for number in range(1, STEPS + 1):
            step(batch, number, 1000, 1.0, number == STEPS)
        self._end("steps")
        generator = torch.Generator(self.device).manual_seed(SEED)
        rewire_layer(classifier.layers[-1], self.plan.width, 0.2, generator, local=layout.local_read)
        self._end("rewiring")
        with torch.no_grad():
            texts = max(1, EVALUATION_TOKENS // self.case.tokens)
            top_labels(model.eval(), classifier, self._inputs(texts), max(self.config.evaluation.k))
        self._end("evaluation")
        return self.peaks

    def _end(self, phase: str) -> None:
        self.peaks[phase] = peak_bytes(self.device) - self.before

    def _model(self):
        dtype = torch.bfloat16 if self.trained and self.plan.compute == "bf16" else torch.float32
        if self.trained and self.plan.checkpoint_every:
            checkpoint_activations(self.encoder, self.plan.checkpoint_every)
        head = FeatureHead(self.encoder.width, 0, self.config.encoder.dropout)
        if self.plan.adapter:
            head.add_adapter(self.plan.adapter)
        if self.plan.clusters:
            head.add_local((self.plan.clusters + self.plan.coarse) * self.plan.local)
        words = None
        if self.plan.vocabulary:
            idf, pairs = torch.ones(self.plan.vocabulary), torch.arange(self.plan.pairs)
            idf[0] = 0.0  # of padding
            words = Words(idf, pairs if self.plan.pairs else None)
        model = FeatureModel(self.encoder if self.trained else None, head, words)
        optimizer = make_optimizer(
            model,
            self.config,
            self.device,
            dtype,
            self.plan.optimizer_in_backward,
            self.trained and self.plan.compute == "fp16",
        )
        model.to(self.device)
        self._end("encoder")
        return model, optimizer

    @torch.inference_mode()
    def _features(self) -> None:
        dtype = torch.bfloat16 if self.plan.compute == "bf16" else torch.float32
        encoder = self.encoder.to(dtype).to(self.device).eval()
        for _ in range(2):
            encoder(*self._tokens(max(1, FEATURE_TOKENS // self.case.tokens)))
        encoder.to("cpu")
        self._end("features")

    @torch.no_grad()
    def _group(self, model: FeatureModel, layout: LocalLayout | None) -> None:
        model.eval()
        label_at = np.arange(self.plan.labels, dtype=np.int32)
        means = MeanTexts(label_at[self.plan.head :], self.plan.width) if layout else None
        memory = int(ORDER_SHARE * self.plan.classifier_bytes)
        vectors = label_vectors(self._encoded(model, means), self.plan.labels, self.encoder.width, SEED, memory)
        for labels in (label_at[: self.plan.head], label_at[self.plan.head :]):
            if len(labels):
                balanced_order(vectors, self.plan.group_size, SEED, torch.from_numpy(labels)).cpu()
        self._end("grouping")
        del vectors
        if layout:
            local_directions(means, layout, means.label_S.astype(np.int64) - self.plan.head)
            self._end("local features")

    def _encoded(self, model: FeatureModel, means: MeanTexts | None) -> Iterator[tuple[Tensor, np.ndarray, np.ndarray]]:
        texts = max(1, GROUPING_TOKENS // self.case.tokens)
        for _ in range(BATCHES):
            offsets, ids = self._labels(texts)
            x_BD = model.encode(self._inputs(texts)).float()
            if means is not None:
                means.add(model.head.shared(x_BD), offsets, ids.astype(np.int32))
            yield x_BD, offsets, ids.astype(np.int32)

    def _inputs(self, texts: int) -> Inputs:
        if self.trained:
            return self._tokens(texts)
        return torch.randn(texts, self.plan.width).to(self.device), self._tokens(texts)[0]

    def _tokens(self, texts: int) -> Inputs:
        size = (texts, self.case.tokens)
        ids = torch.from_numpy(self.rng.integers(5, self.encoder.model.config.vocab_size, size))
        mask = torch.ones_like(ids)
        if self.case.padded:
            mask[texts // 2 :, -(self.case.tokens // 8) :] = 0
        return ids.to(self.device), mask.to(self.device)

    def _labels(self, texts: int) -> tuple[np.ndarray, np.ndarray]:
        """CSR rows of distinct labels: a random first one, and others an even distance on."""
        distance = self.plan.labels // LABELS_A_TEXT
        first = self.rng.integers(0, self.plan.labels, texts)
        ids = (first[:, None] + distance * np.arange(LABELS_A_TEXT)) % self.plan.labels
        return np.arange(0, ids.size + 1, LABELS_A_TEXT), np.sort(ids, axis=1).reshape(-1)


def predicted_phases(plan: Plan) -> dict[str, int]:
    """Predictions under the names of what is measured."""
    phases = {name: size for name, size in plan.phases.items() if name not in STEP_PHASES}
    phases["steps"] = max(size for name, size in plan.phases.items() if name in STEP_PHASES)
    return phases


def measure(case: Case, hardware: Hardware, encoder: TextEncoder) -> dict:
    config, plan = plan_case(case, hardware)
    measured = Measured(case, config, plan, encoder)
    peaks = measured.run()
    peak = max(peaks.values())
    return {
        "name": case.name,
        "case": asdict(case),
        "predicted": plan.predicted_bytes,
        "measured": peak,
        "error": plan.predicted_bytes / peak - 1,
        "phase": max(peaks, key=peaks.get),
        "left by earlier cases": measured.before,
        "predicted_phases": predicted_phases(plan),
        "measured_phases": peaks,
    }


def print_row(row: dict) -> None:
    numbers = f"{row['predicted'] / MIB:>10,.0f}{row['measured'] / MIB:>10,.0f}{row['error']:>8.1%}"
    print(f"{numbers}  {row['phase']:<11} {row['name']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every phase of every case to this file")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose line contains this text")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tiny", action="store_true", help="a hundred times fewer labels, short texts, small batches")
    options = parser.parse_args()
    hardware = detect(options.device)
    bound_workspaces()
    print(machine_line(machine(torch.device(hardware.device))))
    print(f"`python benchmarks/memory_model.py {' '.join(sys.argv[1:])}`\n")
    print(f"{'predicted':>10}{'measured':>10}{'error':>8}  {'peak in':<11} MiB of what")
    encoders: dict[str, TextEncoder] = {}
    rows, started = [], time.monotonic()
    for case in map(shrunk, CASES) if options.tiny else CASES:
        if options.only not in case.name:
            continue
        if case.encoder not in encoders:
            encoders[case.encoder] = new_encoder(case.encoder, SEED)
        rows.append(measure(case, hardware, copy.deepcopy(encoders[case.encoder])))
        print_row(rows[-1])
    if not rows:
        raise SystemExit(f"no case contains {options.only!r}")
    errors = [row["error"] for row in rows]
    summary = {
        "cases": len(rows),
        "median error": statistics.median(map(abs, errors)),
        "worst error": max(map(abs, errors)),
        "most underestimated": min(errors),
        "seconds": time.monotonic() - started,
    }
    print(
        f"\n{len(rows)} cases in {summary['seconds']:.0f} s: median error {summary['median error']:.1%}, "
        f"worst {summary['worst error']:.1%}, most underestimated {summary['most underestimated']:+.1%}"
    )
    if options.json:
        report = {"machine": machine(torch.device(hardware.device)), "summary": summary, "cases": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
