"""The memory model of a training: what exists in each of its phases, in bytes. Needs no torch.

The peak of a run is the largest of its phases, not the sum of everything. On a GPU the figures are those of torch's
allocator; the CUDA context lies beside it and is part of the budget, not of the prediction. On a CPU they are the
process's. Constants that other modules own are repeated here, so that planning imports none of them;
tests/planning/test_memory.py compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.data.batches import rounded
from engine.model.grouping_layout import BLOCK, forming_bytes, vector_bytes
from engine.planning.activations import MIB, SEGMENT, Activations, Precision
from engine.planning.classifier_memory import (
    TOPK_INSTANCES,
    Layer,
    StepSetting,
    classifier_bytes,
    initial_bytes,
    rewiring_bytes,
    step_bytes,
    topk_bytes,
    word_bytes,
)
from engine.planning.encoders import EncoderShape

EVALUATION_TOKENS = 8192  # in a batch, see engine.inference.evaluation
GROUPING_TOKENS = 16_384  # in a batch whose features become label vectors, see engine.training.prepare
FEATURE_TOKENS = 4096  # in a batch of a frozen encoder, see engine.model.features
ORDER_SHARE = 0.9  # of the classifier's bytes, which are not taken yet: what forming groups may take of them
CUT_BYTES = 17  # a label, while a large node is cut on a GPU: two places and keys, a comparison and its sum's int64
PIECE = 1 << 22  # parameters that the optimizer moves at once, see engine.training.optimizers
# Of cuBLAS for a thread, of the forward pass and of the backward pass: see engine.peak_memory.bound_workspaces.
WORKSPACE, DETERMINISTIC_WORKSPACE = (2 * 4096 + 8 * 16) * 1024, 8 * 4096 * 1024
MEANS = 1 << 24  # numbers in the mean texts of labels, see engine.model.local_features
MEAN_BYTES, DIRECTION_BYTES = 12, 12  # fp32 with a copy or two, fp64 and fp32
GRAPH_BYTES = MIB // 6  # of a layer's launches, forward and backward (benchmarks/results/training-step-h200.md)
SMALL = 4 * MIB  # tables, inputs, counters
# Host memory of Python with its libraries; on a processor with what tokenizing, reading and the heap's holes leave
# behind, too (benchmarks/results/memory-model-cpu.md).
PROGRAM = {"cpu": 690 * MIB, "cuda": 1800 * MIB}
STATISTICS = 25 * MIB  # of the words of some ten thousand texts: what is left of them on a processor
HOST_LABEL_BYTES = 33  # a label: two permutations, its frequency, sorting it, its propensity
SAVING_BYTES = 64 * MIB  # host buffer through which tensors go to the disk, see engine.tensorfile


@dataclass(frozen=True)
class Setting:
    """All that memory depends on: the classifier (L, head, D, F, G), the encoder and how both are trained.

    tokens, batch, micro_batch: of a training step · padded: whether batches hold shorter texts, too · optimizer: the
    classifier's · encoder_optimizer: adamw8bit or adamw · meta_labels: 0 without the auxiliary objective · k: labels
    an instance that evaluation asks for · words, head_words: that a tail and a head label read beside their features,
    pieces of the vocabulary and `pairs` of them · clusters, coarse, local: how many, and of coarser ones, have so many
    features of their own each · lead: how many of the head labels read all words · evaluation_batch: texts in a batch
    of it, None for EVALUATION_TOKENS · decays: whether the classifier's weights do · cuda_graphs: whether the encoder's
    pass is recorded · adapter: hidden width of the adapter.
    """

    labels: int
    head: int
    width: int
    fan_in: int
    group_size: int
    weight_dtype: str
    encoder: EncoderShape
    tokens: int
    batch: int
    micro_batch: int
    trained: bool = True
    checkpoint_every: int = 0
    in_backward: bool = False
    device: str = "cuda"
    compute: str = "bf16"
    optimizer: str = "rowwise"
    encoder_optimizer: str = "adamw8bit"
    intermediate: int = 0
    backend: str = "triton"
    rewire: str = "set"
    meta_labels: int = 0
    k: int = 5
    padded: bool = True
    evaluation_batch: int | None = None
    words: int = 0
    head_words: int = 0
    pairs: int = 0
    clusters: int = 0
    coarse: int = 0
    local: int = 0
    lead: int = 0
    deterministic: bool = False
    decays: bool = False
    cuda_graphs: bool = False
    adapter: int = 0

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
        """Those among the fan-in of a tail label."""
        return self.local * (2 if self.coarse else 1)

    @property
    def vocabulary(self) -> int:
        """Columns of x behind the features."""
        return self.encoder.vocabulary + self.pairs if self.words or self.head_words else 0

    @property
    def precision(self) -> Precision:
        return Precision.of(self.compute, self.device)

    @property
    def trains_features(self) -> bool:
        """Whether anything below the classifier is trained."""
        return self.trained or self.intermediate > 0 or self.clusters > 0 or self.adapter > 0

    def step(self, batch: int) -> StepSetting:
        """A step of the classifier, or a search, for so many texts."""
        return StepSetting(
            self.width, self.local_columns, self.vocabulary, batch, self.tokens, self.backend, self.device,
            self.optimizer, self.decays or self.optimizer == "adamw8bit", self.trains_features,
        )  # fmt: skip

    def pass_over(self, batch: int) -> Activations:
        return Activations(self.encoder, self.precision, batch, self.tokens, self.device, self.padded)

    def classifier(self) -> dict[str, int]:
        """Bytes of the classifier's tensors by kind."""
        return classifier_bytes(self.layers(with_meta=False), self.optimizer, self.features + self.vocabulary)

    def layers(self, with_meta: bool = True) -> list[Layer]:
        """Labels that read all words, head, tail and meta-labels, as far as there are any."""
        group, dtype, words = self.group_size, self.weight_dtype, self.head_words
        found = [
            (self.lead, self.features + self.vocabulary, 0, dtype, self.vocabulary),
            (self.head - self.lead, self.width + words, group if words or self.clusters else 0, dtype, words),
            (self.labels - self.head, self.fan_in + self.words, group, dtype, self.words),
            (self.meta_labels if with_meta else 0, self.width, 0, "fp32", 0),
        ]
        return [layer for layer in found if layer[0]]


