"""Pieces that the fused kernels share: stored weights, stochastic rounding, the loss, the row update, sums.

Weights are stored in bf16, fp16, fp32 or fp8 and decoded here; fp8 (e4m3) travels as bytes, because
graphics cards before compute capability 8.9 have no instruction for it. Products run in the element type of
the features (bf16 or fp16 on a GPU; fp32, as three tf32 products, for fp32 weights), everything else in fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# An e4m3 code shifted into fp16's layout reads too small by the difference of the exponent biases, 2**8.
FP8_REBIAS = tl.constexpr(256.0)
FP8_INVERSE_SCALE = tl.constexpr(1.0 / 32.0)  # 1 / layer.FP8_SCALE
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def product(a, b, accumulator):
    """accumulator + a @ b; fp32 operands keep (nearly) fp32 precision on tensor cores."""
    return tl.dot(a, b, accumulator, input_precision="tf32x3")


@triton.jit
def add_logits(z_RB, w_RF, x_FB, LABELS_FIRST: tl.constexpr):
    """z + w @ x, with labels or instances as the rows of the product: wide matrix instructions want 64 of them."""
    if LABELS_FIRST:
        z_RB = product(w_RF, x_FB, z_RB)
    else:
        z_RB = tl.trans(product(tl.trans(x_FB), tl.trans(w_RF), tl.trans(z_RB)))
    return z_RB


@triton.jit
def add_weight_gradient(grad_RF, g_RB, x_FB, LABELS_FIRST: tl.constexpr):
    """grad + g @ x^T, likewise with labels or features as its rows."""
    if LABELS_FIRST:
        grad_RF = product(g_RB, tl.trans(x_FB), grad_RF)
    else:
        grad_RF = tl.trans(product(x_FB, tl.trans(g_RB), tl.trans(grad_RF)))
    return grad_RF


@triton.jit
def decode(stored):
    """fp32 value of stored weights."""
    if stored.dtype == tl.uint8:
        bits = stored.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        value = half.to(tl.float16, bitcast=True).to(tl.float32) * (FP8_REBIAS * FP8_INVERSE_SCALE)
        value = tl.where((bits & 0x7F) == 0x7F, float("nan"), value)
    else:
        value = stored.to(tl.float32)
    return value


@triton.jit
def mix(value):
    """32 bits in, 32 well mixed bits out: two multiply-xorshift rounds (the 'lowbias32' finaliser)."""
    value = (value ^ (value >> 16)) * 0x7FEB352D
    value = (value ^ (value >> 15)) * 0x846CA68B
    return value ^ (value >> 16)


@triton.jit
def noise_RF(key_a, key_b, stream, ROWS: tl.constexpr, BLOCK_F: tl.constexpr):
    """32 random bits for every element of a tile, good for two draws of 16; `stream` tells tiles apart.

    A counter-based generator keyed by two 31-bit words. Rounding needs draws that are fair and that differ from
    weight to weight and step to step, not a long period, and this is the innermost loop: the key gets the full
    mix, the counter one multiply-xorshift round.
    """
    key = mix(mix(tl.cast(stream, tl.uint32) ^ tl.cast(key_a, tl.uint32)) + tl.cast(key_b, tl.uint32))
    element_RF = tl.arange(0, BLOCK_F)[None, :] * ROWS + tl.arange(0, ROWS)[:, None]
    bits_RF = element_RF.to(tl.uint32) * 0x9E3779B9 + key
    bits_RF = (bits_RF ^ (bits_RF >> 15)) * 0x846CA68B
    return bits_RF ^ (bits_RF >> 15)


@triton.jit
def encode(value, noise, STORE: tl.constexpr):
    """`value` (fp32) stochastically rounded to the stored type; `noise` is uint32 below 2**16.

    Adding uniform bits below the last kept one to the magnitude and cutting them off rounds up with just the
    odds that make the expectation exact. Below the smallest normal number the spacing is constant instead.
    """
    if STORE == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        stored = ((bits + noise) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif STORE == tl.float16:
        bits = value.to(tl.uint32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        normal = ((magnitude + (noise >> 3)) >> 13).to(tl.int32) - (112 << 10)
        tiny = tl.floor(tl.abs(value) * 16777216.0 + noise.to(tl.float32) * (1.0 / 65536.0)).to(tl.int32)
        code = tl.minimum(tl.where(magnitude < 0x38800000, tiny, normal), 0x7BFF)
        code = tl.where(magnitude > 0x7F800000, 0x7E00, code) | ((bits >> 16) & 0x8000).to(tl.int32)
        stored = code.to(tl.uint16).to(tl.float16, bitcast=True)
    else:
        tl.static_assert(STORE == tl.uint8)
        value = value / FP8_INVERSE_SCALE
        bits = value.to(tl.uint32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        normal = ((magnitude + (noise << 4)) >> 20).to(tl.int32) - (120 << 3)
        tiny = tl.floor(tl.abs(value) * 512.0 + noise.to(tl.float32) * (1.0 / 65536.0)).to(tl.int32)
        code = tl.minimum(tl.where(magnitude < 0x3C800000, tiny, normal), 0x7E)
        code = tl.where(magnitude > 0x7F800000, 0x7F, code) | ((bits >> 24) & 0x80).to(tl.int32)
        stored = code.to(tl.uint8)
    return stored


@triton.jit
def exp2(value):
    """2**value; results below 1e-38 are flushed to zero, which halves the instructions."""
    if INTERPRETED:
        power = tl.exp2(value)
    else:
        power = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [value], tl.float32, True, 1)
    return power


@triton.jit
def square_root(value):
    """For value >= 0, to three units in the last place; a third of the instructions of an exact root."""
    return value * tl.rsqrt(tl.maximum(value, 1e-37))


@triton.jit
def inverse(value):
    """1 / value for value > 0, likewise."""
    root = tl.rsqrt(value)
    return root * root


@triton.jit
def negative_gradient(z, LOSS: tl.constexpr, LOG2_SCALE: tl.constexpr):
    """2**LOG2_SCALE times the derivative of the loss by the logit of a label that the instance does not have."""
    if LOSS == "bce":
        # s / (1 + e) as the square of the inverse root of 1/s + e/s: one special-unit instruction, no division
        root = tl.rsqrt(exp2(z * -LOG2_E - LOG2_SCALE) + 2.0**-LOG2_SCALE)
        gradient = root * root
    else:
        short = 1.0 + z
        # a comparison, because a maximum would drop NaN
        gradient = 2.0 ** (LOG2_SCALE + 1) * tl.where(short < 0.0, 0.0, short)
    return gradient


@triton.jit
def negative_loss(z, LOSS: tl.constexpr):
    """The loss of such a label."""
    if LOSS == "bce":
        value = tl.where(z < 0.0, 0.0, z) + tl.log2(1.0 + exp2(tl.abs(z) * -LOG2_E)) * LN_2
    else:
        value = tl.where(z < -1.0, 0.0, (1.0 + z) * (1.0 + z))
    return value


@triton.jit
def flip_positives(value_RB, signs, slot, first, WORDS: tl.constexpr):
    """`value_RB` with the sign of the positives changed; `signs` [slots, WORDS, R] has a bit for each instance.

    Either loss of a positive is that of a negative at -z, and its gradient minus that. Most tiles have no positive
    (slot < 0) and pay a branch. The bits are read again for the second flip: keeping them would cost registers.
    """
    if slot >= 0:
        ROWS: tl.constexpr = value_RB.shape[0]
        BATCH: tl.constexpr = value_RB.shape[1]
        at_B = first % 32 + tl.arange(0, BATCH)
        words_R = signs + (slot * WORDS + first // 32) * ROWS + tl.arange(0, ROWS)
        sign_RB = tl.zeros((ROWS, BATCH), tl.uint32)
        # a word a row at a time: a load of all bits at once would impose its layout on the logits
        for word in tl.static_range((BATCH + 31) // 32):
            word_R = tl.load(words_R + word * ROWS).to(tl.uint32, bitcast=True)
            bit_RB = (word_R[:, None] >> (at_B % 32).to(tl.uint32)[None, :]) << 31
            sign_RB = tl.where((at_B // 32 == word)[None, :], bit_RB, sign_RB)
        value_RB = (value_RB.to(tl.uint32, bitcast=True) ^ sign_RB).to(tl.float32, bitcast=True)
    return value_RB


@triton.jit
def prefetch(pointer, BYTES: tl.constexpr):
    """Asks for the BYTES from `pointer` on to be brought from device memory into the second-level cache."""
    if not INTERPRETED:
        LINES: tl.constexpr = triton.next_power_of_2((BYTES + 127) // 128)  # some of them the next tile's
        line = pointer.to(tl.int64) + tl.arange(0, LINES) * 128
        tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [line], tl.int32, False, 1)


@triton.jit
def sum_order(BLOCK_F: tl.constexpr):
    """Which of BLOCK_F columns stands where in the rows that `add` takes: int32 [BLOCK_F]."""
    at_F = tl.arange(0, BLOCK_F)
    if BLOCK_F >= 64:
        at_F = at_F // 64 * 64 + (at_F // 8 % 4) * 16 + (at_F // 32 % 2) * 8 + at_F % 8
    return at_F


@triton.jit
def add(dx, feature_F, real_F, share_FB, STRIDE: tl.constexpr, ORDERED: tl.constexpr):
    """dx[feature] += share: atomically, or, where no other program writes, by reading and writing.

    feature_F, real_F: in the order of `sum_order`. dx is stored in the order in which matrix instructions leave
    their results in the registers (of 32 instances, 8j + 2t + i stands at 8t + 2j + i; of features, see `sum_order`):
    16 bytes at a time go from registers to memory, and no result passes through shared memory. On cards with other
    layouts the compiler moves the elements, and the result is the same.
    """
    BLOCK_F: tl.constexpr = share_FB.shape[0]
    BLOCKS: tl.constexpr = share_FB.shape[1] // 32
    share_FB = share_FB.to(dx.dtype.element_ty)
    if BLOCK_F >= 64:
        share = tl.reshape(share_FB, (BLOCK_F // 64, 4, 2, 8, BLOCKS, 4, 4, 2))
        share = tl.permute(share, (0, 2, 1, 3, 4, 6, 5, 7))
    else:
        share = tl.permute(tl.reshape(share_FB, (BLOCK_F, BLOCKS, 4, 4, 2)), (0, 1, 3, 2, 4))
    share = tl.reshape(share, (BLOCK_F, BLOCKS, 32))
    block = tl.arange(0, BLOCKS)[None, :, None] * 32
    to = dx + (feature_F[:, None, None] * STRIDE + block + tl.arange(0, 32)[None, None, :])
    mask = real_F[:, None, None]
    if ORDERED:
        tl.store(to, tl.load(to, mask=mask, other=0.0, cache_modifier=".cg") + share, mask=mask)
    else:
        tl.atomic_add(to, share, mask=mask, sem="relaxed")


@triton.jit
def row_step(v_R, square_R, rate, beta2, correction, eps):
    """(second moments after the step, step sizes) of a label; `correction` is 1 / (1 - beta2**step)."""
    v_R += (1.0 - beta2) * (square_R - v_R)
    return v_R, rate * inverse(square_root(v_R * correction) + eps)


@triton.jit
def updated_rows(w_RF, step_RF, decay, noise, DECAY: tl.constexpr, STORE: tl.constexpr):
    """The rows after the step `step_RF` (step size times gradient), in the stored type."""
    if DECAY:
        w_RF *= decay
    new_RF = w_RF - step_RF
    if STORE != tl.float32:
        new_RF = encode(new_RF, noise, STORE)
    return new_RF
