"""Features of a cluster's own: directions in which the texts of neighbouring labels differ.

A group that reads F of D features sees its texts in F dimensions that nobody chose for it. So clusters of neighbouring
groups get linear features of all D: the direction in which the texts of a cluster lie from all texts, and the principal
components of its texts (local PCA: Kambhatla & Leen 1997). Training goes on from there, with the encoder. They cost
what a small layer costs, however many labels there are.

Shape suffixes: B instances, D features, C clusters, N features of a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import coo_matrix
from torch import Tensor

from engine.model.local_layout import LocalLayout

LEAST_DISTANCE = 1e-6  # of a cluster's mean from that of all texts, so that it is a direction


def local_directions(
    features: Iterable[tuple[Tensor, np.ndarray, np.ndarray]], share_L: np.ndarray, layout: LocalLayout
) -> tuple[Tensor, Tensor]:
    """(weight fp32 [C N, D], bias fp32 [C N]) of the layer that computes the features, on the host.

    features: batches of (x_BD any float dtype, CSR offsets int64 [B + 1], labels int64 as places in the tail; negative
    ones are none of it) · share_L: fp32, what a text counts for a label of the tail.
    """
    width, clusters = layout.width, layout.clusters
    total_D, texts = torch.zeros(width, dtype=torch.float64), 0
    sum_CD, square_CDD, weight_C = None, None, torch.zeros(clusters, dtype=torch.float64)
    bounds = layout.bounds
    for x_BD, offsets, places in features:
        x_BD = x_BD.float()
        if square_CDD is None:
            sum_CD = torch.zeros(clusters, width, device=x_BD.device)
            square_CDD = torch.zeros(clusters, width, width, device=x_BD.device)
        total_D += x_BD.sum(0).double().cpu()
        texts += len(x_BD)
        for cluster, rows, share in _by_cluster(offsets, places, share_L, bounds):
            own_RD = x_BD[torch.from_numpy(rows).to(x_BD.device)]
            weighted_RD = own_RD * torch.from_numpy(share).to(x_BD.device)[:, None]
            sum_CD[cluster] += weighted_RD.sum(0)
            square_CDD[cluster].addmm_(own_RD.T, weighted_RD)
            weight_C[cluster] += float(share.sum())
    mean_D = total_D / max(1, texts)
    weight, bias = torch.zeros(clusters, layout.each, width), torch.zeros(clusters, layout.each)
    for cluster in range(clusters):
        count = float(weight_C[cluster])
        own_D = sum_CD[cluster].double().cpu() / count if count else mean_D
        second_DD = square_CDD[cluster].double().cpu() / max(count, 1e-12)
        covariance_DD = second_DD - own_D[:, None] * own_D * (count > 0)
        weight[cluster], bias[cluster] = _directions(mean_D, own_D, covariance_DD, layout.each)
    return weight.flatten(0, 1), bias.flatten()


def _by_cluster(offsets: np.ndarray, places: np.ndarray, share_L: np.ndarray, bounds: np.ndarray):
    """Yields (cluster, rows of texts with a label of it, int64 ascending, what each counts, fp32)."""
    text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    own = places >= 0
    text, places = text[own], places[own]
    cluster = np.searchsorted(bounds, places, side="right") - 1
    counted = coo_matrix((share_L[places], (cluster, text)), shape=(len(bounds) - 1, len(offsets) - 1)).tocsr()
    counted.sort_indices()
    for number in np.flatnonzero(np.diff(counted.indptr)):
        span = slice(counted.indptr[number], counted.indptr[number + 1])
        yield int(number), counted.indices[span].astype(np.int64), counted.data[span].astype(np.float32)


def _directions(mean_D: Tensor, own_D: Tensor, covariance_DD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` orthogonal directions [N, D] of length 1, and the biases that centre them."""
    away_D = own_D - mean_D
    distance = torch.linalg.vector_norm(away_D)
    first_1D = away_D[None] / distance if distance > LEAST_DISTANCE else away_D.new_zeros(0, len(away_D))
    across_DD = torch.eye(len(away_D), dtype=torch.float64) - first_1D.T @ first_1D
    components_DD = torch.linalg.eigh(across_DD @ covariance_DD @ across_DD).eigenvectors.flip(1)
    rest_ND = components_DD.T[: count - len(first_1D)]
    directions_ND = torch.cat([first_1D, rest_ND])
    bias_N = -torch.cat([first_1D @ mean_D, rest_ND @ own_D])
    return directions_ND.float(), bias_N.float()
