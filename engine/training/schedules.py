"""Learning-rate schedule shared by encoder, intermediate layer and classifier."""

from __future__ import annotations

import math

FLOOR = 0.01  # share of the peak that is left at the end


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor of the peak rate at `step` (counted from 1) of `total`: linear warm-up, then cosine to FLOOR.

    The warm-up takes at most a tenth of a short training.
    """
    warmup = min(warmup, total // 10)
    if step <= warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
