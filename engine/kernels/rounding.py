"""Stochastic rounding: a value is stored as one of its two neighbours in the narrow type, with odds such
that the expectation is the value itself. Updates far below the spacing of a 16-bit type then still add up."""

from __future__ import annotations

import torch
from torch import Tensor

# mantissa bits, smallest normal exponent (as frexp counts: value = m * 2**e with 0.5 <= m < 1), largest finite
_FORMAT = {
    torch.bfloat16: (7, -100, 3.3895313892515355e38),  # below 2**-100 the spacing stays: no overflow on the way
    torch.float16: (10, -13, 65504.0),
    torch.float8_e4m3fn: (3, -5, 448.0),
}


def stochastic_round(value: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """`value` (fp32, any shape) in `dtype`; fp32 is returned as it is.

    In units of its spacing in `dtype`, floor(value + u) with u uniform in (0, 1), of so few bits that the sum is exact
    for a value of `dtype`, which stays.
    """
    if dtype == torch.float32:
        return value
    mantissa_bits, lowest_exponent, largest = _FORMAT[dtype]
    exponent = torch.frexp(value).exponent
    exponent = exponent.masked_fill_(value == 0, lowest_exponent).clamp_(min=lowest_exponent)
    exponent -= 1 + mantissa_bits
    units = torch.ldexp(value, -exponent)
    steps = 1 << (22 - mantissa_bits)
    uniform = torch.rand(value.shape, generator=generator, device=value.device)
    units += uniform.mul_(steps).floor_().add_(0.5).mul_(1 / steps)
    return torch.ldexp(units.floor_(), exponent).clamp_(-largest, largest).to(dtype)
