"""Streaming top-k: the best labels of each instance without a logit matrix.

Two passes. The first computes every logit and keeps one number for a block of labels: the largest. The k best
labels of an instance lie in the k blocks with the largest maxima (each other block is beaten by k labels), so
the second pass computes the logits of those blocks again, for that instance only, and takes the k best.

Values and positions travel as one sortable int64: the logit's bits, made monotone, above the complement of the
position. Keys are unique, so that of equal logits the smaller position comes first, exactly as in the reference.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.triton_common import decode, product


@triton.jit
def sort_key(value, position):
    """int64 that orders like (value descending, position ascending) when sorted descending; -0.0 counts as 0.0."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return (bits.to(tl.int64) << 32) | (0xFFFFFFFF - position.to(tl.int64))


@triton.jit(do_not_specialize=["labels", "blocks", "batch"])
def block_best_kernel(
    weight,  # [L, F]
    bias,  # [L] fp32
    index,  # [M, F]
    x,  # [D, STRIDE] features, instances contiguous
    best,  # [B, blocks] int64: key of the block's largest logit and the block's number
    labels,
    blocks,
    batch,
    F: tl.constexpr,
    G: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,  # of ROWS labels, in a block
    INDEX: tl.constexpr,
):
    block = tl.program_id(0)
    first = tl.program_id(1) * BLOCK_B
    dtype = x.dtype.element_ty
    at_R = tl.arange(0, ROWS)
    at_B = first + tl.arange(0, BLOCK_B)
    best_B = tl.zeros((BLOCK_B,), tl.float32) - float("inf")
    for tile in range(block * TILES, block * TILES + TILES):
        row = tile * ROWS
        real_R = row + at_R < labels
        rows = weight + tl.cast(row, tl.int64) * F
        z_BR = tl.zeros((BLOCK_B, ROWS), tl.float32)
        for start in range(0, F, BLOCK_F):
            at_F = start + tl.arange(0, BLOCK_F)
            real_F = at_F < tl.where(row < labels, F, 0)
            if INDEX:
                feature_F = tl.load(index + tl.cast(row // G, tl.int64) * F + at_F, mask=real_F, other=0).to(tl.int32)
            else:
                feature_F = at_F
            x_FB = tl.load(x + feature_F[:, None] * STRIDE + at_B[None, :], mask=real_F[:, None], other=0.0)
            real_RF = real_R[:, None] & real_F[None, :]
            stored_RF = tl.load(rows + at_R[:, None] * F + at_F[None, :], mask=real_RF, other=0.0)
            z_BR = product(tl.trans(x_FB), tl.trans(decode(stored_RF).to(dtype)), z_BR)
        z_BR += tl.load(bias + row + at_R, mask=real_R, other=float("-inf"))[None, :]
        best_B = tl.maximum(best_B, tl.max(z_BR, axis=1))
    tl.store(best + at_B.to(tl.int64) * blocks + block, sort_key(best_B, block + at_B * 0), mask=at_B < batch)


@triton.jit(do_not_specialize=["labels", "blocks", "start"])
def candidates_kernel(
    weight,
    bias,
    index,
    x,
    chosen,  # [B, k] int64: keys of block_best_kernel
    candidates,  # [B, k * TILES * ROWS] int64: keys of logits and label-order ids
    labels,
    start,  # label-order id of row 0
    F: tl.constexpr,
    G: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    CHOSEN: tl.constexpr,  # k
    INDEX: tl.constexpr,
):
    """One chosen block's tile a program: grid (B * k, TILES)."""
    choice = tl.program_id(0)
    block = 0xFFFFFFFF - (tl.load(chosen + choice) & 0xFFFFFFFF)
    row = block * TILES * ROWS + tl.program_id(1) * ROWS
    x += choice // CHOSEN
    at_R = tl.arange(0, ROWS)
    real_R = row + at_R < labels
    z_R = tl.zeros((ROWS,), tl.float32)
    for first in range(0, F, BLOCK_F):
        at_F = first + tl.arange(0, BLOCK_F)
        real_F = at_F < tl.where(row < labels, F, 0)
        feature_F = tl.load(index + (row // G) * F + at_F, mask=real_F, other=0).to(tl.int32) if INDEX else at_F
        x_F = tl.load(x + feature_F * STRIDE, mask=real_F, other=0.0).to(tl.float32)
        place_RF = (row + at_R)[:, None] * F + at_F[None, :]
        w_RF = decode(tl.load(weight + place_RF, mask=real_R[:, None] & real_F[None, :], other=0.0))
        z_R += tl.sum(w_RF * x_F[None, :], axis=1)
    z_R += tl.load(bias + row + at_R, mask=real_R, other=float("-inf"))
    at = (choice.to(tl.int64) * TILES + tl.program_id(1)) * ROWS + at_R
    tl.store(candidates + at, sort_key(z_R, start + row + at_R))
