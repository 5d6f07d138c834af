"""Sparse evolutionary training of the tail's connections (SET: Mocanu et al. 2018; RigL: Evci et al. 2020).

Now and then every group drops the connections with the smallest root-mean-square weight over its labels
and grows as many others, chosen at random or by gradient. New weights are zero. Features of clusters are trained
themselves and stay: dropping some of them cost 0.3 points of precision (docs/accuracy-experiments.md). Index rows stay
ascending and free of duplicates; optimizer state moves with its weight and starts at zero for a new one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from engine.config import Rewire
from engine.kernels.adamw8bit import QUANTIZATION_BLOCK, quantile_map
from engine.kernels.layer import LabelLayer, Positives
from engine.kernels.optimizers import new_state, row_quantum

# Of [groups, D] scores and [rows, F] weights at once, of which there are several copies.
BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 22}


@dataclass(frozen=True)
class GrowthBatch:
    """What RigL grows by: the loss gradient of one batch. x_BD: features, and words, of any float dtype."""

    backend: ModuleType
    x_BD: Tensor
    positives: Positives
    loss: str


def rewires_at(step: int, total: int, rewire: Rewire) -> bool:
    """Whether the connections change after `step` (counted from 1) of `total`."""
    return rewire.method != "none" and step % rewire.interval == 0 and step < rewire.stop_at * total


def replaced_share(step: int, total: int, rewire: Rewire) -> float:
    """Share of the connections to replace: `fraction`, cosine-decayed to 0 at `stop_at`."""
    return rewire.fraction * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / (rewire.stop_at * total))))


def rewire_layer(
    layer: LabelLayer,
    width: int,
    share: float,
    generator: torch.Generator,
    gradient: GrowthBatch | None = None,
    local: int = 0,
) -> int:
    """Replaces that share of every group's connections to the D features, rounded, in place; returns how many.

    width: D. gradient: a batch makes growth follow its gradient, None makes it random. local: connections of a group
    to features of its clusters, which are trained and stay. A group can at most grow the features that it does not
    read. Words stay as they are: see engine.model.word_choice.
    """
    count = min(round(share * (layer.features - local)), width - layer.features)
    if layer.index is None or count <= 0:
        return 0
    at_once = _groups_at_once(layer, width)
    for first, scores_KD in _growth_scores(layer, width, at_once, generator, gradient):
        for start in range(0, len(scores_KD), at_once):
            _rewire_groups(layer, first + start, scores_KD[start : start + at_once], count)
    return count


def narrow_layer(layer: LabelLayer, fan_in: int, optimizer: str) -> None:
    """Keeps the strongest `fan_in` features of every group, and its words, in place; 8-bit moments start again.

    The weights are moved together within their own memory, a block of groups at a time, and go by way of the host,
    so that the device never holds both the wider and the narrower ones.
    """
    groups, device = layer.index.shape[0], layer.weight.device
    rows_at_once = max(1, BLOCK_ELEMENTS[device.type] // (layer.group_size * layer.fan_in)) * layer.group_size
    columns = fan_in + layer.words
    narrow = layer.weight.view(-1)[: layer.labels * columns].view(layer.labels, columns)
    index = layer.index.new_empty(groups, columns)
    words_W = torch.arange(layer.features, layer.fan_in, device=device)
    for first in range(0, layer.labels, rows_at_once):
        rows = slice(first, min(first + rows_at_once, layer.labels))
        some = slice(first // layer.group_size, -(-rows.stop // layer.group_size))
        weight = layer.weight[rows].float()
        group_of_row = torch.arange(len(weight), device=device) // layer.group_size
        energy_KF = torch.zeros(some.stop - some.start, layer.fan_in, device=device)
        energy_KF.index_add_(0, group_of_row, weight.square())
        kept_KF = energy_KF[:, : layer.features].topk(fan_in, dim=1).indices.sort(dim=1).values
        kept_KF = torch.cat([kept_KF, words_W.expand(len(kept_KF), -1)], dim=1)
        index[some] = layer.index[some].long().gather(1, kept_KF).to(index.dtype)
        narrow[rows] = weight.gather(1, kept_KF[group_of_row]).to(narrow.dtype)
    on_host = narrow.to("cpu", copy=True)
    layer.index = index
    layer.weight = layer.weight.new_empty(0)
    del narrow
    layer.weight = on_host.to(device)
    if optimizer == "adamw8bit":
        layer.state = new_state(optimizer, layer.weight, layer.words)


def _quantum(layer: LabelLayer) -> int:
    """Rows whose moments can be moved by themselves."""
    return row_quantum("adamw8bit" if "moment1" in layer.state else "rowwise", layer.group_size, layer.fan_in)


def _groups_at_once(layer: LabelLayer, width: int) -> int:
    quantum = _quantum(layer) // layer.group_size
    floats_a_group = max(width, layer.group_size * layer.fan_in)
    return max(1, BLOCK_ELEMENTS[layer.weight.device.type] // floats_a_group // quantum) * quantum


def _growth_scores(
    layer: LabelLayer, width: int, at_once: int, generator: torch.Generator, gradient: GrowthBatch | None
) -> Iterator[tuple[int, Tensor]]:
    """Yields (first group, fp32 [K, D], larger is better); first is a multiple of the quantum's groups."""
    if gradient is not None:
        batch = (gradient.x_BD, gradient.positives, gradient.loss)
        yield from gradient.backend.gradient_energy(layer, *batch, _quantum(layer), width)
        return
    groups = layer.index.shape[0]
    for first in range(0, groups, at_once):
        size = (min(at_once, groups - first), width)
        yield first, torch.rand(size, generator=generator, device=generator.device)


