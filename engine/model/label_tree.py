"""The tree whose leaves are the groups: which runs of labels its nodes are. Needs no torch.

Every node of more than one group is cut in two halves of whole groups; engine.model.grouping puts similar labels into
the same half.
"""

from __future__ import annotations

import numpy as np


def split(bounds: np.ndarray, group_size: int) -> np.ndarray:
    """Bounds of the next level: every node of more than one group cut in two halves of whole groups."""
    return np.union1d(bounds, middles(bounds, group_size))


def tree_bounds(labels: int, group_size: int, most: int) -> np.ndarray:
    """Bounds (int64 [nodes + 1]) of the deepest level of the tree that has at most `most` nodes."""
    bounds = np.array([0, labels])
    while True:
        finer = split(bounds, group_size)
        if len(finer) == len(bounds) or len(finer) - 1 > most:
            return bounds
        bounds = finer


def middles(bounds: np.ndarray, group_size: int) -> np.ndarray:
    """Where each node is cut; its end where it is one group already."""
    groups = -(-np.diff(bounds) // group_size)
    return np.minimum(bounds[:-1] + (groups + 1) // 2 * group_size, bounds[1:])