Phase = dict[str, int]  # bytes of each component that exists in it


@dataclass(frozen=True)
class Estimate:
    """phases: component → bytes of each · host: bytes of host memory beside them (on a CPU: none, all is host)."""

    phases: dict[str, Phase]
    host: Phase

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> int:
        return sum(self.phases[self.peak_phase].values())


def estimate(s: Setting) -> Estimate:
    """What every phase of a training takes."""
    below = encoder_bytes(s)
    phases = _before_training(s, below)
    resident = below | _classifier(s)
    if s.cuda_graphs:
        resident |= _graphs(s)
        phases |= _steps_between_graphs(s, resident)
    else:
        phases |= _steps(s, resident)
    phases["evaluation"] = resident | _threads(s, 2) | _evaluation(s)
    if s.rewire != "none" and s.head < s.labels and s.local_read < s.fan_in < s.width:
        tail = (s.labels - s.head, s.fan_in + s.words, s.group_size, s.weight_dtype, s.words)
        scratch = rewiring_bytes(tail, s.width, s.rewire, s.device)
        phases["rewiring"] = resident | _threads(s, 2) | {"rewiring scratch": scratch}
    base = {"program": PROGRAM["cpu"]} if s.device == "cpu" else {"small tensors": SMALL}
    if s.device == "cpu":
        base["label order"] = HOST_LABEL_BYTES * s.labels
        base["word statistics"] = STATISTICS if s.vocabulary else 0
    phases = {name: {k: v for k, v in (base | phase).items() if v} for name, phase in phases.items()}
    return Estimate(phases, host_bytes(s))


def encoder_bytes(s: Setting) -> Phase:
    """What training below the classifier holds from the first step to the last; gradients come and go."""
    p = s.precision
    matrices = sum(s.encoder.matrices) if s.trained else 0
    vectors = s.encoder.vectors if s.trained else 0
    if s.intermediate:
        matrices, vectors = matrices + s.encoder.hidden * s.intermediate, vectors + s.intermediate
    matrices, vectors = matrices + s.width * s.local_columns, vectors + s.local_columns
    moments = 2 + 8 / 256 if s.encoder_optimizer == "adamw8bit" else 8
    return {
        "encoder weights": (matrices + vectors) * p.parameter,
        "encoder master bits": (matrices + vectors) * 2 if p.parameter == 2 else 0,
        "encoder optimizer": int(matrices * moments) + vectors * 8,
        "adapter": 12 * adapter_parameters(s),  # fp32, as are its moments
    }


def adapter_parameters(s: Setting) -> int:
    """Of both layers of the adapter."""
    return 2 * s.encoder.hidden * s.adapter + s.encoder.hidden + s.adapter if s.adapter else 0


def host_bytes(s: Setting) -> Phase:
    """Host memory of a training on a GPU; files that are mapped do not count. The encoder is read in fp32."""
    if s.device == "cpu":
        return {}
    return {
        "program": PROGRAM["cuda"],
        "encoder while it is loaded": 4 * s.encoder.parameters,
        "label order": HOST_LABEL_BYTES * s.labels,
        "saving": SAVING_BYTES,
        "pinned batches": 8 * s.batch * s.tokens * 16,
    }


