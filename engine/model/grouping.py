"""Which labels share features: balanced recursive 2-means over label vectors, in a bounded amount of memory.

A label's vector is the mean of its instances' features, projected at random to few dimensions (Johnson &
Lindenstrauss). Each level of the tree splits every node in two halves of whole groups; the leaves, read from left
to right, are the groups. The same tree gives the meta-labels. Source: balanced label clustering of Parabel
(Prabhu et al. 2018).

Memory is bounded as `grouping_layout` says. The direction along which a node larger than
that is cut comes from an even sample of BLOCK of its labels. Smaller nodes are finished one after the other, depth
first, with all nodes of a level of them at once.

Shape suffixes: L labels, K dimensions of a vector, N nodes, S labels of the largest of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from engine.model.grouping_layout import BLOCK, forming_bytes, vector_bytes
from engine.model.label_tree import middles, split

ITERATIONS = 5
PAIRS = 1 << 16  # (instance, label) pairs added up together
LARGEST = 60_000.0  # what a sum in fp16 may reach


def vector_layout(labels: int, width: int, memory: int | None) -> tuple[int, torch.dtype]:
    """(K, dtype) of label vectors such that they and `balanced_order` together take at most `memory` bytes."""
    vector_width, itemsize = vector_bytes(labels, width, memory)
    return vector_width, torch.float32 if itemsize == 4 else torch.float16


def grouping_bytes(labels: int, vector_width: int, dtype: torch.dtype) -> int:
    """Most bytes that the vectors [L, K] and `balanced_order` take together."""
    return forming_bytes(labels, vector_width, dtype.itemsize)


def label_vectors(
    features: Iterable[tuple[Tensor, np.ndarray, np.ndarray]],
    labels: int,
    width: int,
    seed: int,
    memory: int | None = None,
) -> Tensor:
    """Unit label vectors [L, K], on the features' device; zero for a label without instances.

    features: batches of (x_BD any float dtype, CSR offsets int64 [B + 1], label ids int32 [P]) · width: D ·
    memory: bytes for the vectors and `balanced_order` together, see `vector_layout`.
    """
    vector_width, dtype = vector_layout(labels, width, memory)
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(width, vector_width, generator=generator) if width > vector_width else None
    total_LK = torch.zeros(0)
    for x_BD, offsets, ids in features:
        low_BK = x_BD.float() if projection is None else x_BD.float() @ projection.to(x_BD.device)
        if not len(total_LK):
            total_LK = torch.zeros(labels, vector_width, dtype=dtype, device=x_BD.device)
            scale = low_BK.abs().amax().clamp(min=1e-12)  # keeps sums of thousands of instances inside fp16
        _add_instances(total_LK, low_BK / scale, offsets, ids)
    if not len(total_LK):
        return torch.zeros(labels, vector_width, dtype=dtype)
    for part_RK in total_LK.split(BLOCK):
        part_RK.copy_(normalize(part_RK.float(), dim=1))
    return total_LK


def _add_instances(total_LK: Tensor, low_BK: Tensor, offsets: np.ndarray, ids: np.ndarray) -> None:
    """Adds to each label the vectors of its instances, in an order that does not depend on the device's threads."""
    instance = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    by_label = np.argsort(ids, kind="stable")
    for first in range(0, len(ids), PAIRS):
        pairs = by_label[first : first + PAIRS]
        labels, counts = np.unique(ids[pairs], return_counts=True)
        rows, labels, counts = (torch.from_numpy(a).to(low_BK.device) for a in (instance[pairs], labels, counts))
        sums_UK = torch.segment_reduce(low_BK[rows], "sum", lengths=counts, unsafe=True)
        sums_UK += total_LK[labels]
        total_LK[labels] = sums_UK.clamp_(-LARGEST, LARGEST).to(total_LK.dtype)


