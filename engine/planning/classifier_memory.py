"""Bytes of the classifier's tensors and of what its computations take for a moment. Needs no torch.

A layer is (labels, columns F, group size G or 0 where dense, weight type, how many of the columns read words); x has
`width` features and, where words are read, a column a word of the vocabulary behind them. What a step allocates follows
engine.kernels.triton_backend, engine.kernels.reference and engine.kernels.products; tests compare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

Layer = tuple[int, int, int, str, int]

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
STATE_BYTES = {"rowwise": (4, 0), "sgd": (0, 0), "adamw8bit": (8, 2 + 2 * 4 / 256)}  # a label, a weight
INIT_ELEMENTS = 1 << 22  # random numbers drawn at once, see engine.model.classifier
REWIRING_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 22}  # see engine.model.rewiring
SCRATCH_BYTES = 32 * 2**20  # of the fused kernels
BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 64 * 2**20}  # of the largest temporary in plain torch
MOST_COPIES = 64  # of dx
GATHER_COST, UNFORESEEN = 32, 4
QUANTIZATION_BLOCK = 256  # weights that share a scale of 8-bit moments
GROUP_SIZES = (16, 32, 64, 128)  # of the fused kernels
POSITIVES = 10  # labels an instance, where the data are not here to count them
TOPK_INSTANCES = 128  # searched at once
DISTINCT = 0.6  # words a token, pairs among them, in a batch of 128: 0.34 to 0.55 in the longest of four corpora


def classifier_bytes(layers: list[Layer], optimizer: str, columns: int) -> dict[str, int]:
    """Bytes of the tensors of the layers by kind: weights, bias, index, optimizer state. columns: of x."""
    per_label, per_weight = STATE_BYTES[optimizer]
    found = {"classifier weights": 0, "classifier bias": 0, "classifier index": 0, "classifier optimizer": 0}
    for labels, fan_in, group, dtype, words in layers:
        moments = 2 if words and optimizer == "rowwise" else 1
        found["classifier weights"] += labels * fan_in * WEIGHT_BYTES[dtype]
        found["classifier bias"] += labels * 4
        found["classifier index"] += -(-labels // group) * fan_in * index_bytes(columns) if group else 0
        found["classifier optimizer"] += int(labels * per_label * moments + labels * fan_in * per_weight)
    return found


def index_bytes(columns: int) -> int:
    """Of one id of a column of x."""
    return 2 if columns <= 1 << 16 else 4


def is_fused(layer: Layer, backend: str, optimizer: str = "rowwise") -> bool:
    """Whether the fused kernels cover the layer."""
    _, fan_in, group, _, words = layer
    covered = not group or (group in GROUP_SIZES and (fan_in % 16 == 0 or words > 0))
    return backend == "triton" and optimizer != "adamw8bit" and covered


def initial_bytes(layers: list[Layer], width: int) -> int:
    """While the tensors are filled: normal numbers of the weights; of the index, which comes before them, noise, its
    largest with their places (12 bytes), and these sorted (24 more)."""
    scratch = 4 * min(INIT_ELEMENTS, max(labels * fan_in for labels, fan_in, *_ in layers))
    for labels, fan_in, group, dtype, words in layers:
        if group:
            index = (4 * width + 36 * (fan_in - words)) * min(INIT_ELEMENTS // width, -(-labels // group))
            scratch = max(scratch, index - labels * fan_in * WEIGHT_BYTES[dtype])
    return scratch


@dataclass(frozen=True)
class StepSetting:
    """What a training step or a search is taken of. width: D · local: features behind it · vocabulary: words · batch:
    texts of at most `tokens` tokens · moves_all: whether weights move whose words no text has · wants_dx: whether
    something below the classifier trains."""

    width: int
    local: int
    vocabulary: int
    batch: int
    tokens: int
    backend: str
    device: str
    optimizer: str = "rowwise"
    moves_all: bool = False
    wants_dx: bool = True

    @property
    def features(self) -> int:
        """Columns of x before the words."""
        return self.width + self.local

    def distinct(self, words: int) -> int:
        """How many of so many words the texts of a batch have."""
        return min(words, int(DISTINCT * self.batch * self.tokens))


def step_bytes(layer: Layer, s: StepSetting) -> int:
    """Most that a training step of one layer takes beside its tensors and x."""
    _, _, group, _, words = layer
    if is_fused(layer, s.backend, s.optimizer) and (group or not words):
        return _fused_step_bytes(layer, s.features, s.vocabulary if words else 0, s.batch)
    copies = 4 * s.features * s.batch * ((not words) + s.wants_dx)
    return _block_bytes(layer, s, True) + copies + _present_bytes(layer, s)


def topk_bytes(layer: Layer, s: StepSetting, k: int) -> int:
    """Most that the search for the k best labels of a batch takes; never less for more labels."""
    labels, *_, words = layer
    width = s.features + (s.vocabulary if words else 0)
    if not is_fused(layer, s.backend):
        s = replace(s, optimizer="rowwise", moves_all=False)
        copies = 0 if words else 4 * s.batch * s.features
        return _block_bytes(layer, s, False) + copies + _present_bytes(layer, s)
    block = max(256, _power_of_two(labels // 40_000))
    best = 2 * 8 * s.batch * min(-(-labels // 256), 40_000)
    return best + 2 * min(SCRATCH_BYTES, s.batch * k * block * 8) + 8 * width * s.batch


def _leaves_out(layer: Layer, s: StepSetting) -> bool:
    """Whether words that no text of a batch has are left out in plain torch."""
    _, _, group, _, words = layer
    return words > 0 and not s.moves_all and (not group or s.device == "cpu")


def _present_bytes(layer: Layer, s: StepSetting) -> int:
    """Words that the texts have and features behind those of a layer, as columns of x once more, and where they lie."""
    if not _leaves_out(layer, s):
        return 0
    return (s.distinct(layer[4]) + s.local) * (4 * s.batch + 8) + 12 * s.vocabulary


def _block_bytes(layer: Layer, s: StepSetting, trains: bool) -> int:
    """Most that a block of rows takes in plain torch, however many of their words a batch has."""
    words = layer[4]
    if not _leaves_out(layer, s):
        return _rows_bytes(layer, s, words, trains)
    most = s.distinct(words)
    return max(_rows_bytes(layer, s, read, trains) for read in (most, most // 8))


def _rows_bytes(layer: Layer, s: StepSetting, read: int, trains: bool) -> int:
    """Of a block of rows of which each multiplies `read` words: logits by features and by words and their loss, values,
    gradients, and what of x every group reads."""
    labels, fan_in, group, dtype, words = layer
    features, leaves_out, narrow = fan_in - words, _leaves_out(layer, s), dtype != "fp32"
    floats, a_label = max(features + read, s.batch), 3 * s.batch
    a_column = narrow  # values, and where these change, gradients and what rounding or 8-bit moments take
    if trains:
        eight_bit = s.optimizer == "adamw8bit"
        a_column += 1 + 5 * max(narrow, eight_bit) + 2 * (eight_bit and words > 0)
    a_label += (features + read) * a_column + (4 if group else 1) * read * leaves_out
    if group:
        floats = max(floats, read / group * s.batch, words / group * s.batch / UNFORESEEN)
        a_label += read * s.batch / group + 4 * words / group
        if leaves_out:
            floats = max(floats, 2 * words / group, 2 * read)
    if group and features < s.width and group * s.features <= GATHER_COST * features:
        floats = max(floats, s.features, 2 * features)
        a_label += 2 * features + 2 * s.features
    elif group and features < s.width:
        floats = max(floats, features / group * s.batch)
        a_label += features * s.batch / group * (1 + (trains and s.wants_dx))
    quantum = group or 1
    if s.optimizer == "adamw8bit" and trains:
        quantum *= QUANTIZATION_BLOCK // gcd(quantum * fan_in, QUANTIZATION_BLOCK)
    rows = max(quantum, int(BLOCK_BYTES[s.device] / 4 / floats))
    return int(min(labels, rows) * 4 * a_label)


def word_bytes(width: int, vocabulary: int, batch: int) -> int:
    """x with its words, fp32 [batch, width + vocabulary]; the counts of a text's tokens are small beside it."""
    return 4 * (width + vocabulary) * batch if vocabulary else 0


