"""Lays a batch's positives out for the fused step: a bit for every (instance, row) of the tiles that have any.

Of a hundred thousand tiles a batch touches a few hundred. `slot` [tiles] says where in `signs` a tile's bits are
(-1: nowhere), `signs` [slots, WORDS, ROWS] holds a bit an instance, 32 to a word. A tile's slot is the position
of its first pair, so that no scan is needed and `signs` never has more slots than the batch has positives.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.layer import LabelLayer, Positives

BLOCK = 128


@triton.jit(do_not_specialize=["pairs", "start"])
def mark_kernel(
    label, instance, slot, signs, pairs, start, ROWS: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr
):
    at_P = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine_P = at_P < pairs
    row_P = tl.load(label + at_P, mask=mine_P, other=start) - start
    tile_P = row_P // ROWS
    # position of the tile's first pair, by bisection of the sorted labels
    low_P = tl.zeros((BLOCK,), tl.int32)
    high_P = tl.zeros((BLOCK,), tl.int32) + pairs
    left = pairs
    while left > 0:
        middle_P = (low_P + high_P) // 2
        before_P = tl.load(label + middle_P, mask=middle_P < pairs, other=0) - start < tile_P * ROWS
        open_P = low_P < high_P
        low_P = tl.where(open_P & before_P, middle_P + 1, low_P)
        high_P = tl.where(open_P & (before_P == 0), middle_P, high_P)
        left //= 2
    column_P = tl.load(instance + at_P, mask=mine_P, other=0).to(tl.int32)
    word_P = (low_P.to(tl.int64) * WORDS + column_P // 32) * ROWS + row_P % ROWS
    tl.store(slot + tile_P, low_P, mask=mine_P)
    tl.atomic_or(signs + word_P, 1 << (column_P % 32), mask=mine_P, sem="relaxed")


def mark_positives(positives: Positives, layer: LabelLayer, rows: int, stride: int) -> tuple[Tensor, Tensor]:
    """(slot int32 [tiles], signs int32 [pairs, words, rows]) of a layer cut into tiles of `rows` labels."""
    label, instance = positives.label, positives.instance
    # `label` is sorted and the host knows it: the pairs of other layers need no slots
    low, high = np.searchsorted(positives.host_label, (layer.start, layer.start + layer.labels))
    label, instance = label[low:high], instance[low:high]
    pairs, words = len(label), -(-stride // 32)
    slot = torch.full((triton.cdiv(layer.labels, rows),), -1, dtype=torch.int32, device=label.device)
    signs = torch.zeros((pairs, words, rows), dtype=torch.int32, device=label.device)
    if pairs:
        grid = (triton.cdiv(pairs, BLOCK),)
        mark_kernel[grid](label, instance, slot, signs, pairs, layer.start, ROWS=rows, WORDS=words, BLOCK=BLOCK)
    return slot, signs
