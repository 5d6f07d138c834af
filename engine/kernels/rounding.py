"""Stochastic rounding: a value is stored as one of its two neighbours in the narrow type, with odds such
that the expectation is the value itself. Updates far below the spacing of a 16-bit type then still add up."""

from __future__ import annotations

import torch
from torch import Tensor

# mantissa bits, smallest normal exponent (as frexp counts: value = m * 2**e with 0.5 <= m < 1), largest finite
_FORMAT = {
    torch.bfloat16: (7, -125, 3.3895313892515355e38),
    torch.float16: (10, -13, 65504.0),
    torch.float8_e4m3fn: (3, -5, 448.0),
}


def stochastic_round(value: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """`value` (fp32, any shape) in `dtype`; fp32 is returned as it is.

    Adds uniform noise of one spacing of `dtype` around the value, then rounds to nearest.
    """
    if dtype == torch.float32:
        return value
    mantissa_bits, lowest_exponent, largest = _FORMAT[dtype]
    exponent = torch.frexp(value).exponent.clamp_(min=lowest_exponent)
    noise = torch.rand(value.shape, generator=generator, device=value.device).sub_(0.5)
    noise = torch.ldexp(noise, exponent - 1 - mantissa_bits)
    return noise.add_(value).clamp_(-largest, largest).to(dtype)
