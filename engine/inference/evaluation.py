"""Scores a classifier on rows of a split, streaming: one batch of texts, one block of labels at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from engine.data.label_order import LabelOrder
from engine.data.label_sets import LabelSets
from engine.inference.metrics import Metrics
from engine.model.classifier import Classifier
from engine.model.features import FeatureModel, Inputs

EVALUATION_TOKENS = 8192  # tokens in a batch, so that evaluation never needs more memory than training


@torch.no_grad()
def evaluate_rows(
    model: FeatureModel,
    classifier: Classifier,
    order: LabelOrder,
    inputs: Callable[[np.ndarray], Inputs],
    labels: LabelSets,
    batches: Iterable[np.ndarray],
    metrics: Metrics,
    *,
    device: torch.device | str,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, float]:
    """Metrics over the rows in `batches` (int64 row numbers). progress: rows of each batch done.

    A batch that does not fit the memory, because another program has taken some, is halved.
    """
    was_training = model.training
    model.eval()
    width = max(metrics.k)
    waiting = iter(batches)
    halves: list[np.ndarray] = []  # of batches that did not fit
    while True:
        rows = halves.pop() if halves else next(waiting, None)
        if rows is None:
            break
        try:
            with autocast():
                x_BD = model(tuple(part.to(device) for part in inputs(rows)))
            _, position_BK = classifier.topk(x_BD, width)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            halves += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
            continue
        truth = labels.select(rows)
        metrics.update(order.label_at[position_BK.cpu().numpy()], truth.offsets, truth.ids)
        progress(len(rows))
    model.train(was_training)
    return metrics.result()
