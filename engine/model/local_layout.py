"""Which clusters of labels have features of their own, and which columns these are; needs no torch.

Clusters are nodes of the tree that formed the groups. The columns of a cluster's features stand behind the D features
of the encoder, cluster by cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.config import Local
from engine.model.label_tree import tree_bounds

AUTO_CLUSTERS = 16  # with 64 features each and the words of a BERT, ids of columns have two bytes
LEAST_GROUPS = 4  # of a cluster, so that it is chosen by itself
MOST_FEATURES = 64  # of a cluster


@dataclass(frozen=True)
class LocalLayout:
    """Of `labels` tail labels in groups: clusters of them with `each` features, behind `width` others."""

    labels: int
    group_size: int
    width: int
    clusters: int
    each: int

    @property
    def bounds(self) -> np.ndarray:
        """int64 [clusters + 1]: cluster c is the labels from bounds[c] to bounds[c + 1]."""
        return tree_bounds(self.labels, self.group_size, self.clusters)

    @property
    def groups_a_cluster(self) -> int:
        """Most groups that a cluster has."""
        return -(-int(np.diff(self.bounds).max()) // self.group_size)

    def first_columns(self, first: int, groups: int) -> np.ndarray:
        """int64 [groups]: where the columns of their own cluster begin, of the groups from `first` on."""
        labels = np.arange(first, first + groups) * self.group_size
        return self.width + (np.searchsorted(self.bounds, labels, side="right") - 1) * self.each


def local_features(
    local: Local, labels: int, group_size: int, width: int, fan_in: int, trained: bool
) -> tuple[int, int]:
    """(clusters, features of each) for so many tail labels; zeros where there shall be none. By themselves there are
    none below a frozen encoder (trained: false), where they take a third of the time and gain nothing."""
    groups = -(-labels // group_size)
    most = min(local.clusters, groups) if local.clusters != "auto" else min(AUTO_CLUSTERS, groups // LEAST_GROUPS)
    if local.clusters == "auto" and (group_size == 1 or 2 * fan_in > width or not trained):
        most = 0
    if most < 1 + (local.clusters == "auto"):
        return 0, 0
    return len(tree_bounds(labels, group_size, most)) - 1, min(fan_in, MOST_FEATURES)
