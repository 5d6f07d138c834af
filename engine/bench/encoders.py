"""Encoders of known architecture with random weights: as fast and as large as the trained ones."""

from __future__ import annotations

import torch

from engine.bench.shapes import encoder_width
from engine.model.encoder import TextEncoder, prefer_fused_attention
from engine.planning.encoders import ENCODERS

# What the numbers of a shape are called in the configuration of a model type.
NAMES = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
    "intermediate": "intermediate_size", "vocabulary": "vocab_size", "positions": "max_position_embeddings",
    "types": "type_vocab_size",
}  # fmt: skip
DISTILBERT = {
    "layers": "n_layers", "hidden": "dim", "heads": "n_heads", "intermediate": "hidden_dim",
    "vocabulary": "vocab_size", "positions": "max_position_embeddings",
}  # fmt: skip


def new_encoder(name: str, seed: int) -> TextEncoder:
    """One of ENCODERS, mean pooling, fp32, on the CPU. Raises ConfigError, which lists them."""
    from transformers import AutoConfig, AutoModel

    encoder_width(name)
    shape = ENCODERS[name]
    names = DISTILBERT if shape.model_type == "distilbert" else NAMES
    prefer_fused_attention()
    torch.manual_seed(seed)
    settings = {key: getattr(shape, number) for number, key in names.items() if number != "types" or shape.types}
    model = AutoModel.from_config(AutoConfig.for_model(shape.model_type, **settings))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return TextEncoder(model, "mean")
