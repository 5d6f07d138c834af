"""The fused classifier step for tail groups whose rows fit on the chip: one pass over the weights.

A program owns ROWS labels of one group. It reads their weights and feature ids once, then for a tile of
instances at a time: gathers the features, multiplies out the logits, turns them into the loss gradient,
accumulates the weight gradient in registers and adds the tile's input gradient to dx. Last it updates the rows
and stores them. Nothing of the size of the classifier exists besides the classifier.

Letters: R rows of the program, F fan-in, B a tile of instances. The fan-in is cut into one or two parts of
BLOCK_F columns: half the registers for the input gradient, and each 32-bit draw rounds a weight of both.

What limits it on an H200: the shared-memory pipe (every operand of a product passes through it) together with
the registers, which allow two or three programs a multiprocessor; then the sums into dx, which reach the
second-level cache at no more than 3.9 TB/s whatever their type. Hence 16-bit partial sums, several copies of dx
(fewer collisions), instances contiguous (16 bytes an instruction), and weights that pass by the first-level
cache, where the features should stay.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.triton_common import (
    add,
    add_logits,
    add_weight_gradient,
    decode,
    flip_positives,
    negative_gradient,
    negative_loss,
    noise_RF,
    prefetch,
    product,
    row_step,
    sum_order,
    updated_rows,
)

# Rows are fetched into the second-level cache this many tiles before a program asks for them.
AHEAD = tl.constexpr(512)


@triton.jit
def step_tile(
    tile,
    weight,
    bias,
    moment,
    index,
    x,
    dx,
    loss,
    slot,
    signs,
    labels,
    batch,
    rate,
    decay,
    beta2,
    correction,
    eps,
    factor,
    key_a,
    key_b,
    F: tl.constexpr,
    G: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    ROWS: tl.constexpr,
    LOSS: tl.constexpr,
    LOG2_SCALE: tl.constexpr,
    ROWWISE: tl.constexpr,
    DECAY: tl.constexpr,
    WANT_LOSS: tl.constexpr,
    LABELS_FIRST: tl.constexpr,
    ORDERED: tl.constexpr,
):
    dtype = x.dtype.element_ty
    STORE: tl.constexpr = weight.dtype.element_ty
    WORDS: tl.constexpr = (STRIDE + 31) // 32
    row = tile * ROWS
    at_R = tl.arange(0, ROWS)
    at_F = tl.arange(0, BLOCK_F)
    at_B = tl.arange(0, BLOCK_B)
    real_R = row + at_R < labels
    weight += tl.cast(row, tl.int64) * F
    index += tl.cast(row // G, tl.int64) * F
    place_RF = at_R[:, None] * F + at_F[None, :]

    real0_F = at_F < F
    real0_RF = real_R[:, None] & real0_F[None, :]
    feature0_F = tl.load(index + at_F, mask=real0_F, other=0).to(tl.int32)
    summed_F = sum_order(BLOCK_F)
    summed0_F = tl.load(index + summed_F, mask=summed_F < F, other=0).to(tl.int32)
    stored0_RF = tl.load(weight + place_RF, mask=real0_RF, other=0.0, cache_modifier=".cg")
    w0_RF = decode(stored0_RF).to(dtype)
    grad0_RF = tl.zeros((ROWS, BLOCK_F), tl.float32)
    if PARTS == 2:
        real1_F = at_F < F - BLOCK_F
        real1_RF = real_R[:, None] & real1_F[None, :]
        feature1_F = tl.load(index + BLOCK_F + at_F, mask=real1_F, other=0).to(tl.int32)
        summed1_F = tl.load(index + BLOCK_F + summed_F, mask=summed_F < F - BLOCK_F, other=0).to(tl.int32)
        stored1_RF = tl.load(weight + BLOCK_F + place_RF, mask=real1_RF, other=0.0, cache_modifier=".cg")
        w1_RF = decode(stored1_RF).to(dtype)
        grad1_RF = tl.zeros((ROWS, BLOCK_F), tl.float32)
    # a logit of -inf gives the rows beyond the last label no gradient and no loss
    bias_R = tl.load(bias + row + at_R, mask=real_R, other=float("-inf"))
    if ROWWISE:
        v_R = tl.load(moment + row + at_R, mask=real_R, other=0.0)
    where = tl.load(slot + tile)
    if (tile + AHEAD + 1) * ROWS <= labels:
        prefetch(weight + AHEAD * ROWS * F, ROWS * F * STORE.primitive_bitwidth // 8)
        prefetch(index + AHEAD * ROWS // G * F, F * index.dtype.element_ty.primitive_bitwidth // 8)
    grad_R = tl.zeros((ROWS,), tl.float32)
    total_R = tl.zeros((ROWS,), tl.float32)

    for first in range(0, STRIDE, BLOCK_B):
        # the base moves and the offsets stay: 64-bit addresses kept across the loop would not fit the registers
        place0_FB = feature0_F[:, None] * STRIDE + at_B[None, :]
        x0_FB = tl.load(x + first + place0_FB, mask=real0_F[:, None], other=0.0, eviction_policy="evict_last")
        z_RB = add_logits(tl.zeros((ROWS, BLOCK_B), tl.float32), w0_RF, x0_FB, LABELS_FIRST)
        if PARTS == 2:
            place1_FB = feature1_F[:, None] * STRIDE + at_B[None, :]
            x1_FB = tl.load(x + first + place1_FB, mask=real1_F[:, None], other=0.0, eviction_policy="evict_last")
            z_RB = add_logits(z_RB, w1_RF, x1_FB, LABELS_FIRST)
        z_RB = flip_positives(z_RB + bias_R[:, None], signs, where, first, WORDS)
        real_B = first + at_B < batch
        if WANT_LOSS:
            total_R += tl.sum(tl.where(real_B[None, :], negative_loss(z_RB, LOSS), 0.0), axis=1)
        g_RB = flip_positives(negative_gradient(z_RB, LOSS, LOG2_SCALE), signs, where, first, WORDS)
        g_RB = tl.where(real_B[None, :], g_RB, 0.0)
        grad_R += tl.sum(g_RB, axis=1)
        g_RB = g_RB.to(dtype)
        grad0_RF = add_weight_gradient(grad0_RF, g_RB, x0_FB, LABELS_FIRST)
        share_FB = product(tl.trans(w0_RF), g_RB, tl.zeros((BLOCK_F, BLOCK_B), tl.float32))
        add(dx + first, summed0_F, summed_F < F, share_FB, STRIDE, ORDERED)
        if PARTS == 2:
            grad1_RF = add_weight_gradient(grad1_RF, g_RB, x1_FB, LABELS_FIRST)
            share_FB = product(tl.trans(w1_RF), g_RB, tl.zeros((BLOCK_F, BLOCK_B), tl.float32))
            add(dx + first, summed1_F, summed_F < F - BLOCK_F, share_FB, STRIDE, ORDERED)
    if WANT_LOSS:
        tl.store(loss + tile, tl.sum(total_R))

    if ROWWISE:
        square_RF = grad0_RF * grad0_RF
        if PARTS == 2:
            square_RF += grad1_RF * grad1_RF
        square_R = tl.sum(square_RF, axis=1) * (factor * factor / F)
        v_R, rate_R = row_step(v_R, square_R, rate, beta2, correction, eps)
        tl.store(moment + row + at_R, v_R, mask=real_R)
        rate_R *= factor
    else:
        rate_R = tl.zeros((ROWS,), tl.float32) + rate * factor
    tl.store(bias + row + at_R, bias_R - rate_R * grad_R, mask=real_R)
    noise = noise_RF(key_a, key_b, tile, ROWS, BLOCK_F)
    if PARTS == 2:  # read again: kept in registers all along, they would leave too few
        stored0_RF = tl.load(weight + place_RF, mask=real0_RF, other=0.0, cache_modifier=".cg")
        stored1_RF = tl.load(weight + BLOCK_F + place_RF, mask=real1_RF, other=0.0, cache_modifier=".cg")
    new_RF = updated_rows(decode(stored0_RF), rate_R[:, None] * grad0_RF, decay, noise & 0xFFFF, DECAY, STORE)
    tl.store(weight + place_RF, new_RF, mask=real0_RF, cache_modifier=".cg")
    if PARTS == 2:
        new_RF = updated_rows(decode(stored1_RF), rate_R[:, None] * grad1_RF, decay, noise >> 16, DECAY, STORE)
        tl.store(weight + BLOCK_F + place_RF, new_RF, mask=real1_RF, cache_modifier=".cg")


@triton.jit(do_not_specialize=["first_tile", "last_tile", "labels", "batch", "key_a", "key_b"])
def step_kernel(
    first_tile,
    last_tile,
    weight,  # [L, F]
    bias,  # [L] fp32
    moment,  # [L] fp32, rowwise only
    index,  # [M, F]
    x,  # [D, STRIDE] features, instances contiguous, zero beyond the batch
    dx,  # [COPIES, D, STRIDE] fp32 or fp16
    loss,  # [tiles] fp32
    slot,  # [tiles] int32: where in `signs` the tile's positives are, or -1
    signs,  # [slots, STRIDE / 32, ROWS] int32, a bit an instance
    labels,
    batch,
    copy_stride,  # D * STRIDE
    rate,
    decay,
    beta2,
    correction,
    eps,
    factor,  # from the scaled gradients of a sum to the gradients of the batch mean
    key_a,
    key_b,
    F: tl.constexpr,
    G: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    ROWS: tl.constexpr,
    LOSS: tl.constexpr,
    LOG2_SCALE: tl.constexpr,
    ROWWISE: tl.constexpr,
    DECAY: tl.constexpr,
    WANT_LOSS: tl.constexpr,
    COPIES: tl.constexpr,
    LABELS_FIRST: tl.constexpr,
    ORDERED: tl.constexpr,
):
    """One tile a program; ORDERED: a program has a copy of dx to itself and takes its tiles one after the other."""
    dx += (tl.program_id(0) % COPIES) * copy_stride
    if ORDERED:
        for tile in range(first_tile + tl.program_id(0), last_tile, tl.num_programs(0)):
            step_tile(
                tile, weight, bias, moment, index, x, dx, loss, slot, signs, labels, batch, rate, decay, beta2,
                correction, eps, factor, key_a, key_b, F, G, STRIDE, BLOCK_F, PARTS, BLOCK_B, ROWS, LOSS, LOG2_SCALE,
                ROWWISE, DECAY, WANT_LOSS, LABELS_FIRST,
                ORDERED,
            )  # fmt: skip
            tl.debug_barrier()  # what this tile added to dx is read by other threads for the next
    else:
        step_tile(
            first_tile + tl.program_id(0), weight, bias, moment, index, x, dx, loss, slot, signs, labels, batch, rate,
            decay, beta2, correction, eps, factor, key_a, key_b, F, G, STRIDE, BLOCK_F, PARTS, BLOCK_B, ROWS, LOSS,
            LOG2_SCALE, ROWWISE, DECAY, WANT_LOSS, LABELS_FIRST,
                ORDERED,
        )  # fmt: skip
