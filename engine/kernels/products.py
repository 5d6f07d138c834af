"""The three products of a block of classifier rows in plain torch: logits, weight gradient, input gradient.

Features and words are multiplied apart, each in the way that suits them. *Dense*: every row reads the same columns.
*Expanded*: rows are written out over all features and multiplied densely; right for small groups (G = 1 above all) on
features that are not too wide, where gathering would move far more than the products cost. *Gathered*: every group
reads its own columns, batched products over groups; right for groups of many labels. Of words only those are multiplied
that a text of the batch has: the others are 0 in x, so that they change no logit and their weights do not move.

Shape suffixes beside those of engine.kernels.layer: X columns of x, C columns of a row that are read, H words that
texts of the batch have, K groups of a block, or runs of N of its labels.
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
UNFORESEEN = 4  # times BLOCK_BYTES at the most where a group has more of them than those that were looked at
GROUPS = 1 << 18  # whose indices are converted at once


@dataclass(frozen=True)
class PresentWords:
    """The words that texts of a batch have. value_HB: [H + 1, B], their columns of x and one of zeros · column_H:
    int64, which columns these are · place_X: int32, where a column of x is among the H; at the zeros if no text has it.
    """

    value_HB: Tensor
    column_H: Tensor
    place_X: Tensor

    @classmethod
    def of(cls, x_XB: Tensor, features: int) -> PresentWords:
        """features: the columns below this are no words."""
        column_H = torch.linalg.vector_norm(x_XB[features:], 1, dim=1).nonzero()[:, 0] + features
        value_HB = torch.cat([x_XB.index_select(0, column_H), x_XB.new_zeros(1, x_XB.shape[1])])
        place_X = torch.full((len(x_XB),), len(column_H), dtype=torch.int32, device=x_XB.device)
        place_X[column_H] = torch.arange(len(column_H), dtype=torch.int32, device=x_XB.device)
        return cls(value_HB, column_H, place_X)

    def most_read(self, layer: LabelLayer) -> int:
        """The most that any of some groups reads."""
        if layer.index is None:
            return len(self.column_H)
        index_KW = layer.index[:: -(-len(layer.index) // SAMPLE), layer.features :].long()
        return int((self.place_X[index_KW] < len(self.column_H)).sum(dim=1).max())


@dataclass(frozen=True)
class Columns:
    """x of a batch as one layer reads it. x_XB: fp32, contiguous · reach: the layer's features are columns below this,
    its words are not · words: None where all are multiplied · words_read: how many a group may be expected to multiply.
    """

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
            last_M = layer.index[:, layer.features - 1]
            reach = 1 + max(int(part.long().max()) for part in last_M.split(GROUPS))
        waits = layer.index is not None and x_XB.is_cuda  # every block, for the number of its words
        if not layer.words or moves_all or waits:
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
        self.factor_RX = value_RC  # what x is multiplied with

    def logits(self) -> Tensor:
        """[R, B]"""
        return self.factor_RX @ self.x_CB

    def logits_in_runs(self, run: int) -> Tensor:
        """[K, B, N]: so many runs of N rows, zeros behind the last."""
        logits_BR = _filled_up(self.x_CB.T @ self.factor_RX.T, run)
        return logits_BR.view(len(logits_BR), logits_BR.shape[1] // run, run).transpose(0, 1)

    def gradient(self, grad_RB: Tensor) -> Tensor:
        """[R, C]"""
        return grad_RB @ self.x_CB.T

    def add_input_gradient(self, grad_RB: Tensor, dx_DB: Tensor) -> None:
        """dx_DB += W^T grad"""
        dx_DB[: len(self.x_CB)].addmm_(self.factor_RX.T, grad_RB)


class Expanded(Dense):
    """value_RC of groups that read the columns index_KC of x_CB, with zeros at all others."""

    def __init__(self, value_RC: Tensor, at: slice | Tensor, index_KC: Tensor, x_CB: Tensor, group: int) -> None:
        super().__init__(value_RC, at, x_CB)
        self.index_RC = index_KC.repeat_interleave(group, dim=0)[: len(value_RC)]
        self.factor_RX = value_RC.new_zeros(len(value_RC), len(x_CB)).scatter_(1, self.index_RC, value_RC)

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
        """[K, B, N]: the R labels in K runs of N, the last filled up with -inf.

        The order in which a few instances are multiplied many times faster than in that of `logits`.
        """
        logits_KBN = self.parts[0].logits_in_runs(self.run)
        for part in self.parts[1:]:
            logits_KBN += part.logits_in_runs(self.run)
        logits_KBN += _filled_up(self.bias_R, self.run).view(-1, 1, self.run)
        if missing := -len(self.bias_R) % self.run:
            logits_KBN[-1, :, -missing:] = -torch.inf  # whatever x is
        return logits_KBN

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
        group = layer.group_size
        quantum = max(quantum, group)
        floats = max(floats, x.words_read / group * x.batch, layer.words / group * x.batch / UNFORESEEN)
        if _expands(layer, x.reach):
            floats = max(floats, x.reach, 2 * layer.features)
        elif layer.features < x.reach:
            floats = max(floats, layer.features / group * x.batch)
        if x.words is not None:  # where they are, int64
            floats = max(floats, 2 * layer.words / group, 2 * x.words_read)
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
        return Dense(layer.rows(first, last, words.column_H), words.column_H, words.value_HB[:-1])
    index_KW = _index(layer, first, last, at)
    if words is None:
        return Gathered(layer.rows(first, last, at), at, index_KW, x.x_XB, layer.group_size)
    at_KC, place_KC = _present(words.place_X[index_KW], len(words.column_H))
    at_RC = (at_KC + layer.features).repeat_interleave(layer.group_size, dim=0)[: last - first]
    return Gathered(layer.rows(first, last, at_RC), at_RC, place_KC, words.value_HB, layer.group_size)


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


def _filled_up(values: Tensor, multiple: int) -> Tensor:
    """The last dimension filled up with zeros to a multiple."""
    missing = -values.shape[-1] % multiple
    return nnf.pad(values, (0, missing)) if missing else values
