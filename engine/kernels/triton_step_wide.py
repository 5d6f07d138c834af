"""The classifier step for rows too wide for one program's registers: the dense head, and very large fan-ins.

The same step as in triton_step, with the columns taken in chunks: (1) logits over all chunks, loss gradient into
a scratch buffer that only this program reads back; (2) per chunk the weight gradient's sum of squares and the
input gradient; (3) per chunk the weight gradient again and the update, which in a rowwise optimizer has to wait
for the whole row. The weights are read three times, from the second-level cache but for the first.

INDEX 0: dense, row l reads every feature (F = D, any number); otherwise as in triton_step. Of the F columns the first
FEATURES read features of the encoder, all others words, which have no dx, and a step size of their own.
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
    product,
    row_step,
    sum_order,
    updated_rows,
)


@triton.jit
def chunk(
    weight, index, start, real_R, F: tl.constexpr, BLOCK_F: tl.constexpr, ROWS: tl.constexpr, INDEX: tl.constexpr
):
    """(stored weights, where they lie, which are real, features, which are real) of BLOCK_F columns."""
    at_F = start + tl.arange(0, BLOCK_F)
    real_F = at_F < F
    place_RF = tl.arange(0, ROWS)[:, None] * F + at_F[None, :]
    real_RF = real_R[:, None] & real_F[None, :]
    stored_RF = tl.load(weight + place_RF, mask=real_RF, other=0.0)
    feature_F = tl.load(index + at_F, mask=real_F, other=0).to(tl.int32) if INDEX else at_F
    return stored_RF, place_RF, real_RF, feature_F, real_F


@triton.jit
def weight_gradient(
    x,
    gradient,
    feature_F,
    real_F,
    STRIDE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    ROWS: tl.constexpr,
    LABELS_FIRST: tl.constexpr,
):
    """[R, F] of a chunk."""
    grad_RF = tl.zeros((ROWS, feature_F.shape[0]), tl.float32)
    at_B = tl.arange(0, BLOCK_B)
    for first in range(0, STRIDE, BLOCK_B):
        x_FB = tl.load(x + feature_F[:, None] * STRIDE + (first + at_B)[None, :], mask=real_F[:, None], other=0.0)
        g_RB = tl.load(gradient + tl.arange(0, ROWS)[:, None] * STRIDE + (first + at_B)[None, :])
        grad_RF = add_weight_gradient(grad_RF, g_RB, x_FB, LABELS_FIRST)
    return grad_RF


@triton.jit
def wide_tile(
    tile,
    first_tile,
    weight,
    bias,
    moment,
    word_moment,
    index,
    x,
    gradient,
    dx,
    loss,
    slot,
    signs,
    labels,
    batch,
    rate,
    word_rate,
    decay,
    word_decay,
    beta2,
    correction,
    eps,
    factor,
    key_a,
    key_b,
    F: tl.constexpr,
    FEATURES: tl.constexpr,
    G: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    ROWS: tl.constexpr,
    INDEX: tl.constexpr,
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
    at_B = tl.arange(0, BLOCK_B)
    real_R = row + at_R < labels
    weight += tl.cast(row, tl.int64) * F
    if INDEX:
        index += tl.cast(row // G, tl.int64) * F
    gradient += tl.cast(tile - first_tile, tl.int64) * (STRIDE * ROWS)
    bias_R = tl.load(bias + row + at_R, mask=real_R, other=float("-inf"))
    where = tl.load(slot + tile)
    grad_R = tl.zeros((ROWS,), tl.float32)
    total_R = tl.zeros((ROWS,), tl.float32)
    for first in range(0, STRIDE, BLOCK_B):
        z_RB = tl.zeros((ROWS, BLOCK_B), tl.float32)
        for start in range(0, F, BLOCK_F):
            stored_RF, _, _, feature_F, real_F = chunk(weight, index, start, real_R, F, BLOCK_F, ROWS, INDEX)
            x_FB = tl.load(x + feature_F[:, None] * STRIDE + (first + at_B)[None, :], mask=real_F[:, None], other=0.0)
            z_RB = add_logits(z_RB, decode(stored_RF).to(dtype), x_FB, LABELS_FIRST)
        z_RB = flip_positives(z_RB + bias_R[:, None], signs, where, first, WORDS)
        real_B = first + at_B < batch
        if WANT_LOSS:
            total_R += tl.sum(tl.where(real_B[None, :], negative_loss(z_RB, LOSS), 0.0), axis=1)
        g_RB = flip_positives(negative_gradient(z_RB, LOSS, LOG2_SCALE), signs, where, first, WORDS)
        g_RB = tl.where(real_B[None, :], g_RB, 0.0)
        grad_R += tl.sum(g_RB, axis=1)
        tl.store(gradient + at_R[:, None] * STRIDE + (first + at_B)[None, :], g_RB.to(dtype))
    if WANT_LOSS:
        tl.store(loss + tile, tl.sum(total_R))
    tl.debug_barrier()  # the gradient was written by other threads than will read it

    square_R = tl.zeros((ROWS,), tl.float32)
    word_square_R = tl.zeros((ROWS,), tl.float32)
    for start in range(0, F, BLOCK_F):
        stored_RF, _, _, feature_F, real_F = chunk(weight, index, start, real_R, F, BLOCK_F, ROWS, INDEX)
        if start < FEATURES:
            w_RF = decode(stored_RF).to(dtype)
            summed_F = start + sum_order(BLOCK_F)
            real_sum_F = summed_F < FEATURES
            summed_F = tl.load(index + summed_F, mask=real_sum_F, other=0).to(tl.int32) if INDEX else summed_F
            for first in range(0, STRIDE, BLOCK_B):
                g_RB = tl.load(gradient + at_R[:, None] * STRIDE + (first + at_B)[None, :])
                share_FB = product(tl.trans(w_RF), g_RB, tl.zeros((BLOCK_F, BLOCK_B), tl.float32))
                add(dx + first, summed_F, real_sum_F, share_FB, STRIDE, ORDERED)
        if ROWWISE:
            grad_RF = weight_gradient(x, gradient, feature_F, real_F, STRIDE, BLOCK_B, ROWS, LABELS_FIRST)
            square_RF = grad_RF * grad_RF
            if FEATURES < F:
                is_word_F = start + tl.arange(0, BLOCK_F) >= FEATURES
                word_square_R += tl.sum(tl.where(is_word_F[None, :], square_RF, 0.0), axis=1)
                square_RF = tl.where(is_word_F[None, :], 0.0, square_RF)
            square_R += tl.sum(square_RF, axis=1)

    rate_R = tl.zeros((ROWS,), tl.float32) + rate
    word_rate_R = tl.zeros((ROWS,), tl.float32) + word_rate
    if ROWWISE:
        v_R = tl.load(moment + row + at_R, mask=real_R, other=0.0)
        v_R, rate_R = row_step(v_R, square_R * (factor * factor / FEATURES), rate, beta2, correction, eps)
        tl.store(moment + row + at_R, v_R, mask=real_R)
        if FEATURES < F:
            v_R = tl.load(word_moment + row + at_R, mask=real_R, other=0.0)
            mean_R = word_square_R * (factor * factor / (F - FEATURES))
            v_R, word_rate_R = row_step(v_R, mean_R, word_rate, beta2, correction, eps)
            tl.store(word_moment + row + at_R, v_R, mask=real_R)
    rate_R *= factor
    word_rate_R *= factor
    tl.store(bias + row + at_R, bias_R - rate_R * grad_R, mask=real_R)
    for start in range(0, F, BLOCK_F):
        stored_RF, place_RF, real_RF, feature_F, real_F = chunk(weight, index, start, real_R, F, BLOCK_F, ROWS, INDEX)
        grad_RF = weight_gradient(x, gradient, feature_F, real_F, STRIDE, BLOCK_B, ROWS, LABELS_FIRST)
        # a stream a chunk: F is below 2**24 and tiles are numbered from 0 in every layer
        noise = noise_RF(key_a, key_b + start, tile, ROWS, BLOCK_F)
        if FEATURES < F:
            is_word_1F = (start + tl.arange(0, BLOCK_F) >= FEATURES)[None, :]
            step_RF = tl.where(is_word_1F, word_rate_R[:, None], rate_R[:, None]) * grad_RF
            kept = tl.where(is_word_1F, word_decay, decay)
        else:
            step_RF = rate_R[:, None] * grad_RF
            kept = decay
        new_RF = updated_rows(decode(stored_RF), step_RF, kept, noise >> 16, DECAY, STORE)
        tl.store(weight + place_RF, new_RF, mask=real_RF)


@triton.jit(do_not_specialize=["first_tile", "last_tile", "labels", "batch", "key_a", "key_b"])
def wide_step_kernel(
    first_tile,
    last_tile,
    weight,
    bias,
    moment,
    word_moment,
    index,
    x,
    gradient,  # scratch [tiles of the launch, ROWS, STRIDE] of x's type
    dx,
    loss,
    slot,
    signs,
    labels,
    batch,
    copy_stride,
    rate,
    word_rate,
    decay,
    word_decay,
    beta2,
    correction,
    eps,
    factor,
    key_a,
    key_b,
    F: tl.constexpr,
    FEATURES: tl.constexpr,
    G: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_B: tl.constexpr,
    ROWS: tl.constexpr,
    INDEX: tl.constexpr,
    LOSS: tl.constexpr,
    LOG2_SCALE: tl.constexpr,
    ROWWISE: tl.constexpr,
    DECAY: tl.constexpr,
    WANT_LOSS: tl.constexpr,
    COPIES: tl.constexpr,
    LABELS_FIRST: tl.constexpr,
    ORDERED: tl.constexpr,
):
    """Arguments and launch as step_kernel."""
    dx += (tl.program_id(0) % COPIES) * copy_stride
    if ORDERED:
        for tile in range(first_tile + tl.program_id(0), last_tile, tl.num_programs(0)):
            wide_tile(
                tile, first_tile, weight, bias, moment, word_moment, index, x, gradient, dx, loss, slot, signs, labels,
                batch, rate, word_rate, decay, word_decay, beta2, correction, eps, factor, key_a, key_b, F, FEATURES, G,
                STRIDE, BLOCK_F, BLOCK_B, ROWS, INDEX, LOSS, LOG2_SCALE, ROWWISE, DECAY, WANT_LOSS, LABELS_FIRST,
                ORDERED,
            )  # fmt: skip
            tl.debug_barrier()
    else:
        wide_tile(
            first_tile + tl.program_id(0), first_tile, weight, bias, moment, word_moment, index, x, gradient, dx, loss,
            slot, signs, labels, batch, rate, word_rate, decay, word_decay, beta2, correction, eps, factor, key_a,
            key_b, F, FEATURES, G, STRIDE, BLOCK_F, BLOCK_B, ROWS, INDEX, LOSS, LOG2_SCALE, ROWWISE, DECAY, WANT_LOSS,
            LABELS_FIRST, ORDERED,
        )  # fmt: skip
