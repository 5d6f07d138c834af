"""The tensors of the classifier that every backend works on, and what one step is told.

Shape suffixes: L labels, F fan-in, G labels a group, M = ceil(L / G) groups, D features, B instances,
R rows (labels) of one block, P positive (instance, label) pairs of a batch. What a batch is read from, x, has the D
features of the encoder first and behind them, where there are any, the words of the text: these get no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# e4m3 resolves nothing below 2**-9, classifier weights are around 0.02: fp8 rows are stored times 32.
FP8_SCALE = 32.0
FP8 = torch.float8_e4m3fn


@dataclass
class LabelLayer:
    """A run of consecutive labels (in label order) that share one layout: the dense head or the sparse tail.

    weight [L, F], any of fp32, bf16, fp16, fp8 (e4m3, stored times FP8_SCALE) · bias [L] fp32 ·
    index [M, F] uint16 or int32 (older files: int16), each row ascending and without duplicates, or None: F = D, every
    feature.
    Row l reads the columns index[l // group_size] of x, of which the last `words` are words. `start` is the label-order
    id of row 0, `state` the optimizer's tensors, `readers` the most groups in a row that may all read the same
    features (0: what they read is spread evenly).
    """

    weight: Tensor
    bias: Tensor
    index: Tensor | None
    group_size: int
    start: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    words: int = 0
    readers: int = 0

    @property
    def features(self) -> int:
        """How many of the F columns read features of the encoder: the first ones."""
        return self.fan_in - self.words

    @property
    def reads_all(self) -> bool:
        """Whether its labels read every word there is."""
        return self.index is None and self.words > 0

    @property
    def labels(self) -> int:
        return self.weight.shape[0]

    @property
    def fan_in(self) -> int:
        return self.weight.shape[1]

    @property
    def scale(self) -> float:
        """Factor between a stored weight and its value."""
        return FP8_SCALE if self.weight.dtype == FP8 else 1.0

    def rows(self, first: int, last: int, at: slice | Tensor = slice(None)) -> Tensor:
        """Values of the rows [first, last) in fp32, [R, C]; of fp32 weights and a slice a view.

        at: which of the F columns: a slice, int64 [C] for all rows, or int64 [R, C], each row's own.
        """
        stored = self.weight[first:last]
        if isinstance(at, slice):
            stored = stored[:, at]
        else:
            plain = _movable(stored)
            picked = plain.index_select(1, at) if at.ndim == 1 else plain.gather(1, at)
            stored = picked.view(stored.dtype)
        if stored.dtype != FP8:
            return stored.float()
        return decode_fp8(stored).mul_(1 / FP8_SCALE)

    def put(self, first: int, last: int, at: slice | Tensor, stored_RC: Tensor) -> None:
        """The reverse of `rows`, of weights as they are stored. Where a row has a column twice, both are the same."""
        rows = self.weight[first:last]
        if isinstance(at, slice):
            rows[:, at] = stored_RC
        elif at.ndim == 1:
            _movable(rows).index_copy_(1, at, _movable(stored_RC))
        else:
            _movable(rows).scatter_(1, at, _movable(stored_RC))

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds of this layer, by name."""
        named = {"weight": self.weight, "bias": self.bias, **{f"state.{k}": v for k, v in self.state.items()}}
        return named if self.index is None else {**named, "index": self.index}


def _movable(stored: Tensor) -> Tensor:
    """Bytes for fp8, whose elements torch does not pick."""
    return stored.view(torch.int8) if stored.element_size() == 1 else stored


def decode_fp8(stored: Tensor) -> Tensor:
    """`stored.float()` of e4m3 numbers; on a CPU many times faster than torch's own conversion.

    Sign, exponent and mantissa are moved to their places in a half-precision number, whose exponent is biased by 8
    more. That makes 480 of what stands for NaN (a code of seven ones), so blocks with one go the slow way.
    """
    codes = stored.view(torch.int8)
    if stored.is_cuda or stored.numel() == 0 or codes.max() == 127 or codes.view(torch.uint8).max() == 255:
        return stored.float()
    halves = codes.to(torch.int16).mul_(128).bitwise_and_(~0x4000)
    return halves.view(torch.float16).float().mul_(256.0)


@dataclass(frozen=True)
class Positives:
    """The (label, instance) pairs of a batch, ascending by label.

    label, instance: int64 [P] on the device of the step, labels as label-order ids; host_label: the same
    labels as numpy int64, so that finding a block's pairs costs no device synchronisation.
    """

    label: Tensor
    instance: Tensor
    host_label: np.ndarray

    @classmethod
    def from_rows(cls, offsets: np.ndarray, label: np.ndarray, device: torch.device | str = "cpu") -> Positives:
        """From CSR rows: offsets int64 [B + 1], label-order ids [P]."""
        instance = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
        label = np.asarray(label, dtype=np.int64)
        order = np.argsort(label, kind="stable")
        label, instance = label[order], instance[order]
        return cls(torch.from_numpy(label).to(device), torch.from_numpy(instance).to(device), label)

    def between(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """(label - first, instance) of the pairs with first <= label < last, int64."""
        low, high = np.searchsorted(self.host_label, (first, last))
        return self.label[low:high] - first, self.instance[low:high]


@dataclass(frozen=True)
class StepOptions:
    """What one classifier step does with its gradient. `step` counts from 1; `seed` feeds stochastic rounding.

    word_learning_rate: of the columns that read words (with adamw8bit they move at learning_rate) · wants_dx: False
    where nothing below the classifier trains; a backend may then leave dx as it is.
    """

    loss: str = "bce"
    optimizer: str = "rowwise"
    learning_rate: float = 5e-3
    word_learning_rate: float = 3e-2
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    step: int = 1
    seed: int = 0
    loss_weight: float = 1.0
    want_loss: bool = False
    wants_dx: bool = True
    deterministic: bool = False