def _rewire_groups(layer: LabelLayer, first: int, scores_KD: Tensor, count: int) -> None:
    (groups, width), fan_in, group = scores_KD.shape, layer.fan_in, layer.group_size
    rows = slice(first * group, min((first + groups) * group, layer.labels))
    index_KF = layer.index[first : first + groups].long()
    weight = layer.weight[rows].float()

    # A last group may be short: the mean over its rows is still the mean over its labels.
    group_of_row = torch.arange(weight.shape[0], device=weight.device) // group
    energy_KF = torch.zeros(groups, fan_in, device=weight.device).index_add_(0, group_of_row, weight.square())
    stays_KF = index_KF >= width  # features of clusters, and words
    dropped = energy_KF.masked_fill_(stays_KF, torch.inf).topk(count, dim=1, largest=False, sorted=True).indices

    taken = torch.zeros(groups, width + 1, dtype=torch.bool, device=weight.device)
    taken.scatter_(1, index_KF.masked_fill(stays_KF, width), True)
    grown = scores_KD.masked_fill(taken[:, :width], -torch.inf).topk(count, dim=1).indices
    index_KF.scatter_(1, dropped, grown)
    is_new_KF = torch.zeros_like(index_KF, dtype=torch.bool).scatter_(1, dropped, True)

    index_KF, place_KF = index_KF.sort(dim=1)  # what stays keeps its place behind the D features
    layer.index[first : first + groups] = index_KF.to(layer.index.dtype)
    place_RF = place_KF[group_of_row]
    is_new_RF = is_new_KF[group_of_row]
    layer.weight[rows] = weight.masked_fill_(is_new_RF, 0.0).gather(1, place_RF).to(layer.weight.dtype)
    if "moment1" in layer.state:
        _move_moments(layer, rows, is_new_RF, place_RF)


def _move_moments(layer: LabelLayer, rows: slice, is_new_RF: Tensor, place_RF: Tensor) -> None:
    """Permutes the 8-bit moments of whole quantization blocks, by way of fp32."""
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    fan_in = layer.fan_in
    blocks = slice(rows.start * fan_in // QUANTIZATION_BLOCK, -(-rows.stop * fan_in // QUANTIZATION_BLOCK))
    for moment, absmax, signed in (("moment1", "absmax1", True), ("moment2", "absmax2", False)):
        code = quantile_map(signed, str(layer.weight.device))
        packed = layer.state[moment][rows].reshape(-1)
        scale = layer.state[absmax][blocks].clone()
        value = dequantize_blockwise(packed, absmax=scale, code=code, blocksize=QUANTIZATION_BLOCK)
        value = value.view(-1, fan_in).masked_fill_(is_new_RF, 0.0).gather(1, place_RF)
        packed, state = quantize_blockwise(value.view(-1).contiguous(), code=code, blocksize=QUANTIZATION_BLOCK)
        layer.state[moment][rows] = packed.view(-1, fan_in)
        layer.state[absmax][blocks] = state.absmax
