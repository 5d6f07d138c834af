"""Which labels share features: balanced recursive 2-means over label vectors, all nodes of a level at once.

A label's vector is the mean of its instances' features, projected at random to at most VECTOR_WIDTH
dimensions (Johnson & Lindenstrauss). Each level of the tree splits every node in two halves of whole
groups; the leaves, read from left to right, are the groups. The same tree gives the meta-labels.
Source: balanced label clustering of Parabel (Prabhu et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

VECTOR_WIDTH = 64
ITERATIONS = 5
CHUNK = 1 << 18  # labels scored at once, so that no second copy of the vectors exists


def label_vectors(
    features: Iterable[tuple[Tensor, np.ndarray, np.ndarray]], labels: int, width: int, seed: int
) -> Tensor:
    """Unit label vectors, fp32 [L, min(width, VECTOR_WIDTH)]; zero for a label without instances.

    features: batches of (x_BD any float dtype, CSR offsets int64 [B + 1], label ids int32 [P]).
    """
    projection = None
    total = None
    for x_BD, offsets, ids in features:
        x_BD = x_BD.float()
        if total is None:
            generator = torch.Generator().manual_seed(seed)
            if width > VECTOR_WIDTH:
                projection = torch.randn(width, VECTOR_WIDTH, generator=generator).to(x_BD.device)
            total = torch.zeros(labels, min(width, VECTOR_WIDTH), device=x_BD.device)
        instance = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        low_BK = x_BD if projection is None else x_BD @ projection
        rows = torch.from_numpy(instance).to(x_BD.device)
        total.index_add_(0, torch.from_numpy(ids.astype(np.int64)).to(x_BD.device), low_BK[rows])
    if total is None:
        return torch.zeros(labels, min(width, VECTOR_WIDTH))
    return torch.nn.functional.normalize(total, dim=1, out=total)


def balanced_order(vectors_LK: Tensor, group_size: int, seed: int) -> Tensor:
    """Order of the labels (int64 [L], on the device of the vectors) in which groups are runs of group_size.

    Similar vectors end up near each other. The last group alone may be short.
    """
    labels, width = vectors_LK.shape
    device = vectors_LK.device
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(labels, generator=generator).to(device)
    bounds = np.array([0, labels])
    while True:
        halves = split(bounds, group_size)
        if len(halves) == len(bounds):
            return order
        middle = _middles(bounds, group_size)
        sizes = torch.from_numpy(np.diff(bounds)).to(device)
        node = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
        is_left = torch.arange(labels, device=device) < torch.from_numpy(middle).to(device)[node]
        direction = torch.randn(len(sizes), width, generator=generator).to(device)
        for _ in range(ITERATIONS):
            order = order[_sorted_within_nodes(_scores(vectors_LK, order, node, direction), node)]
            direction = _mean_difference(vectors_LK, order, node, is_left, len(sizes))
        bounds = halves


def split(bounds: np.ndarray, group_size: int) -> np.ndarray:
    """Bounds of the next level: every node of more than one group cut in two halves of whole groups."""
    return np.union1d(bounds, _middles(bounds, group_size))


def tree_bounds(labels: int, group_size: int, most: int) -> np.ndarray:
    """Bounds (int64 [nodes + 1]) of the deepest level of the tree that has at most `most` nodes."""
    bounds = np.array([0, labels])
    while True:
        finer = split(bounds, group_size)
        if len(finer) == len(bounds) or len(finer) - 1 > most:
            return bounds
        bounds = finer


def _middles(bounds: np.ndarray, group_size: int) -> np.ndarray:
    """Where each node is cut; its end where it is one group already."""
    groups = -(-np.diff(bounds) // group_size)
    return np.minimum(bounds[:-1] + (groups + 1) // 2 * group_size, bounds[1:])


def _scores(vectors_LK: Tensor, order: Tensor, node: Tensor, direction: Tensor) -> Tensor:
    scores = torch.empty(len(order), device=order.device)
    for first in range(0, len(order), CHUNK):
        part = slice(first, first + CHUNK)
        scores[part] = (vectors_LK[order[part]] * direction[node[part]]).sum(dim=1)
    return scores


def _sorted_within_nodes(scores: Tensor, node: Tensor) -> Tensor:
    """Positions sorted by node, then by descending score."""
    ranked = torch.argsort(scores, descending=True, stable=True)
    return ranked[torch.argsort(node[ranked], stable=True)]


def _mean_difference(vectors_LK: Tensor, order: Tensor, node: Tensor, is_left: Tensor, nodes: int) -> Tensor:
    """Mean vector of each node's left half minus that of its right half, [nodes, K]."""
    difference = torch.zeros(nodes, vectors_LK.shape[1], device=order.device)
    left = torch.zeros(nodes, device=order.device).index_add_(0, node, is_left.float())
    size = torch.bincount(node, minlength=nodes).float()
    share = torch.where(is_left, 1.0 / left[node].clamp(min=1), -1.0 / (size - left)[node].clamp(min=1))
    for first in range(0, len(order), CHUNK):
        part = slice(first, first + CHUNK)
        difference.index_add_(0, node[part], vectors_LK[order[part]] * share[part, None])
    return difference
