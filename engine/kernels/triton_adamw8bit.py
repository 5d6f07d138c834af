"""AdamW with block-wise 8-bit moments on parameters in two halves, in one kernel.

The same step as `adamw8bit.adamw8bit_` (bitsandbytes' code book and its rounding to the nearest code), but the fp32
master weight is put together, moved and taken apart in registers, and the gradient is read as it is and clipped here:
one launch and no temporary, where torch around bitsandbytes takes a dozen launches and four fp32 copies.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.adamw8bit import QUANTIZATION_BLOCK, quantile_map

ROWS = 4  # quantization blocks of a program, a warp each


@triton.jit
def nearest_code(value_RQ, middles):
    """Which code of a sorted book is nearest to each value; middles [255]: between two neighbours."""
    code_RQ = tl.zeros(value_RQ.shape, tl.int32)
    for bit in tl.static_range(8):
        code_RQ += tl.where(value_RQ > tl.load(middles + code_RQ + ((128 >> bit) - 1)), 128 >> bit, 0)
    return code_RQ


@triton.jit
def relative(value_RQ, most_R):
    """value / most of its row; 0 where that is 0."""
    return value_RQ * (1.0 / tl.where(most_R > 0.0, most_R, 1.0))[:, None]


@triton.jit
def adamw_kernel(
    value,  # bf16, upper halves of the weights
    low,  # int16, lower halves
    grad,  # from the first of the weights on, bf16 or fp32
    moment1,  # uint8
    moment2,
    largest1,  # fp32, a quantization block each
    largest2,
    norm,  # fp32 scalar: of the gradients that are clipped together
    codes1,  # fp32 [256]
    codes2,
    middles1,  # fp32 [255]
    middles2,
    first,  # of the weights, a multiple of Q
    count,
    clip_norm,
    beta1,
    beta2,
    eps,
    size,  # of the step, negative: the learning rate with both bias corrections
    kept,  # 1 - learning rate x weight decay
    CLIPS: tl.constexpr,
    Q: tl.constexpr,
    ROWS: tl.constexpr,
):
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_RQ = row_R[:, None] * Q + tl.arange(0, Q)[None, :]
    # parameters are filled up to whole blocks with zeros, which stay zero: only gradients end within a block
    real_RQ = (row_R < tl.cdiv(count, Q))[:, None] & (at_RQ >= 0)
    block_R = first // Q + row_R
    real_R = row_R < tl.cdiv(count, Q)
    value += first
    low += first
    moment1 += first
    moment2 += first
    high_RQ = tl.load(value + at_RQ, mask=real_RQ, other=0.0).to(tl.uint16, bitcast=True).to(tl.uint32)
    low_RQ = tl.load(low + at_RQ, mask=real_RQ, other=0).to(tl.uint16, bitcast=True).to(tl.uint32)
    weight_RQ = (((high_RQ << 16) | low_RQ) - 0x8000).to(tl.float32, bitcast=True)
    g_RQ = tl.load(grad + at_RQ, mask=at_RQ < count, other=0.0).to(tl.float32)
    if CLIPS:
        g_RQ *= tl.minimum(clip_norm / (tl.load(norm) + 1e-6), 1.0)
    finite_RQ = tl.abs(g_RQ) < float("inf")
    g_RQ = tl.where(finite_RQ, g_RQ, 0.0)
    code1_RQ = tl.load(moment1 + at_RQ, mask=real_RQ, other=0).to(tl.int32)
    code2_RQ = tl.load(moment2 + at_RQ, mask=real_RQ, other=0).to(tl.int32)
    most1_R = tl.load(largest1 + block_R, mask=real_R, other=0.0)
    most2_R = tl.load(largest2 + block_R, mask=real_R, other=0.0)
    m_RQ = tl.load(codes1 + code1_RQ) * most1_R[:, None] * beta1 + (1.0 - beta1) * g_RQ
    v_RQ = tl.load(codes2 + code2_RQ) * most2_R[:, None] * beta2 + (1.0 - beta2) * g_RQ * g_RQ
    m_RQ = tl.where(finite_RQ, m_RQ, 0.0)
    v_RQ = tl.where(finite_RQ, v_RQ, 0.0)

    moved_RQ = (weight_RQ + size * (m_RQ / (tl.sqrt(v_RQ) + eps))) * kept
    bits_RQ = tl.where(finite_RQ, moved_RQ, weight_RQ).to(tl.uint32, bitcast=True) + 0x8000
    high_RQ = (bits_RQ >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    tl.store(value + at_RQ, high_RQ, mask=real_RQ)
    tl.store(low + at_RQ, (bits_RQ & 0xFFFF).to(tl.uint16).to(tl.int16, bitcast=True), mask=real_RQ)

    most1_R = tl.max(tl.abs(m_RQ), axis=1)
    most2_R = tl.max(v_RQ, axis=1)
    tl.store(moment1 + at_RQ, nearest_code(relative(m_RQ, most1_R), middles1).to(tl.uint8), mask=real_RQ)
    tl.store(moment2 + at_RQ, nearest_code(relative(v_RQ, most2_R), middles2).to(tl.uint8), mask=real_RQ)
    tl.store(largest1 + block_R, most1_R, mask=real_R)
    tl.store(largest2 + block_R, most2_R, mask=real_R)


def adamw8bit_halves_(
    value: Tensor,
    low: Tensor,
    grad: Tensor,
    moments: dict[str, Tensor],
    first: int,
    norm: Tensor,
    clip_norm: float,
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step of the weights [first, first + n) in place; grad: theirs, [n].

    value bf16, low int16, moments as made by `new_moments`: of all weights, whole quantization blocks of them · norm:
    fp32 scalar on the device, the gradients' · clip_norm: 0 for no clipping.
    """
    count = grad.numel()
    assert first % QUANTIZATION_BLOCK == 0 and value.numel() % QUANTIZATION_BLOCK == 0
    assert value.dtype == torch.bfloat16 and low.dtype == torch.int16 and grad.is_contiguous()
    assert first + count <= value.numel() < 2**31
    correction = (1.0 - betas[1] ** step) ** 0.5
    size = -learning_rate * correction / (1.0 - betas[0] ** step)
    tensors = [moments[name] for name in ("moment1", "moment2", "absmax1", "absmax2")]
    grid = (triton.cdiv(count, QUANTIZATION_BLOCK * ROWS),)
    adamw_kernel[grid](
        value, low, grad, *tensors, norm, *code_books(str(value.device)), first, count, clip_norm, *betas,
        eps * correction, size, 1.0 - learning_rate * weight_decay, CLIPS=clip_norm > 0.0, Q=QUANTIZATION_BLOCK,
        ROWS=ROWS, num_warps=ROWS,
    )  # fmt: skip


@cache
def code_books(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """bitsandbytes' codes of first and second moments, and the middles between neighbours of each."""
    books = [quantile_map(signed, device) for signed in (True, False)]
    return *books, *((book[1:] + book[:-1]) / 2 for book in books)
