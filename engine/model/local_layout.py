"""Which clusters of labels have features of their own, and which columns these are; needs no torch.

Clusters are nodes of the tree that formed the groups, in two of its levels: coarse ones, and the fine ones that these
consist of. A group reads the features of its coarse and of its fine cluster. The columns stand behind the D features
of the encoder, cluster by cluster, the coarse ones first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.config import Local
from engine.model.label_tree import tree_bounds

AUTO_CLUSTERS = 256
LEAST_GROUPS = 4  # of a cluster, so that it is chosen by itself
COARSER = 8  # clusters that a coarse one consists of
MOST_FEATURES = 64  # of clusters that a group reads


@dataclass(frozen=True)
class LocalLayout:
    """Of `labels` tail labels in groups: fine clusters, coarse ones (0: there are none) and `each` features of every
    cluster, behind `width` others."""

    labels: int
    group_size: int
    width: int
    clusters: int
    coarse: int
    each: int

    @property
    def levels(self) -> list[np.ndarray]:
        """int64 bounds [clusters + 1] of each level: cluster c is the labels from bounds[c] to bounds[c + 1]."""
        counts = [self.coarse, self.clusters] if self.coarse else [self.clusters]
        return [tree_bounds(self.labels, self.group_size, count) for count in counts]

    @property
    def groups_a_cluster(self) -> int:
        """Most groups that read the same local feature."""
        return -(-int(np.diff(self.levels[0]).max()) // self.group_size)

    def columns(self, first: int, groups: int) -> np.ndarray:
        """int64 [groups, N], ascending: the local columns that the groups from `first` on read."""
        labels, begin, found = np.arange(first, first + groups) * self.group_size, self.width, []
        for bounds in self.levels:
            cluster = np.searchsorted(bounds, labels, side="right") - 1
            found.append(begin + cluster[:, None] * self.each + np.arange(self.each))
            begin += (len(bounds) - 1) * self.each
        return np.concatenate(found, axis=1)


def local_features(
    local: Local, labels: int, group_size: int, width: int, fan_in: int, trained: bool
) -> tuple[int, int, int]:
    """(clusters, coarse ones, features of each) for so many tail labels; zeros where there shall be none. By themselves
    there are none below a frozen encoder (trained: false), where they take a third of the time and gain nothing."""
    groups = -(-labels // group_size)
    most = min(local.clusters, groups) if local.clusters != "auto" else min(AUTO_CLUSTERS, groups // LEAST_GROUPS)
    if local.clusters == "auto" and (group_size == 1 or 2 * fan_in > width or not trained):
        most = 0
    if most < 1 + (local.clusters == "auto"):
        return 0, 0, 0
    clusters = len(tree_bounds(labels, group_size, most)) - 1
    reads = min(fan_in, MOST_FEATURES)
    if clusters < 2 * COARSER or reads == 1:
        return clusters, 0, reads
    return clusters, len(tree_bounds(labels, group_size, clusters // COARSER)) - 1, reads // 2
