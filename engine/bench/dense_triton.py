"""The update of `dense.ChunkedSGD` as one pass over a chunk: what its scheme costs on a GPU when it is done well.

In plain torch the fp32 copy, the noise and the rounding each pass over the chunk in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.triton_common import encode, noise_RF

BLOCK = 2048


@triton.jit(do_not_specialize=["key_a", "key_b"])
def sgd_kernel(weight, grad, elements, rate, key_a, key_b, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(weight + at, mask=at < elements).to(tl.float32)
    value -= rate * tl.load(grad + at, mask=at < elements).to(tl.float32)
    noise = tl.reshape(noise_RF(key_a, key_b, block, 1, BLOCK), (BLOCK,)) & 0xFFFF
    tl.store(weight + at, encode(value, noise, tl.bfloat16), mask=at < elements)


def sgd_(weight_RD: Tensor, grad_RD: Tensor, rate: float, step: int, first: int) -> None:
    """As `dense.sgd_`; the noise follows from the step and the chunk's first label. Both tensors contiguous."""
    assert weight_RD.is_contiguous()
    assert grad_RD.is_contiguous()
    elements = weight_RD.numel()
    sgd_kernel[(triton.cdiv(elements, BLOCK),)](weight_RD, grad_RD, elements, rate, step, first, BLOCK=BLOCK)
