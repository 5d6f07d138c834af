"""How likely a label is to be observed at all where it holds, from how often it occurs (Jain et al. 2016)."""

import math

import numpy as np
from numpy.typing import NDArray


def inverse_propensity(frequency: NDArray, n_train: int, a: float = 0.55, b: float = 1.5) -> NDArray[np.float64]:
    """1 + C (n + B)^-A with C = (ln N - 1) (B + 1)^A, for labels that occur n times in N training instances.

    frequency: n, of any shape; the result is fp64 of that shape.  a, b: A and B (Amazon 0.6 and 2.6, Wikipedia 0.5
    and 0.4).
    """
    c = (math.log(n_train) - 1) * (b + 1) ** a
    return 1 + c * (np.asarray(frequency) + b) ** -a
