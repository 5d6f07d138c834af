"""Scores a classifier on rows of a split, streaming: one batch of texts, one block of labels at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.data.label_order import LabelOrder
from engine.data.label_sets import LabelSets
from engine.inference.filtering import extra_width, take_out
from engine.inference.metrics import Metrics
from engine.model.classifier import Classifier
from engine.model.features import FeatureModel, Inputs

EVALUATION_TOKENS = 8192  # tokens in a batch, so that evaluation needs little memory beside what training holds
WORD_TEXTS = 128  # whose words are written out at once


def top_labels(
    model: FeatureModel,
    classifier: Classifier,
    inputs: Inputs,
    k: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """(logits fp32 [B, k] descending, label-order ids int64 [B, k]) of texts, on the device of the inputs."""
    with autocast():
        x_BD = model(inputs)
    if model.words is None or len(x_BD) == 0:
        return classifier.topk(x_BD, k)
    found = []
    for first in range(0, len(x_BD), WORD_TEXTS):
        some = slice(first, first + WORD_TEXTS)
        found.append(classifier.topk(model.with_words(x_BD[some], tuple(part[some] for part in inputs)), k))
    values, ids = zip(*found, strict=True)
    return torch.cat(values), torch.cat(ids)


@dataclass(frozen=True)
class Found:
    """The best labels of a batch. rows: int64 [B] · label_BK: int64, best first, -1 = none · logit_BK: fp32."""

    rows: np.ndarray
    label_BK: np.ndarray
    logit_BK: np.ndarray


@dataclass(frozen=True)
class Ranker:
    """All that gives a row of a split its labels. inputs: what the model reads of rows · pairs: reciprocal filter of
    the split, if it has one."""

    model: FeatureModel
    classifier: Classifier
    order: LabelOrder
    inputs: Callable[[np.ndarray], Inputs]
    device: torch.device | str
    pairs: LabelSets | None = None
    autocast: Callable[[], AbstractContextManager] = nullcontext

    @torch.no_grad()
    def best_labels(self, batches: Iterable[np.ndarray], k: int) -> Iterator[Found]:
        """The k best labels of the rows in `batches` (int64), those filtered out left out; fewer where there are fewer.

        A batch that does not fit the memory, because another program has taken some, is halved.
        """
        was_training = self.model.training
        self.model.eval()
        waiting = iter(batches)
        halves: list[np.ndarray] = []  # of batches that did not fit
        try:
            while (rows := halves.pop() if halves else next(waiting, None)) is not None:
                try:
                    inputs = tuple(part.to(self.device) for part in self.inputs(rows))
                    wanted = k + extra_width(self.pairs, rows)
                    logit_BK, position_BK = top_labels(self.model, self.classifier, inputs, wanted, self.autocast)
                except torch.OutOfMemoryError:
                    if len(rows) == 1:
                        raise
                    halves += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
                    continue
                yield self._found(rows, self.order.label_at[position_BK.cpu().numpy()], logit_BK.cpu().numpy(), k)
        finally:
            self.model.train(was_training)

    def _found(self, rows: np.ndarray, label_BW: np.ndarray, logit_BW: np.ndarray, k: int) -> Found:
        if self.pairs is None:
            return Found(rows, label_BW, logit_BW)
        label_BK, place_BK = take_out(label_BW, self.pairs.select(rows), k)
        return Found(rows, label_BK, np.take_along_axis(logit_BW, place_BK, axis=1))


def evaluate_rows(
    ranker: Ranker,
    labels: LabelSets,
    batches: Iterable[np.ndarray],
    metrics: Metrics,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, float | int]:
    """Metrics over the rows in `batches` (int64 row numbers), whose true labels are `labels`; with a reciprocal filter
    also `filtered_pairs`, how many pairs it has for these rows. progress: rows of each batch done."""
    pairs = 0
    for found in ranker.best_labels(batches, max(metrics.k)):
        truth = labels.select(found.rows)
        metrics.update(found.label_BK, truth.offsets, truth.ids)
        if ranker.pairs is not None:
            pairs += len(ranker.pairs.select(found.rows).ids)
        progress(len(found.rows))
    return metrics.result() | ({} if ranker.pairs is None else {"filtered_pairs": pairs})
