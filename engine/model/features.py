"""From rows of a dataset to the features that the classifier reads.

Either tokens go through a trainable encoder at every step, or a frozen encoder's features were computed
once and are read from a memory-mapped file. Everything above this module sees the same two calls:
`inputs(rows)` on a loader thread, `model(inputs)` on the device.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from engine.data.joined import JoinedRows
from engine.model.encoder import FeatureHead, TextEncoder
from engine.model.words import Words
from engine.turns import ProcessLock

FEATURE_BATCH_TOKENS = 4096  # tokens in a batch of the frozen encoder's pass
FEATURE_LENGTHS = 4  # padded to a multiple, at most to the longest text: for every shape oneDNN keeps 0.3 MiB
FLUSH_BATCHES = 50
MEAN_ROWS = 8192


class Tokens(Protocol):
    """What is used of engine.data.tokens.RaggedTokens."""

    def __len__(self) -> int: ...
    def lengths(self) -> np.ndarray: ...
    def pad(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]: ...


Inputs = tuple[Tensor, ...]
Lengths = TypeVar("Lengths", int, np.ndarray)


@dataclass(frozen=True)
class TokenInputs:
    """Rows as (input_ids, attention_mask), int64 [B, T]. T: the longest one's length, or what `length` makes of it."""

    tokens: Tokens
    pad_id: int
    length: Callable[[int], int] | None = None

    def __call__(self, rows: np.ndarray) -> Inputs:
        ids, mask = self.tokens.pad(rows, self.pad_id)
        if self.length is not None and (more := self.length(ids.shape[1]) - ids.shape[1]):
            ids, mask = (
                np.pad(part, ((0, 0), (0, more)), constant_values=v) for part, v in ((ids, self.pad_id), (mask, 0))
            )
        return torch.from_numpy(ids), torch.from_numpy(mask)


@dataclass(frozen=True)
class FeatureInputs:
    """Rows as (features,), fp32 [B, D], from a cache fp16 [N, D]; where words are read as (features, input_ids)."""

    features: np.ndarray | JoinedRows
    tokens: TokenInputs | None = None

    def __call__(self, rows: np.ndarray) -> Inputs:
        features = torch.from_numpy(self.features[rows]).float()
        return (features,) if self.tokens is None else (features, self.tokens(rows)[0])


class FeatureModel(nn.Module):
    """Everything below the classifier. `encoder` is None where features are cached."""

    def __init__(self, encoder: TextEncoder | None, head: FeatureHead, words: Words | None = None) -> None:
        super().__init__()
        self.encoder, self.head, self.words = encoder, head, words

    def encode(self, inputs: Inputs) -> Tensor:
        """Features of the encoder, fp32 [B, D of the encoder]."""
        return inputs[0] if self.encoder is None else self.encoder(*inputs)

    def forward(self, inputs: Inputs) -> Tensor:
        """Features that the classifier reads, fp32: [B, D], local ones behind them."""
        return self.head(self.encode(inputs))

    def with_words(self, x_BD: Tensor, inputs: Inputs, without_B: Tensor | None = None) -> Tensor:
        """All that the classifier reads of a batch: its features, and the words of the texts where these are read, but
        for those in without_B, bool."""
        if self.words is None:
            return x_BD
        return self.words.beside(x_BD, inputs[0] if self.encoder is not None else inputs[1], without_B)


def by_length(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """All rows, longest first, in batches of about `batch_tokens` tokens; int64 row numbers."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


@torch.inference_mode()
def cached_features(
    encoder: TextEncoder,
    inputs: TokenInputs,
    file: Path,
    device: torch.device | str,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """The encoder's features of every row, fp16 [N, D], memory-mapped from `file`; computed if it is not there.

    `file` names what the features depend on. A pass that is interrupted (`progress` may raise) goes on from
    its last flush when called again; where another process computes them, they are waited for. progress: (rows done,
    rows in all).
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with ProcessLock(file.with_suffix(".lock")) as lock:
            lock.take_when_free(lambda: progress(0, len(inputs.tokens)))
            if not file.is_file():
                _compute(encoder, inputs, file, device, progress)
    return np.load(file, mmap_mode="r")


def _compute(
    encoder: TextEncoder,
    inputs: TokenInputs,
    file: Path,
    device: torch.device | str,
    progress: Callable[[int, int], None],
) -> None:
    lengths = inputs.tokens.lengths()
    total, longest = len(lengths), int(lengths.max(initial=1))
    inputs = replace(inputs, length=lambda tokens: min(_rounded(tokens), longest))
    partial, mark = file.with_suffix(".partial.npy"), file.with_suffix(".partial.json")
    done, out = _reopen(partial, mark, (total, encoder.width))
    encoder.to(device)
    finished = 0
    for number, rows in enumerate(by_length(_rounded(lengths), FEATURE_BATCH_TOKENS)):
        finished += len(rows)
        if number < done:
            continue
        progress(finished - len(rows), total)
        features = encoder(*(part.to(device) for part in inputs(rows)))
        out[rows] = features.half().cpu().numpy()
        if (number + 1) % FLUSH_BATCHES == 0:
            _flush(out, mark, number + 1)
    progress(total, total)
    out.flush()
    del out
    os.replace(partial, file)
    mark.unlink(missing_ok=True)


def _rounded(lengths: Lengths) -> Lengths:
    """Lengths in tokens, rounded up to a multiple of FEATURE_LENGTHS."""
    return -(-lengths // FEATURE_LENGTHS) * FEATURE_LENGTHS


def _cut() -> list[int]:
    """What the batches of a split depend on."""
    return [FEATURE_BATCH_TOKENS, FEATURE_LENGTHS]


def mean_feature(features: np.ndarray, rows: np.ndarray) -> Tensor:
    """Mean over `rows` (int64) of cached features fp16 [N, D]: fp32 [D]. Streams."""
    total = np.zeros(features.shape[1])
    for start in range(0, len(rows), MEAN_ROWS):
        total += features[rows[start : start + MEAN_ROWS]].sum(axis=0, dtype=np.float64)
    return torch.from_numpy((total / max(1, len(rows))).astype(np.float32))


def _reopen(partial: Path, mark: Path, shape: tuple[int, int]) -> tuple[int, np.ndarray]:
    """(batches already done, writable fp16 memory map)"""
    try:
        found = json.loads(mark.read_text())
        out = np.lib.format.open_memmap(partial, mode="r+")
        if out.shape == shape and out.dtype == np.float16 and found["cut"] == _cut():
            return int(found["batches"]), out
    except (OSError, ValueError, KeyError):
        pass  # nothing to go on from
    mark.unlink(missing_ok=True)
    return 0, np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)


def _flush(out: np.memmap, mark: Path, batches: int) -> None:
    out.flush()
    temporary = mark.with_suffix(".tmp")
    temporary.write_text(json.dumps({"batches": batches, "cut": _cut()}))
    os.replace(temporary, mark)