def balanced_order(vectors_LK: Tensor, group_size: int, seed: int, labels: Tensor | None = None) -> Tensor:
    """The labels in an order (int32, on the device of the vectors) in which groups are runs of group_size.

    Similar vectors end up near each other. The last group alone may be short. labels: ids (int, rows of the
    vectors) of the labels to order; all of them when None.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(vectors_LK) if labels is None else len(labels)
    order = torch.randperm(count, generator=generator, dtype=torch.int32)
    if labels is not None:
        order = labels.to("cpu", torch.int32)[order]
    order = order.to(vectors_LK.device)
    nodes = [order]
    while nodes:
        node = nodes.pop()
        if len(node) > max(BLOCK, group_size):
            middle = int(middles(np.array([0, len(node)]), group_size)[0])
            _cut(vectors_LK, node, middle, generator)
            nodes += [node[middle:], node[:middle]]
        else:
            _order_node(vectors_LK, node, group_size, generator)
    return order


def _order_node(vectors_LK: Tensor, order: Tensor, group_size: int, generator: torch.Generator) -> None:
    """Orders a node of at most BLOCK labels in place, down to its groups, level by level."""
    bounds = np.array([0, len(order)])
    while len(halves := split(bounds, group_size)) > len(bounds):
        starts, sizes = bounds[:-1], np.diff(bounds)
        lefts = middles(bounds, group_size) - starts
        divisible = np.flatnonzero(lefts < sizes)
        at_once = max(1, BLOCK // int(sizes.max()))
        for first in range(0, len(divisible), at_once):
            some = divisible[first : first + at_once]
            _order_halves(vectors_LK, order, starts[some], sizes[some], lefts[some], generator)
        bounds = halves


def _order_halves(
    vectors_LK: Tensor,
    order: Tensor,
    starts: np.ndarray,
    sizes: np.ndarray,
    lefts: np.ndarray,
    generator: torch.Generator,
) -> None:
    """Orders the labels of each node order[start : start + size], those of its left half first."""
    device = order.device
    start_N1, size_N1, left_N1 = (torch.from_numpy(a).to(device)[:, None] for a in (starts, sizes, lefts))
    column_S = torch.arange(int(sizes.max()), device=device)
    exists_NS = column_S < size_N1
    place_NS = (start_N1 + column_S).clamp_(max=len(order) - 1)
    label_NS = order[place_NS]
    v_NSK = vectors_LK[label_NS].float()
    direction_NK = _two_means(v_NSK, exists_NS, size_N1, left_N1, generator)
    ranked_NS = _ranked(v_NSK, exists_NS, direction_NK)
    order[place_NS[exists_NS]] = label_NS.gather(1, ranked_NS)[exists_NS]


def _two_means(
    v_NSK: Tensor, exists_NS: Tensor, size_N1: Tensor, left_N1: Tensor, generator: torch.Generator
) -> Tensor:
    """[N, K]: the direction along which the left_N1 labels farthest on lie apart from the others of their node."""
    nodes, most, width = v_NSK.shape
    rank_S = torch.arange(most, device=v_NSK.device)
    share_NS = torch.where(rank_S < left_N1, 1.0 / left_N1, -1.0 / (size_N1 - left_N1)) * exists_NS
    direction_NK = torch.randn(nodes, width, generator=generator).to(v_NSK.device)
    for _ in range(ITERATIONS - 1):
        ranked_NS = _ranked(v_NSK, exists_NS, direction_NK)
        weight_NS = torch.empty_like(share_NS).scatter_(1, ranked_NS, share_NS)
        direction_NK = torch.bmm(weight_NS[:, None, :], v_NSK)[:, 0]
    return direction_NK


def _ranked(v_NSK: Tensor, exists_NS: Tensor, direction_NK: Tensor) -> Tensor:
    """Columns [N, S] of each node by descending score; columns without a label come last."""
    score_NS = torch.bmm(v_NSK, direction_NK[:, :, None])[:, :, 0]
    score_NS.masked_fill_(~exists_NS, -torch.inf)
    return torch.sort(score_NS, dim=1, descending=True, stable=True).indices


def _cut(vectors_LK: Tensor, order: Tensor, middle: int, generator: torch.Generator) -> None:
    """Brings the labels of the left half of a node of more than BLOCK labels to its first `middle` places.

    Otherwise labels keep their order, which is random: an even sample of a node is a random one.
    """
    device = order.device
    v_1SK = vectors_LK[order[:: -(-len(order) // BLOCK)]].float()[None]
    sample = v_1SK.shape[1]
    size_11 = torch.tensor([[sample]], device=device)
    left_11 = torch.tensor([[round(sample * middle / len(order))]], device=device)
    exists_1S = torch.ones(1, sample, dtype=torch.bool, device=device)
    direction_K = _two_means(v_1SK, exists_1S, size_11, left_11, generator)[0]
    del v_1SK
    key = torch.empty(len(order), dtype=torch.int32, device=device)
    for key_part, part in zip(key.split(BLOCK), order.split(BLOCK), strict=True):
        key_part.copy_(_sortable(vectors_LK[part].float() @ direction_K))
    least = _kth_largest(key, middle)
    ties = middle - int(torch.count_nonzero(key > least))
    before, left, right = order.clone(), 0, middle
    for key_part, part in zip(key.split(BLOCK), before.split(BLOCK), strict=True):
        goes_left = key_part >= least
        tied = torch.nonzero(key_part == least)[:, 0]
        goes_left[tied[ties:]] = False
        ties -= min(ties, len(tied))
        to_left, to_right = part[goes_left], part[~goes_left]
        order[left : left + len(to_left)] = to_left
        order[right : right + len(to_right)] = to_right
        left, right = left + len(to_left), right + len(to_right)


def _sortable(score: Tensor) -> Tensor:
    """int32 numbers in the order of the fp32 scores: the bits of a float, those of a negative one turned around."""
    bits = score.view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _kth_largest(key: Tensor, k: int) -> int:
    """The largest number that at least k of the int32 keys reach. Needs one byte a key."""
    low, high = -(2**31), 2**31 - 1
    while low < high:
        middle = (low + high + 1) // 2
        if int(torch.count_nonzero(key >= middle)) >= k:
            low = middle
        else:
            high = middle - 1
    return low
