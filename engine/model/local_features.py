"""Features of a cluster's own: directions in which the texts of neighbouring labels differ.

A group that reads F of D features sees its texts in F dimensions that nobody chose for it. So clusters of neighbouring
labels get linear features of all D: those in which the mean texts of their labels differ most, measured by how much
texts differ anyway (linear discriminant analysis: Fisher 1936, Rao 1948). A fine cluster's are sought among the
directions that its coarse one does not have. Training goes on from there, with the encoder. They cost what a small
layer costs, however many labels there are.

Shape suffixes: B instances, D features, S labels of a sample, N features of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from engine.model.local_layout import LocalLayout

MEANS = 1 << 24  # numbers in the mean texts of labels; where these were more, an even sample of the labels has to do
RIDGE = 1.0  # of the mean variance of a feature, added to that of all: the smallest variances are noise


class MeanTexts:
    """The mean text of every label of a sample, and how texts differ: what `local_directions` are made of.

    label_S: int32, ascending, the sample's labels · sum_SD fp32, texts_S fp64: their texts, added up and counted, on
    the host · total_D, square_DD: fp32, sum and scatter of all texts, on the features' device · texts: how many.
    """

    def __init__(self, labels: np.ndarray, width: int) -> None:
        """labels: int32, ascending, at least one, all that may be sampled · width: D."""
        self.label_S = labels[:: max(1, -(-len(labels) * width // MEANS))].copy()
        self.sum_SD, self.texts_S = np.zeros((len(self.label_S), width), np.float32), np.zeros(len(self.label_S))
        self.total_D, self.square_DD, self.texts = torch.zeros(width), torch.zeros(width, width), 0

    def add(self, x_BD: Tensor, offsets: np.ndarray, ids: np.ndarray) -> None:
        """Further texts. x_BD: any float dtype · offsets int64 [B + 1], ids int32: their labels, as CSR; those that are
        not of the sample are left out."""
        x_BD = x_BD.float()
        self.total_D, self.square_DD = self.total_D.to(x_BD.device), self.square_DD.to(x_BD.device)
        self.total_D += x_BD.sum(0)
        self.square_DD += x_BD.T @ x_BD
        self.texts += len(x_BD)
        text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        row = np.minimum(np.searchsorted(self.label_S, ids), len(self.label_S) - 1)
        own = self.label_S[row] == ids
        some, row = np.unique(row[own], return_inverse=True)
        has = csr_matrix((np.ones(len(row), np.float32), (row, text[own])), shape=(len(some), len(x_BD)))
        self.sum_SD[some] += has @ x_BD.cpu().numpy()
        self.texts_S[some] += np.diff(has.indptr)


def local_directions(
    means: MeanTexts, layout: LocalLayout, place_S: np.ndarray, update: Callable[[int, int], None] = lambda *_: None
) -> tuple[Tensor, Tensor]:
    """(weight fp32 [C N, D], bias fp32 [C N]) of the layer that computes the features of C clusters, on the host.

    place_S: int64, where in the tail each of the means' labels is · update: told how many clusters are done, of how
    many. The sums of the means are changed and cannot be used again.
    """
    mean_D = means.total_D.double().cpu() / means.texts
    covariance_DD = means.square_DD.double().cpu() / means.texts - mean_D[:, None] * mean_D
    by_place = np.argsort(place_S)
    away_SD, texts_S = torch.from_numpy(means.sum_SD), means.texts_S
    away_SD /= torch.from_numpy(np.maximum(texts_S, 1)).float()[:, None]
    away_SD -= mean_D.float()
    whitening_DD = _whitening(covariance_DD)
    away_SD = away_SD @ whitening_DD.float()
    away_SD *= torch.from_numpy(texts_S**0.25).float()[:, None]  # a label counts with the root of its number of texts
    return _layer(away_SD[by_place], place_S[by_place], whitening_DD, mean_D, layout, update)


def _layer(
    away_SD: Tensor,
    place_S: np.ndarray,
    whitening_DD: Tensor,
    mean_D: Tensor,
    layout: LocalLayout,
    update: Callable[[int, int], None],
) -> tuple[Tensor, Tensor]:
    """Weight and bias, from the whitened mean texts of labels at ascending places in the tail."""
    clusters, done = sum(len(bounds) - 1 for bounds in layout.levels), 0
    weight_ND, bias_N = torch.empty(clusters * layout.each, layout.width), torch.empty(clusters * layout.each)
    above, begins = None, None
    for bounds in layout.levels:
        at, level = np.searchsorted(place_S, bounds), []
        for cluster, begin in enumerate(bounds[:-1]):
            parent = None if above is None else above[int(np.searchsorted(begins, begin, side="right")) - 1]
            level.append(_directions(away_SD[at[cluster] : at[cluster + 1]], parent, layout.each))
            own_ND = level[-1] @ whitening_DD
            own_ND /= torch.linalg.vector_norm(own_ND, dim=1, keepdim=True)
            rows = slice(done * layout.each, (done + 1) * layout.each)
            weight_ND[rows], bias_N[rows] = own_ND.float(), -(own_ND @ mean_D).float()
            done += 1
            update(done, clusters)
        above, begins = level, bounds
    return weight_ND, bias_N


def _directions(away_SD: Tensor, above_ND: Tensor | None, count: int) -> Tensor:
    """The `count` orthonormal directions [N, D], also orthogonal to those above, in which labels differ most."""
    scatter_DD = (away_SD.T @ away_SD).double()
    if above_ND is not None:
        scatter_DD -= above_ND.T @ (above_ND @ scatter_DD)
        scatter_DD -= (scatter_DD @ above_ND.T) @ above_ND
        # what stands above comes last, even where labels are so few that all else is 0, too
        scatter_DD -= above_ND.T @ above_ND
    with one_thread():
        axes_DD = torch.linalg.eigh(scatter_DD).eigenvectors
    return axes_DD[:, -count:].flip(1).T.contiguous()  # not a view, which would keep all of them


def _whitening(covariance_DD: Tensor) -> Tensor:
    """Its root, inverted, with the ridge."""
    with one_thread():
        variance_D, axes_DD = torch.linalg.eigh(covariance_DD)
    ridge = max(RIDGE * float(variance_D.mean()), 1e-12)
    return axes_DD * (variance_D.clamp(min=0.0) + ridge).rsqrt() @ axes_DD.T


@contextmanager
def one_thread() -> Iterator[None]:
    """LAPACK's eigenvectors of so small matrices are as fast on one thread, and on several each waits for the others in
    every column: beside another busy program two threads on two cores take 200 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
