"""All randomness is a function of the run's seed and of where training stands, never of what ran before.

A resumed run therefore draws what an uninterrupted one would have drawn, and a checkpoint holds no
generator state.
"""

from __future__ import annotations

import numpy as np

# One stream a purpose, so that two purposes never draw the same numbers.
ORDER, LAYER, WEIGHTS, AUXILIARY, DROPOUT, REWIRE, WITHOUT_WORDS, ADAPTER = range(8)


def seed_of(*parts: int) -> int:
    """A seed, below 2**63, for the given integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
