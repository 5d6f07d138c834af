"""AdamW with block-wise 8-bit moments, a flat piece of parameters at a time.

Loshchilov & Hutter 2019 (decoupled weight decay); Dettmers et al. 2022 (8-bit states), computed by bitsandbytes.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

QUANTIZATION_BLOCK = 256  # elements that share one scale


def new_moments(elements: int, device: torch.device | str) -> dict[str, Tensor]:
    """Zero moments of `elements` parameters: moment1, moment2 uint8 [n], absmax1, absmax2 fp32 [ceil(n / 256)]."""
    blocks = -(-elements // QUANTIZATION_BLOCK)
    zero = [int(quantile_map(signed, str(device)).abs().argmin()) for signed in (True, False)]
    return {
        "moment1": torch.full((elements,), zero[0], dtype=torch.uint8, device=device),
        "moment2": torch.full((elements,), zero[1], dtype=torch.uint8, device=device),
        "absmax1": torch.zeros(blocks, device=device),
        "absmax2": torch.zeros(blocks, device=device),
    }


@cache
def quantile_map(signed: bool, device: str) -> Tensor:
    """bitsandbytes' dynamic 8-bit code book, fp32 [256]."""
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=signed).to(device)


def adamw8bit_(
    weight: Tensor,
    grad: Tensor,
    moments: dict[str, Tensor],
    first: int,
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step of the elements [first, first + n) in place; weight, grad: fp32 [n], contiguous.

    moments: as made by `new_moments` for all elements; `first` is a multiple of QUANTIZATION_BLOCK.
    """
    from bitsandbytes import functional

    count = weight.numel()
    # The CUDA kernel trusts its arguments: same dtype, contiguous, same size.
    assert first % QUANTIZATION_BLOCK == 0, "a piece has to start on a quantization block"
    assert weight.dtype == grad.dtype == torch.float32
    assert weight.is_contiguous()
    assert grad.is_contiguous()
    assert grad.numel() == count
    piece = slice(first, first + count)
    blocks = slice(first // QUANTIZATION_BLOCK, -(-(first + count) // QUANTIZATION_BLOCK))
    device = str(weight.device)
    functional.optimizer_update_8bit_blockwise(
        "adam",
        grad.view(-1),
        weight.view(-1),
        moments["moment1"].view(-1)[piece],
        moments["moment2"].view(-1)[piece],
        *betas,
        0.0,
        0.0,
        eps,
        step,
        learning_rate,
        quantile_map(True, device),
        quantile_map(False, device),
        moments["absmax1"][blocks],
        moments["absmax2"][blocks],
        weight_decay=weight_decay,
        gnorm_scale=1.0,
        skip_zeros=False,
    )
