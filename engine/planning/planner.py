"""Turns what the configuration leaves on auto into numbers that fit the memory at hand.

The largest fan-in of the ladder whose predicted peak fits the budget wins; where labels are few, so that the last layer
costs no more than a small encoder, all of them read all features and 1,024 words.
Of the ways to train that fit with it the plan takes the first: whole batches before micro-batches, the optimizer after
backward before within it (where it clips matrix by matrix), and else the fastest. Words, and before them dense head
labels, are given up before the fan-in falls below FULL_FAN_IN.
What the configuration pins stays, and the rest is planned around it. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import combinations, islice, product
from math import ceil

from engine.config import RunConfig, checkpointing_interval
from engine.errors import ConfigError, MemoryBudgetError
from engine.model.local_layout import local_features
from engine.model.meta_labels import first_weight, wanted_meta_labels
from engine.planning.encoders import EncoderShape
from engine.planning.hardware import CUDA_CONTEXT, GIB, Hardware
from engine.planning.memory import Estimate, Setting, estimate, recorded_bytes
from engine.planning.word_counts import (
    FULL_FAN_IN,
    MOST_WORDS,
    WORDS,
    head_words_read,
    lead_labels,
    pairs_counted,
    words_read,
)

LADDER = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
GROUP_SIZES = (16, 32, 64)  # the first where the layer is small; the last halves the memory of the index
HEADS = (0.05, 0.01, 0.0)
# Weights with which a step of 128 texts is a fifth of a TFLOP, what a small encoder's takes, and on a processor half a
# second.
SMALL_LAYER, SMALL_CPU_LAYER = 1 << 28, 1 << 26
# A larger fan-in than FULL_FAN_IN is not bought with few words, fewer head labels, or passes of less than PASS_TOKENS.
PASS_TOKENS = 2048  # what keeps a device busy
MOST_RECORDED = 1 << 40  # weights times tokens of a step: 7 TFLOP, which take a small card longer than their launches
CHECKPOINTS = (0, 4, 3, 2, 1)
# What a plan takes over from a setting under the same name.
SETTLED = (
    "words", "head_words", "vocabulary", "pairs", "clusters", "coarse", "local", "lead", "adapter", "cuda_graphs",
)  # fmt: skip
HEADROOM = 1.02  # of the predicted peak: memory that the allocator holds in pieces too small to use


@dataclass(frozen=True)
class Plan:
    """The resolved choices of a run. fan_in == width with head == labels means dense. Bytes are predictions.

    components: what makes up the peak · phases: the peak of each phase · classifier_bytes: of the classifier's
    tensors · host_bytes: beside the device (on a CPU 0: all is host memory) · notches: how often the plan was lowered
    because a step ran out of memory · words, head_words: read by a tail and a head label beside their features, of a
    vocabulary with `pairs` · lead: how many head labels read all of it · clusters, coarse, local: of tail labels, and
    coarser ones, with so many features of their own each · adapter: hidden width of the adapter, 0: none.
    """

    labels: int
    head: int
    width: int
    fan_in: int
    group_size: int
    weight_dtype: str
    micro_batch: int
    checkpoint_every: int
    optimizer_in_backward: bool
    device: str
    compute: str
    components: dict[str, int]
    phases: dict[str, int]
    classifier_bytes: int
    predicted_bytes: int
    budget_bytes: int
    host_bytes: int
    notches: int = 0
    words: int = 0
    head_words: int = 0
    vocabulary: int = 0
    pairs: int = 0
    clusters: int = 0
    coarse: int = 0
    local: int = 0
    lead: int = 0
    cuda_graphs: bool = False
    adapter: int = 0

    @property
    def is_dense(self) -> bool:
        """Whether every label is a head label."""
        return self.head == self.labels

    @property
    def usual_words(self) -> int:
        """Words that all but the most frequent labels read."""
        return self.head_words if self.is_dense else self.words

    @property
    def sparsity(self) -> float:
        return 1.0 - self.fan_in / self.width

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict) -> Plan:
        """The plan that `to_json` gave, of this or another version."""
        return cls(**{key: value for key, value in stored.items() if key in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Problem:
    """What is planned for. tokens: of the longest text · padded: whether batches hold shorter ones, too."""

    config: RunConfig
    hardware: Hardware
    labels: int
    encoder: EncoderShape
    tokens: int
    padded: bool = True

    @property
    def width(self) -> int:
        """D, the features that the classifier reads."""
        return self.config.intermediate.width or self.encoder.hidden

    @property
    def trained(self) -> bool:
        return self.config.encoder.trainable == "all"


def make_plan(problem: Problem) -> Plan:
    """Raises ConfigError for a fan-in above D and for what cannot be combined, MemoryBudgetError if nothing fits."""
    check_fan_in(problem.config, problem.width)
    check_optimizer(problem)
    budget = budget_bytes(problem.config, problem.hardware)
    for fan_in in reversed(fan_ins(problem)):
        found = fitting(problem, fan_in, budget)
        if found:
            return plan_of(*found, budget)
    raise MemoryBudgetError(_advice(problem, budget))


def plan_of(setting: Setting, found: Estimate, budget: int) -> Plan:
    s = setting
    return Plan(
        s.labels, s.head, s.width, s.fan_in, s.group_size, s.weight_dtype, s.micro_batch, s.checkpoint_every,
        s.in_backward, s.device, s.compute,
        components=found.phases[found.peak_phase],
        phases={name: sum(parts.values()) for name, parts in found.phases.items()},
        classifier_bytes=sum(s.classifier().values()),
        predicted_bytes=found.peak,
        budget_bytes=budget,
        host_bytes=sum(found.host.values()),
        **{name: getattr(s, name) for name in SETTLED},
    )  # fmt: skip


def budget_bytes(config: RunConfig, hardware: Hardware) -> int:
    """Memory that a training may take: what is planned for or else free, less the reserve and the CUDA context."""
    h = config.hardware
    free = hardware.memory_bytes if hardware.free_bytes is None else hardware.free_bytes
    memory = free - h.reserve_gib * GIB
    if h.memory_gib != "auto":
        memory = min(free, (h.memory_gib - h.reserve_gib) * GIB)
    return int(memory) - (CUDA_CONTEXT if hardware.device == "cuda" else 0)


def fan_ins(problem: Problem) -> list[int]:
    """Fan-ins to choose from, ascending."""
    wanted, width = problem.config.classifier.fan_in, problem.width
    if wanted == "dense":
        return [width]
    if wanted != "auto":
        return [wanted]
    ladder = [fan_in for fan_in in LADDER if fan_in <= width // 2] or [max(1, width // 2)]
    columns = width + (MOST_WORDS if problem.config.words.fan_in != 0 else 0)
    most = SMALL_LAYER if problem.trained or problem.hardware.device == "cuda" else SMALL_CPU_LAYER
    small = problem.labels * columns <= most and problem.config.classifier.head_fraction == "auto"
    return [*ladder, width] if small else ladder


def fitting(problem: Problem, fan_in: int, budget: float) -> tuple[Setting, Estimate] | None:
    """The preferred way to train with that fan-in within the budget, or None."""
    ways = list(_ways(problem, fan_in))
    for setting in _classifiers(problem, fan_in):
        leanest = [replace(setting, **way) for way in _leanest(ways)]
        if all(estimate(lean).peak * HEADROOM > budget for lean in leanest):
            continue
        for way in ways:
            tried = replace(setting, **way)
            found = estimate(tried)
            if found.peak * HEADROOM + recorded_bytes(tried) <= budget:
                return tried, found
    return None


def least(problem: Problem, fan_in: int) -> int:
    """Fewest bytes of budget with which that fan-in can be trained."""
    ways = _leanest(list(_ways(problem, fan_in)))
    peaks = [estimate(replace(setting, **way)).peak for setting in _classifiers(problem, fan_in) for way in ways]
    return int(min(peaks) * HEADROOM) + 1


def relative_time(encoder: EncoderShape, passes: int, checkpoint_every: int, in_backward: bool) -> float:
    """Rough time of an encoder's step in forward passes: backward costs two, a layer computed again its share of one,
    micro-batches a second forward pass and a twentieth a pass, an update within backward a tenth."""
    again = -(-encoder.layers // checkpoint_every) / encoder.layers if checkpoint_every else 0.0
    return 3.0 + again + (1.0 + 0.05 * passes if passes > 1 else 0.0) + 0.1 * in_backward


def check_fan_in(config: RunConfig, width: int) -> None:
    """Raises ConfigError for a fan-in above the width D."""
    fan_in = config.classifier.fan_in
    if isinstance(fan_in, int) and fan_in > width:
        raise ConfigError(f"classifier.fan_in = {fan_in} exceeds the {width} features there are; lower it")


def check_optimizer(problem: Problem) -> None:
    """Raises ConfigError where gradients have to be looked at before they are used, and may not be kept."""
    if problem.config.encoder.optimizer_in_backward is True and problem.trained and problem.hardware.compute == "fp16":
        raise ConfigError(
            f"{problem.hardware.name} computes in fp16, whose scaled gradients are checked before the first update; "
            "set encoder.optimizer_in_backward = false"
        )


def _ways(problem: Problem, fan_in: int) -> Iterator[dict]:
    """Ways to train the encoder that the configuration allows for that fan-in, the preferred first."""
    config, encoder, batch = problem.config, problem.encoder, problem.config.training.batch_size
    every = checkpointing_interval(config.encoder.checkpointing)
    within = config.encoder.optimizer_in_backward
    micro = config.training.micro_batch
    if not problem.trained:
        batch = batch if micro == "auto" else micro
        yield {"micro_batch": batch, "checkpoint_every": 0, "in_backward": within is True, "cuda_graphs": False}
        return
    everies = [n for n in CHECKPOINTS if n < encoder.layers] if every is None else [every]
    if every is None and not encoder.fused_attention:
        everies = [0]  # its layers cannot be computed again one by one
    withins = [within] if within != "auto" else [False, True]
    if within == "auto" and problem.hardware.compute == "fp16":
        withins = [False]
    micros = [micro]
    if micro == "auto":
        micros = [batch]
        least_tokens = PASS_TOKENS if fan_in > FULL_FAN_IN and config.classifier.fan_in == "auto" else 0
        while micros[-1] > 1 and within is not True and -(-micros[-1] // 2) * problem.tokens >= least_tokens:
            micros.append(-(-micros[-1] // 2))
    found = [(m, n, w, False) for m in micros for n in everies for w in withins if not (w and m < batch)]
    if config.encoder.cuda_graphs == "auto" and _can_be_recorded(problem):
        found += [(m, n, w, True) for m, n, w, _ in found if m >= batch and not n and not w]

    def preference(way: tuple[int, int, bool, bool]) -> tuple:
        m, n, w, graphs = way
        return m < batch, w, relative_time(encoder, -(-batch // m), n, w), not graphs

    for m, n, w, graphs in sorted(found, key=preference):
        yield {"micro_batch": m, "checkpoint_every": n, "in_backward": w, "cuda_graphs": graphs}


def _can_be_recorded(problem: Problem) -> bool:
    """Whether the encoder's pass may become a CUDA graph: where it waits for nothing, gradients are not scaled, and
    launching it may take longer than computing it."""
    hardware, encoder, config = problem.hardware, problem.encoder, problem.config
    is_fit = hardware.device == "cuda" and hardware.compute == "bf16" and not config.encoder.compile
    products = sum(encoder.matrices[2:]) * config.training.batch_size * problem.tokens
    return is_fit and encoder.shares_mask and encoder.fused_attention and products <= MOST_RECORDED


def _leanest(ways: list[dict]) -> list[dict]:
    """Those of which one takes the least memory: the smallest micro-batches, and the update within backward, both
    with as many layers computed again as may be."""
    again = max((way["checkpoint_every"] for way in ways), key=lambda n: (n > 0, -n))
    ways = [way for way in ways if way["checkpoint_every"] == again and not way["cuda_graphs"]]
    smallest = min(ways, key=lambda way: way["micro_batch"])
    return [smallest, *(way for way in ways if way["in_backward"] and way is not smallest)]


def _classifiers(problem: Problem, fan_in: int) -> Iterator[Setting]:
    """Settings of that fan-in, the preferred first: more words, then more head labels, then smaller groups."""
    config, hardware, width = problem.config, problem.hardware, problem.width
    c, labels = config.classifier, problem.labels
    dtype = c.weight_dtype
    if dtype == "auto":
        dtype = hardware.compute if hardware.device == "cuda" else "fp32"
    fractions = [c.head_fraction]
    if c.head_fraction == "auto":
        fractions = HEADS if fan_in <= FULL_FAN_IN or c.fan_in != "auto" else HEADS[:1]
    backend = c.backend
    if backend == "auto":
        backend = "triton" if hardware.device == "cuda" and hardware.compute == "bf16" else "torch"
    weight = first_weight(config.auxiliary, 1.0 - fan_in / width, config.trains_features)
    meta = wanted_meta_labels(config.auxiliary, labels) if weight else 0
    is_dense = c.fan_in == "dense" or (c.fan_in == "auto" and fan_in == width and problem.trained)
    for words, fraction, group in product(words_read(problem, fan_in), fractions, _group_sizes(problem, fan_in)):
        head = labels if is_dense else min(labels, round(fraction * labels))
        head_words = head_words_read(problem, words, is_dense) if head else 0
        lead = 0 if is_dense else lead_labels(problem, words, head)
        clusters, coarse, local = 0, 0, 0
        if head < labels:
            clusters, coarse, local = local_features(config.local, labels - head, group, width, fan_in, problem.trained)
        yield Setting(
            labels, head, width, fan_in, group, dtype, problem.encoder, problem.tokens, config.training.batch_size,
            config.training.batch_size, trained=problem.trained, device=hardware.device, compute=hardware.compute,
            optimizer=c.optimizer, encoder_optimizer=config.encoder.optimizer,
            intermediate=config.intermediate.width, backend=backend, rewire=config.rewire.method,
            meta_labels=meta, k=max(config.evaluation.k), padded=problem.padded,
            words=words if head < labels else 0, head_words=head_words,
            pairs=pairs_counted(problem, head_words or words, lead), clusters=clusters, coarse=coarse, local=local,
            lead=lead, deterministic=config.training.deterministic, decays=c.weight_decay > 0,
            adapter=config.adapter_width(problem.encoder.hidden),
        )  # fmt: skip


def _group_sizes(problem: Problem, fan_in: int) -> tuple[int, ...]:
    """How many labels may share an index, the preferred first. Half as many are more accurate where the encoder is
    trained, and add twice as many numbers to the gradient of its features, which shows where labels are many."""
    c = problem.config.classifier
    if c.group_size != "auto":
        return (c.group_size,)
    small = problem.labels * (fan_in + WORDS[0]) <= SMALL_LAYER
    return GROUP_SIZES if small and problem.trained else GROUP_SIZES[1:]


def _advice(problem: Problem, budget: int) -> str:
    """One line: what the leanest training needs, and the three cheapest changes that would make it fit."""
    need, single = least(problem, fan_ins(problem)[0]), list(_changes(problem))
    alone = {change: _enough(problem, change) for change in single}
    changes = [text for text in alone.values() if text][:2]
    if not changes:
        pairs = (_enough(problem, *pair) for pair in combinations(single, 2))
        changes += islice(filter(None, pairs), 1)
    fewer = most_labels(problem, budget)
    if fewer:
        changes.append(f"at most {fewer:,} labels")
    changes.append(_memory_for(problem))
    if len(changes) < 3:
        others = sorted((c for c in single if not alone[c]), key=lambda change: _lacking(_with(problem, *change)))
        changes += [_change_and_less(problem, *change, fewer) for change in others[: 3 - len(changes)]]
    return (
        f"{problem.labels:,} labels need {need / GIB:.2f} GiB at the least, {max(budget, 0) / GIB:.2f} GiB may be "
        f"taken. What would fit: {'; or '.join(changes[:3])}"
    )


def _enough(problem: Problem, *changes: tuple[str, object]) -> str | None:
    """What to write of changes that together make the problem fit, None if they do not."""
    changed = problem
    for key, value in changes:
        changed = _with(changed, key, value)
    need, room = least(changed, fan_ins(changed)[0]), budget_bytes(changed.config, changed.hardware)
    if need > room:
        return None
    more = f" of {room / GIB:.2f}" if changed.config.hardware != problem.config.hardware else ""
    return f"{' and '.join(f'{key}={value}' for key, value in changes)} (needs {need / GIB:.2f}{more} GiB)"


def _change_and_less(problem: Problem, key: str, value: object, fewer: int) -> str:
    """A change that is not enough, and the labels, or else the memory, that do with it. fewer: labels without it."""
    changed = _with(problem, key, value)
    labels = most_labels(changed, budget_bytes(changed.config, changed.hardware))
    return f"{key}={value} and {f'at most {labels:,} labels' if labels > fewer else _memory_for(changed)}"


def _memory_for(problem: Problem) -> str:
    """The memory with which the leanest training fits: a setting where the device has it, else another device."""
    need, hardware = least(problem, fan_ins(problem)[0]), problem.hardware
    on_gpu = hardware.device == "cuda"
    beside = problem.config.hardware.reserve_gib + (CUDA_CONTEXT / GIB if on_gpu else 0)
    gib = ceil(100 * (need / GIB + beside)) / 100
    free = hardware.memory_bytes if hardware.free_bytes is None else hardware.free_bytes
    if problem.config.hardware.memory_gib != "auto" and gib * GIB <= free:
        return f"hardware.memory_gib={gib:.2f}"
    if gib * GIB <= hardware.memory_bytes:
        return f"{gib:.2f} GiB of free memory"
    return f"a {'card' if on_gpu else 'machine'} with {gib:.2f} GiB"


def _lacking(problem: Problem) -> int:
    """Bytes by which the leanest training exceeds the budget."""
    return least(problem, fan_ins(problem)[0]) - budget_bytes(problem.config, problem.hardware)


def _changes(problem: Problem) -> Iterator[tuple[str, object]]:
    """(key, value) of changes that save memory, in the order of what they cost."""
    config = problem.config
    c, e = config.classifier, config.encoder
    if c.group_size not in ("auto", GROUP_SIZES[-1]):
        yield "classifier.group_size", "auto"
    if config.training.micro_batch != "auto":
        yield "training.micro_batch", "auto"
    if e.checkpointing != "auto":
        yield "encoder.checkpointing", "auto"
    if e.optimizer == "adamw" and problem.trained:
        yield "encoder.optimizer", "adamw8bit"
    if c.optimizer == "adamw8bit":
        yield "classifier.optimizer", "rowwise"
    if c.fan_in != "auto":
        yield "classifier.fan_in", "auto"
    if config.words.fan_in not in ("auto", 0):
        yield "words.fan_in", "auto"
    if c.head_fraction not in ("auto", 0.0):
        yield "classifier.head_fraction", "auto"
    if c.weight_dtype not in ("fp8", "bf16", "fp16") and problem.hardware.device == "cuda":
        yield "classifier.weight_dtype", problem.hardware.compute
    if c.weight_dtype != "fp8":
        yield "classifier.weight_dtype", "fp8"
    if problem.tokens > 32:
        yield "data.max_tokens", 32
    if config.adapter_width(problem.encoder.hidden):
        yield "adapter.width", 0
    if config.training.batch_size > 16 and config.training.micro_batch in ("auto", *range(1, 17)):
        yield "training.batch_size", 16
    if config.hardware.reserve_gib:
        yield "hardware.reserve_gib", 0
    if problem.trained and e.optimizer_in_backward is not True:
        yield "encoder.trainable", "none"


def _with(problem: Problem, key: str, value: object) -> Problem:
    values = problem.config.flat() | {key: value}
    tokens = min(problem.tokens, value) if key == "data.max_tokens" else problem.tokens
    return replace(problem, config=RunConfig.from_flat(values), tokens=tokens)


def most_labels(problem: Problem, budget: int) -> int:
    """The largest number of labels that can be trained within the budget, to two digits; 0 if none can."""

    def fits(labels: int) -> bool:
        return least(replace(problem, labels=labels), fan_ins(problem)[0]) <= budget

    if not fits(1):
        return 0
    low, high = 1, problem.labels
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    scale = 10 ** max(0, len(str(low)) - 2)
    return low // scale * scale
