"""What changes in the course of a training, and what depends on how long it is.

Encoder, adapter, intermediate layer and classifier share the schedule of their learning rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.config import RunConfig
from engine.model.classifier import ClassifierShape

FLOOR = 0.01  # share of the peak that is left at the end
RATE = 3e-3  # of the classifier
FEW, FEW_FACTOR = 4, 2.0  # times RATE, where labels read a quarter of the features or fewer, and nothing beside them
RATE_EPOCHS, RATE_STEPS = 4, 1500  # in a training as short as either it stays so


@dataclass(frozen=True)
class Length:
    """Of a training: how many steps it takes in all, and how many are an epoch."""

    steps: int
    steps_an_epoch: int

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_an_epoch


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor of the peak rate at `step` (counted from 1) of `total`: linear warm-up, then cosine to FLOOR.

    The warm-up takes at most a tenth of a short training.
    """
    warmup = min(warmup, total // 10)
    if step <= warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def classifier_rate(config: RunConfig, length: Length, shape: ClassifierShape) -> float:
    """Peak learning rate of a label that reads 64 features; meta-labels, which read no words, have the same.

    By itself RATE; where labels read words and need their features less, sqrt(RATE_EPOCHS / epochs) times that from
    RATE_EPOCHS on: texts that come again and again are learned by heart, the sooner the higher it is. But steps times
    the rate are never less than RATE_STEPS times RATE. Where those that are no head labels read 1 / FEW of the features
    or fewer, and none reads words or local features, it is FEW_FACTOR times RATE, for head labels, too
    (docs/accuracy.md).
    """
    if config.classifier.learning_rate != "auto":
        return config.classifier.learning_rate
    if shape.vocabulary:
        return RATE * min(1.0, max(math.sqrt(RATE_EPOCHS / length.epochs), RATE_STEPS / length.steps))
    few = shape.head < shape.labels and FEW * shape.fan_in <= shape.width
    return FEW_FACTOR * RATE if few and not shape.local else RATE


def texts_without_words(config: RunConfig, length: Length) -> float:
    """Share of a batch's texts that come without words, at the peak of the learning rates.

    A word that a single text has names the labels of this text by itself, and the encoder learns little from it
    (docs/accuracy.md) once the classifier has seen it: 0.1 for each time that a text comes again. Where the encoder is
    frozen there are none, also if an adapter or an intermediate layer is trained.
    """
    if config.words.dropout != "auto":
        return config.words.dropout
    return min(0.3, 0.1 * max(0.0, length.epochs - 1)) if config.encoder.trainable == "all" else 0.0
