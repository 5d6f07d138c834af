"""The three products of a block of classifier rows in plain torch: logits, weight gradient, input gradient.

Features and words are multiplied apart, each in the way that suits them. *Dense*: every row reads the same columns.
*Expanded*: rows are written out over all columns and multiplied densely; right for small groups (G = 1 above all) on
features that are not too wide, where gathering would move far more than the products cost. *Gathered*: every group
reads its own columns, batched products over groups; right for groups of many labels. Of words only those are multiplied
that a text of the batch has: the others are 0 in x, so that they change no logit and their weights do not move.

Shape suffixes beside those of engine.kernels.layer: X columns of x, C columns of a row that are read, P words that
texts of the batch have, with a row of zeros behind them, K groups of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from engine.kernels.layer import LabelLayer

BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 64 * 2**20}
# Gathering one feature for a batch costs about as much as this many multiply-adds of a dense product
# (measured on two AVX-512 cores: 40; on an H200 the same order).
GATHER_COST = 32
RUN = 32  # labels whose best logit is looked at first when the best labels of a dense layer are searched
SAMPLE = 64  # groups that are looked at to learn how many of their words a batch has


@dataclass(frozen=True)
class PresentWords:
    """The words that texts of a batch have. value_PB: rows of x, and one of zeros last · column_P: int64 [P - 1],
    where they are in x · place_X: int32, where a column of x is among them; at the zeros if no text has it."""

    value_PB: Tensor
    column_P: Tensor
    place_X: Tensor

    @classmethod
    def of(cls, x_XB: Tensor, features: int) -> PresentWords:
        """features: how many columns at least are none."""
        column_P = torch.linalg.vector_norm(x_XB[features:], 1, dim=1).nonzero()[:, 0] + features
        value_PB = torch.cat([x_XB.index_select(0, column_P), x_XB.new_zeros(1, x_XB.shape[1])])
        place_X = torch.full((len(x_XB),), len(column_P), dtype=torch.int32, device=x_XB.device)
        place_X[column_P] = torch.arange(len(column_P), dtype=torch.int32, device=x_XB.device)
        return cls(value_PB, column_P, place_X)

    def most_read(self, layer: LabelLayer) -> int:
        """How many of them a group, of some that are looked at, reads at the most."""
        if layer.index is None:
            return len(self.column_P)
        index_KW = layer.index[:: -(-len(layer.index) // SAMPLE), layer.features :].long()
        return int((self.place_X[index_KW] < len(self.column_P)).sum(dim=1).max())


@dataclass(frozen=True)
class Columns:
    """x of a batch as one layer reads it. x_XB: fp32, contiguous · reach: its features are among so many columns, and
    words are not · words: None where all are multiplied · words_read: how many a group may be expected to multiply."""

    x_XB: Tensor
    reach: int
    words: PresentWords | None
    words_read: int

    @classmethod
    def of(cls, x_BX: Tensor, layer: LabelLayer, moves_all: bool) -> Columns:
        """moves_all: whether weights move that have no gradient."""
        x_XB = x_BX.T.contiguous()
        reach = layer.features
        if layer.index is not None:
            reach = int(layer.index[:, layer.features - 1].long().max()) + 1
        # On a GPU every block of groups would wait for the device to say how many words they have.
        if not layer.words or moves_all or not (layer.index is None or x_XB.device.type == "cpu"):
            return cls(x_XB, reach, None, layer.words)
        words = PresentWords.of(x_XB, reach)
        return cls(x_XB, reach, words, words.most_read(layer))

    @property
    def batch(self) -> int:
        return self.x_XB.shape[1]


class Dense:
    """value_RC of rows that all read the columns x_CB. at: where the values lie in their rows, see LabelLayer.rows."""

    def __init__(self, value_RC: Tensor, at: slice | Tensor, x_CB: Tensor) -> None:
        self.value_RC, self.at, self.x_CB = value_RC, at, x_CB
        self.factor_RC = value_RC  # what x is multiplied with

    def logits(self) -> Tensor:
        """[R, B]"""
        return self.factor_RC @ self.x_CB

    def logits_in_runs(self, run: int) -> Tensor:
        """[R / N, B, N], zeros behind the last row."""
        logits_BR = self.x_CB.T @ self.factor_RC.T
        return _filled_up(logits_BR, run).view(len(logits_BR), -1, run).transpose(0, 1)

    def gradient(self, grad_RB: Tensor) -> Tensor:
        """[R, C]"""
        return grad_RB @ self.x_CB.T

    def add_input_gradient(self, grad_RB: Tensor, dx_DB: Tensor) -> None:
        """dx_DB += W^T grad"""
        dx_DB[: len(self.x_CB)].addmm_(self.factor_RC.T, grad_RB)


class Expanded(Dense):
    """value_RC of groups that read the columns index_KC of x_CB, with zeros at all others."""

    def __init__(self, value_RC: Tensor, at: slice | Tensor, index_KC: Tensor, x_CB: Tensor, group: int) -> None:
        super().__init__(value_RC, at, x_CB)
        self.index_RC = index_KC.repeat_interleave(group, dim=0)[: len(value_RC)]
        self.factor_RC = value_RC.new_zeros(len(value_RC), len(x_CB)).scatter_(1, self.index_RC, value_RC)

    def gradient(self, grad_RB: Tensor) -> Tensor:
        return super().gradient(grad_RB).gather(1, self.index_RC)


class Gathered:
    """value_RC of groups that read the columns index_KC of x_XB."""

    def __init__(self, value_RC: Tensor, at: slice | Tensor, index_KC: Tensor, x_XB: Tensor, group: int) -> None:
        self.value_RC, self.at, self.index_KC, self.group = value_RC, at, index_KC, group
        self.value_KGC = self._by_group(value_RC)
        self.x_KCB = x_XB.index_select(0, index_KC.view(-1)).view(*index_KC.shape, x_XB.shape[1])

    def logits(self) -> Tensor:
        return (self.value_KGC @ self.x_KCB).flatten(0, 1)[: len(self.value_RC)]

    def logits_in_runs(self, run: int) -> Tensor:
        return self.x_KCB.transpose(1, 2) @ self.value_KGC.transpose(1, 2)

    def gradient(self, grad_RB: Tensor) -> Tensor:
        return (self._by_group(grad_RB) @ self.x_KCB.transpose(1, 2)).flatten(0, 1)[: len(grad_RB)]

    def add_input_gradient(self, grad_RB: Tensor, dx_DB: Tensor) -> None:
        share_KCB = self.value_KGC.transpose(1, 2) @ self._by_group(grad_RB)
        dx_DB.index_add_(0, self.index_KC.view(-1), share_KCB.flatten(0, 1))

    def _by_group(self, rows: Tensor) -> Tensor:
        """[R, n] as [K, G, n], a last short group filled up with zeros."""
        missing = -len(rows) % self.group
        if missing:
            rows = nnf.pad(rows, (0, 0, 0, missing))
        return rows.reshape(len(rows) // self.group, self.group, rows.shape[1])


class Product:
    """The three products of the rows [first, last) of a layer. parts: by features and, if it reads any, by words."""

    def __init__(self, layer: LabelLayer, first: int, last: int, x: Columns) -> None:
        self.bias_R = layer.bias[first:last]
        self.run = RUN if layer.index is None else layer.group_size
        self.parts = [_by_features(layer, first, last, x)]
        if layer.words:
            self.parts.append(_by_words(layer, first, last, x))

    def logits(self) -> Tensor:
        """[R, B]"""
        logits_RB = self.parts[0].logits()
        for part in self.parts[1:]:
            logits_RB += part.logits()
        return logits_RB.add_(self.bias_R[:, None])

    def logits_in_runs(self) -> Tensor:
        """[C, B, N]: the R labels in C runs of N, the last filled up with -inf.

        The order in which a few instances are multiplied many times faster than in that of `logits`.
        """
        logits_CBN = self.parts[0].logits_in_runs(self.run)
        for part in self.parts[1:]:
            logits_CBN += part.logits_in_runs(self.run)
        return logits_CBN.add_(_filled_up(self.bias_R, self.run, -torch.inf).view(-1, 1, self.run))

    def gradients(self, grad_RB: Tensor) -> list[Tensor]:
        """[R, C] of each part"""
        return [part.gradient(grad_RB) for part in self.parts]

    def add_input_gradient(self, grad_RB: Tensor, dx_DB: Tensor) -> None:
        """dx_DB += W^T grad, of the features alone"""
        self.parts[0].add_input_gradient(grad_RB, dx_DB)


Part = Dense | Gathered


def block_rows(layer: LabelLayer, x: Columns, quantum: int) -> int:
    """How many rows at once, a multiple of `quantum` and of the group size, have no temporary above BLOCK_BYTES."""
    floats = max(layer.features + x.words_read, x.batch)
    if layer.index is not None:
        quantum = max(quantum, layer.group_size)
        floats = max(floats, x.words_read / layer.group_size * x.batch)
        if _expands(layer, x.reach):
            floats = max(floats, x.reach)
        elif layer.features < x.reach:
            floats = max(floats, layer.features / layer.group_size * x.batch)
    return max(quantum, int(BLOCK_BYTES[x.x_XB.device.type] / 4 / floats) // quantum * quantum)


def _by_features(layer: LabelLayer, first: int, last: int, x: Columns) -> Part:
    at = slice(0, layer.features)
    value_RC = layer.rows(first, last, at)
    if layer.index is None or layer.features == x.reach:  # ascending and distinct: all of them
        return Dense(value_RC, at, x.x_XB[: layer.features])
    index_KC = _index(layer, first, last, at)
    if _expands(layer, x.reach):
        return Expanded(value_RC, at, index_KC, x.x_XB[: x.reach], layer.group_size)
    return Gathered(value_RC, at, index_KC, x.x_XB, layer.group_size)


def _by_words(layer: LabelLayer, first: int, last: int, x: Columns) -> Part:
    at, words = slice(layer.features, None), x.words
    if layer.index is None:
        if words is None:
            return Dense(layer.rows(first, last, at), at, x.x_XB[at])
        return Dense(layer.rows(first, last, words.column_P), words.column_P, words.value_PB[:-1])
    index_KW = _index(layer, first, last, at)
    if words is None:
        return Gathered(layer.rows(first, last, at), at, index_KW, x.x_XB, layer.group_size)
    at_KC, place_KC = _present(words.place_X[index_KW], len(words.column_P))
    at_RC = (at_KC + layer.features).repeat_interleave(layer.group_size, dim=0)[: last - first]
    return Gathered(layer.rows(first, last, at_RC), at_RC, place_KC, words.value_PB, layer.group_size)


def _present(place_KW: Tensor, nowhere: int) -> tuple[Tensor, Tensor]:
    """Which of the W words of each group a batch has: (their columns among the W, their places), int64 [K, C].

    C are those of the group that has most. Others have a column that is `nowhere` in their stead, whose weight a
    gradient of 0 leaves as it is, as often as it takes.
    """
    is_here = place_KW < nowhere
    count_K = is_here.sum(dim=1)
    group, column = is_here.nonzero(as_tuple=True)
    slot = torch.arange(len(group), device=group.device) - (count_K.cumsum(0) - count_K)[group]
    at_KC = is_here.view(torch.uint8).argmin(dim=1)[:, None].repeat(1, int(count_K.max()))
    at_KC[group, slot] = column
    return at_KC, place_KW.gather(1, at_KC).long()


def _index(layer: LabelLayer, first: int, last: int, at: slice) -> Tensor:
    """Columns of x that the groups of these rows read, int64 [K, C]."""
    return layer.index[first // layer.group_size : -(-last // layer.group_size), at].long().contiguous()


def _expands(layer: LabelLayer, reach: int) -> bool:
    return layer.group_size * reach <= GATHER_COST * layer.features


def _filled_up(values: Tensor, multiple: int, value: float = 0.0) -> Tensor:
    """The last dimension filled up to a multiple."""
    missing = -values.shape[-1] % multiple
    return nnf.pad(values, (0, missing), value=value) if missing else values
