"""Bytes of the classifier's tensors and of what its computations take for a moment. Needs no torch.

A layer is (labels, columns F, group size G or 0 where dense, weight type, how many of the columns read words); x has
`width` features and, where words are read, a column a word of the vocabulary behind them. What a step allocates follows
engine.kernels.triton_backend and engine.kernels.reference; tests compare the constants.
"""

from __future__ import annotations

Layer = tuple[int, int, int, str, int]

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
STATE_BYTES = {"rowwise": (4, 0), "sgd": (0, 0), "adamw8bit": (8, 2 + 2 * 4 / 256)}  # a label, a weight
INIT_ELEMENTS = 1 << 22  # random numbers drawn at once, see engine.model.classifier
REWIRING_ELEMENTS = 1 << 22  # see engine.model.rewiring
SCRATCH_BYTES = 32 * 2**20  # of the fused kernels
BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}  # of the largest temporary in plain torch
MOST_COPIES = 64  # of dx
GATHER_COST = 32
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


def step_bytes(
    layer: Layer, width: int, vocabulary: int, batch: int, tokens: int, backend: str, device: str, optimizer: str
) -> int:
    """Most that a training step of one layer takes beside its tensors and x. tokens: of the longest text."""
    if layer[4] and not layer[2]:
        return _all_words_bytes(layer, width, batch, tokens, device, optimizer)
    if is_fused(layer, backend, optimizer):
        return _fused_step_bytes(layer, width, vocabulary if layer[4] else 0, batch)
    labels, fan_in, group, *_ = layer
    columns = width + (vocabulary if group else 0)
    rows, expands = _block(layer, columns, batch, device)
    rows = min(rows, labels)
    if not group:
        a_row = 4 * (2 * width + 2 * batch + 3 * fan_in)
    elif expands:
        a_row = 8 * fan_in + 4 * (2 * columns + 2 * batch + 5 * fan_in)
    else:
        a_row = 4 * (2 * batch + 2 * fan_in * batch // group + 5 * fan_in)
    return rows * a_row + 3 * 4 * width * batch


def _all_words_bytes(layer: Layer, width: int, batch: int, tokens: int, device: str, optimizer: str) -> int:
    """A step on the words that the batch has: their weights and where they lie, x twice, and a block's gradient."""
    labels, fan_in, _, dtype, words = layer
    columns = fan_in if optimizer == "adamw8bit" else width + min(words, int(DISTINCT * batch * tokens))
    rows = min(labels, max(1, int(BLOCK_BYTES[device] / 4 / max(columns, batch))))
    return columns * (8 * batch + 2 * labels * WEIGHT_BYTES[dtype] + 12 * rows + 16) + words * (batch + 9)


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


def topk_bytes(layer: Layer, width: int, vocabulary: int, batch: int, k: int, backend: str, device: str) -> int:
    """Most that the search for the k best labels of `batch` instances takes; never less for more labels."""
    labels, fan_in, group, _, words = layer
    width += vocabulary if words else 0
    if not is_fused(layer, backend):
        rows, _ = _block(layer, width, batch, device)
        shared = fan_in * batch // group if group else width
        return min(rows, labels) * 4 * (2 * batch + shared + 3 * fan_in) + 8 * width * batch
    block = max(256, _power_of_two(labels // 40_000))
    best = 2 * 8 * batch * min(-(-labels // 256), 40_000)
    return best + 2 * min(SCRATCH_BYTES, batch * k * block * 8) + 8 * width * batch


def rewiring_bytes(layer: Layer, width: int, method: str, device: str) -> int:
    """Scores of a block of groups (4 bytes, and 5 while the best are chosen), its weights and where they move (32)."""
    labels, fan_in, group, *_ = layer
    groups = min(-(-labels // group), max(1, REWIRING_ELEMENTS // max(width, group * fan_in)))
    gradient = 4 * min(BLOCK_BYTES[device], 4 * labels * width) if method == "rigl" else 0
    return groups * (9 * width + 32 * group * fan_in) + gradient


def _block(layer: Layer, width: int, batch: int, device: str) -> tuple[int, bool]:
    """(rows, whether they are written out over all features) of a block in plain torch."""
    _, fan_in, group, *_ = layer
    expands = bool(group) and group * width <= GATHER_COST * fan_in
    floats = max(width, batch) if not group or expands else max(fan_in / group * batch, batch, fan_in)
    return max(group or 1, int(BLOCK_BYTES[device] / 4 / floats)), expands


def _power_of_two(number: int) -> int:
    """The smallest that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()
