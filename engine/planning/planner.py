"""Turns what the configuration leaves on auto into numbers that fit the memory at hand.

The budget for the classifier is half of the planned memory less the reserve; the encoder, its
activations and the allocator live in the other half.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from engine.config import RunConfig, checkpointing_interval
from engine.errors import ConfigError, MemoryBudgetError
from engine.planning.hardware import GIB, Hardware

LADDER = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
GROUP_SIZE = 32
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
STATE_BYTES = {"rowwise": (4, 0), "sgd": (0, 0), "adamw8bit": (8, 2 + 2 * 4 / 256)}  # a label, a weight


@dataclass(frozen=True)
class Plan:
    """The resolved choices of a run. fan_in == width with head == labels means dense. Bytes are predictions."""

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
    budget_bytes: int

    @property
    def sparsity(self) -> float:
        return 1.0 - self.fan_in / self.width

    def to_json(self) -> dict:
        return asdict(self)


def make_plan(config: RunConfig, hardware: Hardware, labels: int, width: int, activations: int = 0) -> Plan:
    """labels: L · width: D, the features that the classifier reads · activations: bytes that the encoder's backward
    pass needs of a batch without checkpointing.

    Raises ConfigError for a fan-in above D, MemoryBudgetError if nothing fits.
    """
    c = config.classifier
    memory = hardware.memory_bytes if config.hardware.memory_gib == "auto" else config.hardware.memory_gib * GIB
    budget = int((memory - config.hardware.reserve_gib * GIB) / 2)
    dtype = c.weight_dtype
    if dtype == "auto":
        dtype = hardware.compute if hardware.device == "cuda" else "fp32"
    group_size = GROUP_SIZE if c.group_size == "auto" else c.group_size
    head = labels if c.fan_in == "dense" else min(labels, round(c.head_fraction * labels))

    def size(fan_in: int) -> dict[str, int]:
        return classifier_bytes(labels, head, width, fan_in, group_size, dtype, c.optimizer)

    check_fan_in(config, width)
    if c.fan_in == "dense":
        candidates = [width]
    elif c.fan_in == "auto":
        candidates = [fan_in for fan_in in LADDER if fan_in <= width // 2] or [max(1, width // 2)]
    else:
        candidates = [c.fan_in]
    fitting = [fan_in for fan_in in candidates if sum(size(fan_in).values()) <= budget]
    if not fitting:
        need = sum(size(min(candidates)).values())
        raise MemoryBudgetError(
            f"a classifier of {labels:,} labels takes {need / GIB:.1f} GiB, {max(budget, 0) / GIB:.1f} GiB are planned "
            "for it; lower classifier.fan_in or classifier.head_fraction, or raise hardware.memory_gib"
        )
    fan_in = max(fitting)
    every = checkpointing_interval(config.encoder.checkpointing)
    if every is None:
        every = 1 if hardware.device == "cuda" and activations > budget / 2 else 0
    in_backward = config.encoder.optimizer_in_backward is True
    if in_backward and config.encoder.trainable == "all" and hardware.compute == "fp16":
        raise ConfigError(
            f"{hardware.name} computes in fp16, whose scaled gradients are checked before the first update; "
            "set encoder.optimizer_in_backward = false"
        )
    micro = config.training.batch_size if config.training.micro_batch == "auto" else config.training.micro_batch
    return Plan(
        labels, head, width, fan_in, group_size, dtype, micro, every, in_backward, hardware.device, hardware.compute,
        size(fan_in), budget,
    )  # fmt: skip


def check_fan_in(config: RunConfig, width: int) -> None:
    """Raises ConfigError for a fan-in above the width D."""
    fan_in = config.classifier.fan_in
    if isinstance(fan_in, int) and fan_in > width:
        raise ConfigError(f"classifier.fan_in = {fan_in} exceeds the {width} features there are; lower it")


def classifier_bytes(
    labels: int, head: int, width: int, fan_in: int, group_size: int, weight_dtype: str, optimizer: str
) -> dict[str, int]:
    """Bytes of the classifier's tensors by kind: weights, bias, index, optimizer state."""
    tail = labels - head
    weights = head * width + tail * fan_in
    per_label, per_weight = STATE_BYTES[optimizer]
    return {
        "classifier weights": weights * WEIGHT_BYTES[weight_dtype],
        "classifier bias": labels * 4,
        "classifier index": -(-tail // group_size) * fan_in * (2 if width <= 32767 else 4),
        "classifier optimizer": int(labels * per_label + weights * per_weight),
    }
