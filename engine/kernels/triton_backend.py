"""The classifier on a GPU: chooses a fused kernel and its tile for each layer, prepares its arguments, launches it.

Same functions as `reference`, which specifies them. Layers and options the kernels do not cover (one label a
group, AdamW with 8-bit states, odd fan-ins) are passed on to the reference; `supports` says which. Setting
TRITON_INTERPRET=1 before the first import runs the kernels on a CPU, slowly, for tests.

A step allocates nothing that grows with the classifier but 4 bytes a tile of labels (and a bit for every
instance and row of the tiles that hold a positive); the rest is copies of dx, bounded by SCRATCH_BYTES.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from engine.kernels import reference
from engine.kernels.layer import FP8, LabelLayer, Positives, StepOptions
from engine.kernels.reference import gradient_energy
from engine.kernels.triton_positives import mark_positives
from engine.kernels.triton_step import step_kernel
from engine.kernels.triton_step_wide import wide_step_kernel
from engine.kernels.triton_topk import block_best_kernel, candidates_kernel

__all__ = ["gradient_energy", "step", "supports", "topk"]

INTERPRETED = triton.knobs.runtime.interpret
GROUP_SIZES = (16, 32, 64, 128)
SCRATCH_BYTES = 32 * 2**20
ORDERED_PROGRAMS = 128  # deterministic mode: a constant, so that every card adds up in the same order
# 16-bit partial sums of dx: at most this many additions before they are moved to fp32. The rounding errors of
# n additions to a sum of like terms grow to 2**-12 * sqrt(n / 2) of it: 0.2 %, a bf16 gradient's own error.
PARTIAL_ADDITIONS = 128
# Loss gradients are scaled up, so that small ones stay out of the subnormal range of 16-bit partial sums; a sum
# overflows only where 128 additions of 32 labels each average a weight times gradient above 4.
LOG2_SCALE = {"bce": 2, "squared_hinge": 1}


@dataclass(frozen=True)
class Tile:
    """Shape of one program: labels, columns at a time, parts of a narrow row, instances; and how it is compiled.

    labels_first: labels are the rows of its products, not instances.
    """

    rows: int
    columns: int
    parts: int
    batch: int
    warps: int
    registers: int | None = None
    labels_first: bool = True

    @property
    def compilation(self) -> dict[str, int]:
        # Without pipelining: its copies would pass by the first-level cache, where the features should stay.
        options = {"num_warps": self.warps, "num_stages": 1}
        return options if self.registers is None else {**options, "maxnreg": self.registers}


def supports(layer: LabelLayer, options: StepOptions | None = None) -> bool:
    """Whether the kernels cover a step (or, without options, predictions) of this layer; else the reference does."""
    if options is not None and (options.optimizer not in ("rowwise", "sgd") or layer.reads_all):
        return False  # the reference leaves out the words that a batch does not have, nearly all of them
    if layer.weight.is_cuda and torch.cuda.get_device_capability(layer.weight.device) < (8, 0):
        return False  # no bf16, and fp16 products that Triton does not put on the tensor cores
    return layer.index is None or (layer.group_size in GROUP_SIZES and (layer.fan_in % 16 == 0 or layer.words > 0))


def step(layer: LabelLayer, x_BD: Tensor, positives: Positives, dx_BD: Tensor, options: StepOptions) -> Tensor | None:
    """As `reference.step`; 16-bit products where weights have 16 bits or less, fp32 sums (see PARTIAL_ADDITIONS)."""
    if not supports(layer, options):
        return reference.step(layer, x_BD, positives, dx_BD, options)
    return launch_step(layer, x_BD, positives, dx_BD, options, step_tile(layer, len(x_BD)))


def step_tile(layer: LabelLayer, batch: int) -> Tile:
    """The tile of a step; measured on an H200 (benchmarks/bench_kernels.py)."""
    instances = min(triton.next_power_of_2(max(batch, 32)), 128)
    if layer.index is None:
        return Tile(64, 64, 0, min(instances, 64), 4)
    rows = min(layer.group_size, 64)
    padded = triton.next_power_of_2(layer.fan_in)
    # The wide matrix instructions want 64 rows. Not for fp8: ptxas 12.8 takes the address of one of the operands
    # from a register it never set (an add-with-carry of the uniform registers), and the kernel faults.
    labels_first = rows == 64 or layer.weight.dtype == FP8
    # fp32 products are three products each: their operands would not fit beside each other
    if layer.words or layer.weight.dtype == torch.float32 or padded > 256 or padded * rows > 8192:
        return Tile(rows, 64, 0, min(instances, 64), 4, labels_first=labels_first)
    registers = None
    if padded <= 128:  # three programs a multiprocessor
        registers = 168 if rows <= 32 else 160
    parts = 1 if padded <= 64 else 2
    instances = min(instances, 64) if padded == 256 else instances
    return Tile(rows, padded // parts, parts, instances, 4, registers, labels_first)


def launch_step(
    layer: LabelLayer,
    x_BD: Tensor,
    positives: Positives,
    dx_BD: Tensor,
    options: StepOptions,
    tile: Tile,
    sum_dtype: torch.dtype | None = None,
) -> Tensor | None:
    """`step` with a given tile (parts = 0: the kernel for wide rows) and type of dx's partial sums."""
    batch, width = dx_BD.shape
    x_DB = feature_columns(x_BD, compute_dtype(layer.weight), tile.batch)
    stride, itemsize = x_DB.shape[1], x_DB.element_size()
    ordered = options.deterministic
    if sum_dtype is None:
        sum_dtype = torch.float32 if ordered or x_DB.dtype == torch.float32 else torch.float16
    tiles = triton.cdiv(layer.labels, tile.rows)
    copies = SCRATCH_BYTES // (width * stride * sum_dtype.itemsize)
    copies = max(1, min(copies, tiles, ORDERED_PROGRAMS if ordered else 64))
    turn = tiles  # tiles a launch
    if sum_dtype == torch.float16:
        turn = min(turn, PARTIAL_ADDITIONS * copies * width // layer.features)
        if layer.readers > PARTIAL_ADDITIONS * copies:  # all of a launch may add to the same features
            turn = min(turn, PARTIAL_ADDITIONS * copies)
    dx_CDB = torch.zeros((copies, width, stride), dtype=sum_dtype, device=x_BD.device)
    slot, signs = mark_positives(positives, layer, tile.rows, stride)
    loss = torch.empty(tiles if options.want_loss else 0, device=x_BD.device)
    scale = LOG2_SCALE[options.loss]
    factor = options.loss_weight / batch
    moments = [layer.state.get("second_moment")]
    rates = [options.learning_rate]
    if tile.parts == 0:  # the kernel that knows words
        moments.append(layer.state.get("word_moment"))
        rates.append(options.word_learning_rate)
    tensors = [storage(layer.weight), layer.bias, *moments, layer.index, x_DB]
    scalars = [
        layer.labels,
        batch,
        width * stride,
        *rates,
        *(1.0 - rate * options.weight_decay for rate in rates),
        options.beta2,
        1.0 / (1.0 - options.beta2**options.step),
        options.eps,
        factor / 2**scale,
        *noise_keys(options, layer),
    ]
    shape = {
        "F": layer.fan_in,
        "G": layer.group_size,
        "STRIDE": stride,
        "BLOCK_F": tile.columns,
        "BLOCK_B": tile.batch,
        "ROWS": tile.rows,
        "LOSS": options.loss,
        "LOG2_SCALE": scale,
        "ROWWISE": options.optimizer == "rowwise",
        "DECAY": options.weight_decay != 0.0,
        "WANT_LOSS": options.want_loss,
        "COPIES": copies,
        "LABELS_FIRST": tile.labels_first,
        "ORDERED": ordered,
        **tile.compilation,
    }
    kernel = step_kernel
    if tile.parts == 0:
        kernel = wide_step_kernel
        shape |= {"INDEX": layer.index is not None, "FEATURES": layer.features}
        turn = min(turn, max(copies, SCRATCH_BYTES // (stride * tile.rows * itemsize)))
        tensors.append(x_DB.new_empty((min(turn, tiles), stride, tile.rows)))  # loss gradients of a launch
    else:
        shape["PARTS"] = tile.parts
    for first in range(0, tiles, turn):
        last = min(first + turn, tiles)
        programs = copies if ordered else last - first
        kernel[(programs,)](first, last, *tensors, dx_CDB, loss, slot, signs, *scalars, **shape)
        if last < tiles and sum_dtype == torch.float16:
            add_copies(dx_BD, dx_CDB, factor / 2**scale)
            dx_CDB.zero_()
    add_copies(dx_BD, dx_CDB, factor / 2**scale)
    return loss.sum() * factor if options.want_loss else None


def add_copies(dx_BD: Tensor, dx_CDB: Tensor, factor: float) -> None:
    """dx_BD += factor * sum over copies, whose instances are put back from the order of `triton_common.add`."""
    dx_DB = dx_CDB.sum(0, dtype=torch.float32)
    dx_DB = dx_DB.view(len(dx_DB), -1, 4, 4, 2).transpose(2, 3).reshape(dx_DB.shape)
    dx_BD.add_(dx_DB[:, : len(dx_BD)].T, alpha=factor)


def topk(layers: list[LabelLayer], x_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `reference.topk`, the features rounded to the weights' 16 bits (the values returned are of those, too)."""
    if not all(supports(layer) for layer in layers):
        return reference.topk(layers, x_BD, k)
    if len(x_BD) == 0:
        return x_BD.new_empty((0, k), dtype=torch.float32), torch.empty((0, k), dtype=torch.int64, device=x_BD.device)
    keys = []
    for part_BD in x_BD.split(128):
        best = torch.cat([layer_topk(layer, part_BD, min(k, layer.labels)) for layer in layers], dim=1)
        keys.append(best.topk(k, dim=1).values)
    keys = torch.cat(keys)
    bits = (keys >> 32).to(torch.int32)
    value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return value, 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def layer_topk(layer: LabelLayer, x_BD: Tensor, k: int) -> Tensor:
    """Sort keys [B, k] of a layer's k best labels, in no particular order."""
    batch = len(x_BD)
    rows = 64 if layer.index is None else min(layer.group_size, 64)
    # Small blocks make the first pass's result long, large ones the second pass: 256 labels up to ten million.
    tiles = max(256, triton.next_power_of_2(layer.labels // 40_000)) // rows
    blocks = triton.cdiv(layer.labels, tiles * rows)
    instances = min(triton.next_power_of_2(max(batch, 16)), 64)
    x_DB = feature_columns(x_BD, compute_dtype(layer.weight), instances)
    tensors = [storage(layer.weight), layer.bias, layer.index, x_DB]
    columns = min(max(triton.next_power_of_2(layer.fan_in), 16), 64 if x_DB.dtype == torch.float32 else 128)
    shape = {
        "F": layer.fan_in,
        "G": layer.group_size,
        "STRIDE": x_DB.shape[1],
        "BLOCK_F": columns,
        "ROWS": rows,
        "TILES": tiles,
        "INDEX": layer.index is not None,
    }
    best = torch.empty((batch, blocks), dtype=torch.int64, device=x_BD.device)
    grid = (blocks, triton.cdiv(batch, instances))
    block_best_kernel[grid](*tensors, best, layer.labels, blocks, batch, BLOCK_B=instances, **shape)
    chosen = best.topk(min(k, blocks), dim=1, sorted=False).values
    found = []
    at_once = max(1, SCRATCH_BYTES // (chosen.shape[1] * tiles * rows * 8))
    for first in range(0, batch, at_once):
        part = chosen[first : first + at_once].contiguous()
        candidates = torch.empty((len(part), part.shape[1] * tiles * rows), dtype=torch.int64, device=x_BD.device)
        grid = (part.numel(), tiles)
        arguments = [*tensors[:3], x_DB[:, first:], part, candidates, layer.labels, layer.start]
        candidates_kernel[grid](*arguments, CHOSEN=part.shape[1], **shape)
        found.append(candidates.topk(k, dim=1, sorted=False).values)
    return torch.cat(found)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Element type of the products: that of 16-bit weights, bf16 for fp8, fp32 for fp32."""
    if INTERPRETED or weight.dtype == torch.float32:
        return torch.float32  # the interpreter multiplies bf16 as if its bits were integers
    return torch.bfloat16 if weight.dtype == FP8 else weight.dtype


def storage(weight: Tensor) -> Tensor:
    """fp8 as the bytes that the kernels decode."""
    return weight.view(torch.uint8) if weight.dtype == FP8 else weight


def feature_columns(x_BD: Tensor, dtype: torch.dtype, multiple: int) -> Tensor:
    """[D, B padded with zeros to a multiple] in `dtype`."""
    batch, width = x_BD.shape
    x_DB = torch.zeros((width, triton.cdiv(batch, multiple) * multiple), dtype=dtype, device=x_BD.device)
    x_DB[:, :batch] = x_BD.detach().T
    return x_DB


def noise_keys(options: StepOptions, layer: LabelLayer) -> tuple[int, int]:
    """Two 31-bit words, a function of (seed, step, layer) alone."""
    words = np.random.SeedSequence([options.seed % 2**64, options.step, layer.start]).generate_state(2)
    return int(words[0]) >> 1, int(words[1]) >> 1