def _fused_step_bytes(layer: Layer, width: int, vocabulary: int, batch: int) -> int:
    """The features by column, copies of dx and their sum in fp32, marks of positives and, where a row is wide, the
    loss gradients of a launch."""
    labels, fan_in, group, dtype, words = layer
    instances = min(_power_of_two(max(batch, 32)), 128)
    padded, rows = _power_of_two(fan_in), min(group, 64) if group else 64
    is_wide = not group or words or dtype == "fp32" or padded > 256 or padded * rows > 8192
    if is_wide or padded == 256:
        instances = min(instances, 64)
    stride = -(-batch // instances) * instances
    tiles = -(-labels // rows)
    element, partial = (4, 4) if dtype == "fp32" else (2, 2)
    copies = max(1, min(SCRATCH_BYTES // (width * stride * partial), tiles, MOST_COPIES))
    size = width * stride * (copies * partial + 2 * 4) + (width + vocabulary) * stride * element
    size += 8 * tiles + POSITIVES * batch * -(-stride // 32) * rows * 4
    if is_wide:
        a_tile = stride * rows * element
        size += min(tiles, max(copies, SCRATCH_BYTES // a_tile)) * a_tile
    return size


def rewiring_bytes(layer: Layer, width: int, method: str, device: str) -> int:
    """Scores of a block of groups (4 bytes, and 5 while the best are chosen), its weights and where they move (32)."""
    labels, fan_in, group, *_ = layer
    groups = min(-(-labels // group), max(1, REWIRING_ELEMENTS[device] // max(width, group * fan_in)))
    gradient = 4 * min(BLOCK_BYTES[device], 4 * labels * width) if method == "rigl" else 0
    return groups * (9 * width + 32 * group * fan_in) + gradient


def _power_of_two(number: int) -> int:
    """The smallest that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()
