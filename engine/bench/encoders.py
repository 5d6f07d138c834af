"""Encoders of known architecture with random weights: as fast and as large as the trained ones."""

from __future__ import annotations

import torch

from engine.bench.shapes import ENCODERS, encoder_width
from engine.model.encoder import TextEncoder, prefer_fused_attention

# What the shared names are called in the configuration of a model type.
NAMES = {
    "bert": {
        "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
        "intermediate": "intermediate_size", "vocabulary": "vocab_size", "positions": "max_position_embeddings",
    },
    "distilbert": {
        "layers": "n_layers", "hidden": "dim", "heads": "n_heads", "intermediate": "hidden_dim",
        "vocabulary": "vocab_size", "positions": "max_position_embeddings",
    },
}  # fmt: skip
NAMES["roberta"] = NAMES["bert"]


def new_encoder(name: str, seed: int) -> TextEncoder:
    """One of ENCODERS, mean pooling, fp32, on the CPU. Raises ConfigError, which lists them."""
    from transformers import AutoConfig, AutoModel

    encoder_width(name)
    entries = dict(ENCODERS[name])
    kind = str(entries.pop("model_type"))
    prefer_fused_attention()
    torch.manual_seed(seed)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{NAMES[kind][k]: v for k, v in entries.items()}))
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return TextEncoder(model, "mean")