def _threads(s: Setting, count: int) -> Phase:
    """Workspaces of the threads that have multiplied matrices, and of the stream of CUDA graphs; without anything to
    train there is no backward pass."""
    count = count + s.cuda_graphs if s.trains_features else 1
    size = DETERMINISTIC_WORKSPACE if s.deterministic else WORKSPACE
    return {"matrix workspaces": count * size if s.device == "cuda" else 0}


def _classifier(s: Setting) -> Phase:
    parts = s.classifier()
    if s.meta_labels:
        parts["auxiliary head"] = s.meta_labels * (s.width * 4 + 8)
    return parts


def _before_training(s: Setting, below: Phase) -> dict[str, Phase]:
    """Phases up to the first step."""
    phases = {}
    if not s.trained:
        weights = {"encoder weights": s.encoder.parameters * s.precision.value}
        forward = s.pass_over(max(1, FEATURE_TOKENS // s.tokens)).forward_peak()
        phases["features"] = weights | _threads(s, 1) | {"encoder forward": forward}
    phases["encoder"] = below | _threads(s, 1) | {"optimizer temporaries": 4 * PIECE if any(below.values()) else 0}
    parts = s.classifier()
    if s.head < s.labels and (s.group_size > 1 or s.meta_labels or s.clusters):
        memory = int(ORDER_SHARE * sum(parts.values()))
        width, item = vector_bytes(s.labels, s.encoder.hidden, memory)
        vectors = s.labels * width * item
        forming = forming_bytes(s.labels, width, item) - vectors
        if s.labels > BLOCK and s.device == "cuda":
            forming = max(forming, CUT_BYTES * s.labels)
        batch = max(1, GROUPING_TOKENS // s.tokens)
        forward = s.pass_over(batch).forward_peak() if s.trained else 8 * batch * (s.width + s.adapter)
        held = {"label vectors": vectors}
        if s.clusters:
            held["covariance of features"] = 4 * s.width * s.width
            forward += 8 * s.width * (batch + s.width)
        if s.clusters and s.device == "cpu":
            held["mean texts of labels"] = 4 * min((s.labels - s.head) * s.width, MEANS)
            phases["local features"] = below | _threads(s, 1) | _directions(s)
        work = {"forming groups": forming} if forming > forward else {"encoder forward": forward}
        phases["grouping"] = below | _threads(s, 1) | held | work
    scratch = initial_bytes(s.layers(), s.width)
    phases["classifier"] = below | _classifier(s) | _threads(s, 1) | {"random numbers": scratch}
    return phases


def _directions(s: Setting) -> Phase:
    """Host memory while the directions of clusters are sought."""
    return {
        "mean texts of labels": MEAN_BYTES * min((s.labels - s.head) * s.width, MEANS),
        "directions": DIRECTION_BYTES * s.width * (s.local_columns + 4 * s.width),
    }


def _classifier_step(s: Setting) -> Phase:
    scratch = max(step_bytes(layer, s.step(s.batch)) for layer in s.layers())
    scratch += word_bytes(s.features, s.vocabulary, s.batch)
    return {"classifier workspace": scratch + 3 * 4 * s.features * s.batch}


def _graphs(s: Setting) -> Phase:
    """What CUDA graphs keep from one step to the next: most of what an encoder's pass takes at once and the holes
    between it, a gradient of every parameter, and what goes in and comes out."""
    phases = _steps(replace(s, cuda_graphs=False), {})
    kinds = ("activations", "encoder forward", "activation gradients", "encoder gradients", "weight gradient")
    names = ("forward", "backward", "embedding gradient")
    most = max(sum(size for kind, size in phases[name].items() if kind in kinds) for name in names)
    size, act = s.precision.value, s.pass_over(s.batch)
    # The gradients of a layer's inner half and of the words find no hole that is large enough; batches of other shapes
    # find some that are not.
    most += act.holes() + 2 * act.count * s.encoder.intermediate * size + max(s.encoder.matrices) * size + 3 * SEGMENT
    most += 2 * s.encoder.hidden * s.intermediate * size
    ends = 16 * s.batch * s.tokens + 2 * 4 * s.features * s.batch
    return {
        "recorded passes": most,
        "fixed gradients and inputs": phases["update"]["encoder gradients"] + ends,
    }


def recorded_bytes(s: Setting) -> int:
    """What the driver takes for CUDA graphs, beside torch's allocator: of every length of texts, and of the last batch
    of an epoch, which is smaller."""
    if not s.cuda_graphs:
        return 0
    lengths = {rounded(tokens, s.tokens) for tokens in range(1, s.tokens + 1)}
    return 2 * len(lengths) * s.encoder.layers * GRAPH_BYTES


def _steps_between_graphs(s: Setting, resident: Phase) -> dict[str, Phase]:
    """Phases of a training step whose encoder passes are recorded."""
    base = resident | _threads(s, 2) | {"features": 3 * 4 * s.features * s.batch}
    temporaries = update_bytes(PIECE, s) - s.precision.parameter * PIECE  # gradients lie side by side already
    return {"classifier step": base | _classifier_step(s), "update": base | {"optimizer temporaries": temporaries}}


def _steps(s: Setting, resident: Phase) -> dict[str, Phase]:
    """Phases of a training step."""
    step = _classifier_step(s)
    if not s.trained:
        layer = s.encoder.hidden * s.intermediate + s.width * s.local_columns
        layer *= 3 * s.precision.parameter  # the gradient and its copies
        # Moments in fp32 take a fourth copy; and there is what lies between the adapter's two layers.
        layer += 4 * 4 * (adapter_parameters(s) + s.adapter * s.batch)
        return {"classifier step": resident | _threads(s, 2) | step | {"layer gradients": layer}}
    one_pass = s.micro_batch >= s.batch
    act = s.pass_over(min(s.micro_batch, s.batch))
    features = {"features": 3 * 4 * s.features * s.batch}
    base = resident | _threads(s, 2) | features
    saved, e, p = act.saved(s.checkpoint_every), s.encoder, s.precision
    largest, word = max(e.matrices[2:]) * p.parameter, max(e.matrices) * p.parameter
    local = s.width * s.local_columns
    gradients = ((0 if s.in_backward else sum(e.matrices) + local) + e.vectors) * p.parameter
    earlier = {"encoder gradients": 0 if one_pass else gradients}  # of the micro-batches before
    a_layer = sum(e.matrices[2:]) // e.layers * p.parameter if one_pass and not s.in_backward else 0
    forward = {"activations": saved, "encoder forward": 2 * act.count * e.hidden * p.value}
    phases = {"forward": base | earlier | forward}
    phases["classifier step"] = base | {"activations": saved if one_pass else 0} | step
    more = act.backward_peak(s.checkpoint_every, a_layer) - saved
    backward = {"activations": saved, "activation gradients": more, "weight gradient": largest}
    phases["backward"] = base | earlier | backward
    temporaries = update_bytes(PIECE, s)
    if s.in_backward:
        bucket, layers = first_bucket(e)
        alive = act.after_first_layers(s.checkpoint_every, layers)
        phases["update in backward"] = base | {
            "activations": alive,
            "weight gradient": 2 * bucket * p.parameter,
            "optimizer temporaries": update_bytes(min(bucket, PIECE), s),
        }
    phases["embedding gradient"] = base | {
        "activation gradients": 2 * act.count * e.hidden * p.norm,
        "encoder gradients": gradients,
        "weight gradient": word if s.in_backward or not one_pass else 0,
        "optimizer temporaries": temporaries if s.in_backward else 0,
    }
    phases["update"] = base | {"encoder gradients": gradients, "optimizer temporaries": temporaries}
    return phases


def update_bytes(elements: int, s: Setting) -> int:
    """Temporaries of the optimizer for `elements` parameters: the gradients of neighbours side by side; where no kernel
    does the rest at once, also these in fp32, and clipped; the fp32 weights where they are made of two halves; with
    fp32 moments a square and a denominator."""
    if s.backend == "triton" and s.encoder_optimizer == "adamw8bit" and s.precision.parameter == 2:
        return s.precision.parameter * elements
    copies = 2 + (s.precision.parameter == 2) + 2 * (s.encoder_optimizer == "adamw")
    return (4 * copies + s.precision.parameter) * elements


def first_bucket(encoder: EncoderShape) -> tuple[int, int]:
    """(elements, whole layers) of the matrices that are the first to be updated during backward: the last bucket."""
    sizes = encoder.matrices
    elements = 0
    for size in sizes:  # as engine.training.optimizers cuts them
        elements = size if elements + size > PIECE else elements + size
    return elements, elements // (sum(sizes[2:]) // encoder.layers)


def _evaluation(s: Setting) -> Phase:
    batch = s.evaluation_batch or max(1, EVALUATION_TOKENS // s.tokens)
    forward = s.pass_over(batch).forward_peak() if s.trained else 8 * batch * (s.features + s.adapter)
    found = min(batch, TOPK_INSTANCES)
    scratch = max(topk_bytes(layer, s.step(found), s.k) for layer in s.layers())
    scratch += word_bytes(s.features, s.vocabulary, found)
    scratch += 8 * batch * (s.features + 4 * s.k)
    if scratch > forward:
        return {"top-k scratch": scratch}
    return {"encoder forward": forward}
