"""Shapes of text encoders: what memory and time need to know of them, without a model, a network or torch.

The numbers of the named ones are those of their Hugging Face configurations; parameters are counted without the
pooler, which training drops.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.model.architectures import FULL_ATTENTION

# Where a configuration calls a number otherwise than BERT's does.
NAMES = {
    "num_hidden_layers": ("num_hidden_layers", "n_layers"),
    "hidden_size": ("hidden_size", "dim"),
    "num_attention_heads": ("num_attention_heads", "n_heads"),
    "intermediate_size": ("intermediate_size", "hidden_dim"),
    "hidden_dropout_prob": ("hidden_dropout_prob", "dropout", "mlp_dropout"),
    "attention_probs_dropout_prob": ("attention_probs_dropout_prob", "attention_dropout"),
}
BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")  # their positions start behind the padding index
WITHOUT_TYPES = ("distilbert", "mpnet", "modernbert")  # no embedding of token types
MATERIALISE_ATTENTION = ("mpnet",)  # no fused attention, and no activation checkpointing


@dataclass(frozen=True)
class EncoderShape:
    """layers, hidden D, heads, intermediate (inner width), vocabulary, positions, types: of `model_type`.

    dropout, attention_dropout: probabilities while training · window: tokens that a layer with local attention sees,
    0 where all see everything.
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int = 2
    dropout: float = 0.1
    attention_dropout: float = 0.1
    window: int = 0

    @property
    def gated(self) -> bool:
        """Whether the inner layer has a second half that gates the first, rotary positions and no biases."""
        return self.model_type == "modernbert"

    @property
    def fused_attention(self) -> bool:
        return self.model_type not in MATERIALISE_ATTENTION

    @property
    def shares_mask(self) -> bool:
        """Whether one row of a mask does for all tokens of a text."""
        return self.model_type in FULL_ATTENTION

    @property
    def longest_text(self) -> int:
        """Tokens that fit."""
        return self.positions - (2 if self.model_type in BEHIND_PADDING else 0)

    @property
    def embeddings(self) -> int:
        """Parameters of the tables that tokens are looked up in."""
        tables = self.vocabulary + (0 if self.gated else self.positions + self.types)
        return tables * self.hidden + (32 * self.heads if self.model_type == "mpnet" else 0)

    @property
    def matrices(self) -> tuple[int, ...]:
        """Elements of every weight matrix, the largest embedding first."""
        square, inner = self.hidden * self.hidden, self.hidden * self.intermediate
        layer = (3 * square, square, 2 * inner, inner) if self.gated else (*[square] * 4, inner, inner)
        word = self.vocabulary * self.hidden
        return (word, self.embeddings - word, *layer * self.layers)

    @property
    def vectors(self) -> int:
        """Elements of biases and normalisation weights."""
        if self.gated:
            return self.hidden * (2 * self.layers + 1)
        return 2 * self.hidden + self.layers * (9 * self.hidden + self.intermediate)

    @property
    def parameters(self) -> int:
        return sum(self.matrices) + self.vectors


def _bert(layers: int, hidden: int, heads: int, vocabulary: int = 30_522) -> EncoderShape:
    return EncoderShape("bert", layers, hidden, heads, 4 * hidden, vocabulary, 512)


def _roberta(layers: int, hidden: int, heads: int, vocabulary: int = 50_265, kind: str = "roberta") -> EncoderShape:
    return EncoderShape(kind, layers, hidden, heads, 4 * hidden, vocabulary, 514, 1)


ENCODERS = {
    "all-MiniLM-L6-v2": _bert(6, 384, 12),
    "all-MiniLM-L12-v2": _bert(12, 384, 12),
    "bert-base-uncased": _bert(12, 768, 12),
    "bert-large-uncased": _bert(24, 1024, 16),
    "distilbert-base-uncased": EncoderShape("distilbert", 6, 768, 12, 3072, 30_522, 512, 0),
    "roberta-base": _roberta(12, 768, 12),
    "roberta-large": _roberta(24, 1024, 16),
    "distilroberta-base": _roberta(6, 768, 12),
    "xlm-roberta-base": _roberta(12, 768, 12, 250_002, "xlm-roberta"),
    "all-mpnet-base-v2": EncoderShape("mpnet", 12, 768, 12, 3072, 30_527, 514, 0),
    "ModernBERT-base": EncoderShape("modernbert", 22, 768, 12, 1152, 50_368, 8192, 0, 0.0, 0.0, 128),
    "e5-small-v2": _bert(12, 384, 12),
    "e5-base-v2": _bert(12, 768, 12),
    "e5-large-v2": _bert(24, 1024, 16),
    "bge-small-en-v1.5": _bert(12, 384, 12),
    "bge-base-en-v1.5": _bert(12, 768, 12),
    "bge-large-en-v1.5": _bert(24, 1024, 16),
}


OWNERS = {  # on the hub, by how the name begins
    "all-": "sentence-transformers",
    "bert-": "google-bert",
    "distil": "distilbert",
    "roberta-": "FacebookAI",
    "xlm-roberta-": "FacebookAI",
    "ModernBERT-": "answerdotai",
    "e5-": "intfloat",
    "bge-": "BAAI",
}
HUB_NAMES = [f"{next(o for start, o in OWNERS.items() if name.startswith(start))}/{name}" for name in ENCODERS]


def encoder_shape(name: str) -> EncoderShape:
    """One of ENCODERS, with or without its owner's name, or the encoder in a local directory.

    Raises ConfigError, which lists the names.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _read(folder / "config.json", name)
    return known_shape(name)


def known_shape(name: str) -> EncoderShape:
    """One of ENCODERS, with or without its owner's name. Raises ConfigError, which lists the names."""
    known = name.rpartition("/")[2]
    if known not in ENCODERS:
        raise ConfigError(
            f"encoder {name!r} is unknown here: name a directory with its config.json, or one of {', '.join(ENCODERS)}"
        )
    return ENCODERS[known]


def shape_of(values: Mapping[str, Any]) -> EncoderShape:
    """From the entries of a Hugging Face configuration. Raises KeyError for one that is missing."""

    def number(name: str, default: Any = None) -> Any:
        for known in NAMES.get(name, (name,)):
            if (value := values.get(known)) is not None:
                if not isinstance(value, int | float) or value < 0:
                    raise TypeError(f"{known} = {value!r}")
                return value
        if default is None:
            raise KeyError(name)
        return default

    kind = str(values.get("model_type", "bert"))
    hidden = number("hidden_size")
    usual = 0.0 if kind == "modernbert" else 0.1
    return EncoderShape(
        kind,
        number("num_hidden_layers"),
        hidden,
        number("num_attention_heads"),
        number("intermediate_size", 4 * hidden),
        number("vocab_size"),
        number("max_position_embeddings", 512),
        0 if kind in WITHOUT_TYPES else number("type_vocab_size", 2),
        number("hidden_dropout_prob", usual),
        number("attention_probs_dropout_prob", usual),
        number("local_attention", 128) if kind == "modernbert" else 0,
    )


def _read(file: Path, name: str) -> EncoderShape:
    try:
        return shape_of(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"encoder {name!r}: there is no {file}; name a Hugging Face model directory") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"encoder {name!r}: {file} cannot be read ({error}); restore it") from error
    except KeyError as error:
        raise ConfigError(f"encoder {name!r}: {file} says nothing of {error}; it is no text encoder's") from error
