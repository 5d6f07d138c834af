"""The problems that are measured: label count, encoder, batch and sparsity of known data sets, by name.

Facts only; nothing here needs torch. Label counts are those of the public data sets.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ConfigError
from engine.planning.encoders import ENCODERS


@dataclass(frozen=True)
class Shape:
    """labels L, features D (`width`), instances a step B (`batch`), fan-in F, labels a group G, tokens a text.

    head_fraction: share of the labels that are dense; 0 in the named shapes, as in the published measurements.
    Raises ConfigError for numbers that cannot be.
    """

    name: str
    labels: int
    encoder: str
    width: int
    tokens: int
    batch: int
    fan_in: int
    group_size: int
    head_fraction: float = 0.0

    def __post_init__(self) -> None:
        for what in ("labels", "width", "tokens", "batch", "fan_in", "group_size"):
            number = getattr(self, what)
            if number < 1:
                raise ConfigError(f"--{what.replace('_', '-')} {number} must be at least 1")
        if self.fan_in > self.width:
            raise ConfigError(
                f"--fan-in {self.fan_in} exceeds the {self.width} features there are; lower it or raise --width"
            )
        if not 0.0 <= self.head_fraction <= 1.0:
            raise ConfigError(f"--head-fraction {self.head_fraction:g} must be between 0 and 1")

    @property
    def head(self) -> int:
        """Number of dense labels."""
        return round(self.head_fraction * self.labels)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("amazon-670k", 670_091, "bert-base-uncased", 768, 128, 64, 128, 32),
        Shape("amazon-3m", 2_812_281, "bert-base-uncased", 768, 128, 128, 128, 32),
        Shape("paper2keywords-8.6m", 8_623_847, "distilroberta-base", 768, 128, 128, 64, 32),
        Shape("100m", 100_000_000, "bert-base-uncased", 768, 128, 128, 64, 32),
    )
}


def shape_named(name: str) -> Shape:
    """One of SHAPES. Raises ConfigError, which lists them."""
    if name not in SHAPES:
        raise ConfigError(
            f"unknown shape {name!r}; there are {', '.join(SHAPES)}, or give the numbers, such as --labels"
        )
    return SHAPES[name]


def encoder_width(name: str) -> int:
    """Features of one of ENCODERS. Raises ConfigError, which lists them."""
    if name not in ENCODERS:
        raise ConfigError(f"unknown encoder {name!r}; there are {', '.join(ENCODERS)}")
    return ENCODERS[name].hidden
