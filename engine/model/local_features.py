"""Features of a cluster's own: directions in which the texts of neighbouring labels differ.

A group that reads F of D features sees its texts in F dimensions that nobody chose for it. So clusters of neighbouring
labels get linear features of all D: those in which the mean texts of their labels differ most, measured by how much
texts differ anyway (linear discriminant analysis: Fisher 1936, Rao 1948). A fine cluster's are sought among the
directions that its coarse one does not have. Training goes on from there, with the encoder. They cost what a small
layer costs, however many labels there are.

Shape suffixes: B instances, D features, S labels of a sample, N features of a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from engine.model.local_layout import LocalLayout

MEANS = 1 << 23  # numbers in the mean texts of labels; where these were more, an even sample of the labels has to do
RIDGE = 1.0  # of the mean variance of a feature, added to that of all: the smallest variances are noise


def local_directions(
    features: Iterable[tuple[Tensor, np.ndarray, np.ndarray]], layout: LocalLayout
) -> tuple[Tensor, Tensor]:
    """(weight fp32 [C N, D], bias fp32 [C N]) of the layer that computes the features of C clusters, on the host.

    features: batches of (x_BD any float dtype, CSR offsets int64 [B + 1], labels int64 as places in the tail; negative
    ones are none of it).
    """
    sample_S = _sample(layout)
    sum_SD, texts_S = np.zeros((len(sample_S), layout.width), np.float32), np.zeros(len(sample_S))
    total_D, square_DD, texts = 0.0, 0.0, 0
    for x_BD, offsets, places in features:
        x_BD = x_BD.float()
        total_D, square_DD, texts = total_D + x_BD.sum(0), square_DD + x_BD.T @ x_BD, texts + len(x_BD)
        _add_texts(sum_SD, texts_S, sample_S, x_BD.cpu().numpy(), offsets, places)
    mean_D = total_D.double().cpu() / texts
    covariance_DD = square_DD.double().cpu() / texts - mean_D[:, None] * mean_D
    whitening_DD = _whitening(covariance_DD)
    sum_SD /= np.maximum(texts_S, 1)[:, None]
    away_SD = torch.from_numpy(sum_SD).sub_(mean_D.float()) @ whitening_DD.float()
    away_SD *= torch.from_numpy(texts_S**0.25).float()[:, None]  # a label counts with the root of its number of texts
    return _layer(away_SD, sample_S, whitening_DD, mean_D, layout)


def _layer(
    away_SD: Tensor, place_S: np.ndarray, whitening_DD: Tensor, mean_D: Tensor, layout: LocalLayout
) -> tuple[Tensor, Tensor]:
    """Weight and bias, from the whitened mean texts of labels at ascending places in the tail."""
    directions, above, begins = [], None, None
    for bounds in layout.levels:
        at, level = np.searchsorted(place_S, bounds), []
        for cluster, begin in enumerate(bounds[:-1]):
            parent = None if above is None else above[int(np.searchsorted(begins, begin, side="right")) - 1]
            level.append(_directions(away_SD[at[cluster] : at[cluster + 1]], parent, layout.each))
        directions += level
        above, begins = level, bounds
    weight_ND = torch.cat(directions) @ whitening_DD
    weight_ND /= torch.linalg.vector_norm(weight_ND, dim=1, keepdim=True)
    return weight_ND.float(), -(weight_ND @ mean_D).float()


def _directions(away_SD: Tensor, above_ND: Tensor | None, count: int) -> Tensor:
    """The `count` orthonormal directions [N, D], also orthogonal to those above, in which labels differ most."""
    scatter_DD = (away_SD.T @ away_SD).double()
    if above_ND is not None:
        across_DD = torch.eye(scatter_DD.shape[0], dtype=scatter_DD.dtype) - above_ND.T @ above_ND
        scatter_DD = across_DD @ scatter_DD @ across_DD
        # what stands above comes last, even where labels are so few that all else is 0, too
        scatter_DD -= above_ND.T @ above_ND
    return torch.linalg.eigh(scatter_DD).eigenvectors.flip(1).T[:count]


def _whitening(covariance_DD: Tensor) -> Tensor:
    """Its root, inverted, with the ridge."""
    variance_D, axes_DD = torch.linalg.eigh(covariance_DD)
    ridge = max(RIDGE * float(variance_D.mean()), 1e-12)
    return axes_DD * (variance_D.clamp(min=0.0) + ridge).rsqrt() @ axes_DD.T


def _sample(layout: LocalLayout) -> np.ndarray:
    """Ascending places in the tail, int64."""
    most = max(1, MEANS // layout.width)
    return np.arange(0, layout.labels, max(1, -(-layout.labels // most)))


def _add_texts(
    sum_SD: np.ndarray,
    texts_S: np.ndarray,
    sample_S: np.ndarray,
    x_BD: np.ndarray,
    offsets: np.ndarray,
    places: np.ndarray,
) -> None:
    """Adds every text to the labels of the sample that it has."""
    text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    row = np.minimum(np.searchsorted(sample_S, places), len(sample_S) - 1)
    own = sample_S[row] == places
    some, row = np.unique(row[own], return_inverse=True)
    has = csr_matrix((np.ones(len(row), np.float32), (row, text[own])), shape=(len(some), len(x_BD)))
    sum_SD[some] += has @ x_BD
    texts_S[some] += np.diff(has.indptr)
