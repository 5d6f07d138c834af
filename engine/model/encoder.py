"""The text encoder: a Hugging Face model, pooled to one feature vector per text, and what follows it.

Features are scaled to length sqrt(D), so that one feature is about 1 whatever the encoder: the classifier's
learning rate then means the same everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from engine.errors import ConfigError
from engine.model.adapter import Adapter
from engine.model.architectures import FULL_ATTENTION
from engine.model.recompute import compile_layers, recompute_layers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder(nn.Module):
    """Tokens to features. `width` is D."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling
        self.width: int = model.config.hidden_size
        self.broadcasts_mask = model.config.model_type in FULL_ATTENTION and model.config._attn_implementation == "sdpa"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids, attention_mask: int64 [B, T] → features fp32 [B, D] of length sqrt(D)."""
        mask = attention_mask
        if self.broadcasts_mask:
            # Transformers would look whether there is padding, for which the host has to wait for the device in
            # every step, and write the mask out for every pair of tokens.
            mask = attention_mask[:, None, None, :].bool()
        tokens_BTD = self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            pooled_BD = tokens_BTD[:, 0].float()
        else:
            weight_BT1 = attention_mask.unsqueeze(-1).to(tokens_BTD.dtype)
            total_BD = (tokens_BTD * weight_BT1).sum(dim=1, dtype=torch.float32)
            pooled_BD = total_BD / attention_mask.sum(dim=1, keepdim=True).clamp(min=1)
        return unit_scale(pooled_BD)


class FeatureHead(nn.Module):
    """Between the encoder's features and the classifier: centring, an adapter once there is one, an optional Linear +
    ReLU layer, local features behind the others (see engine.model.local_features) once there are any, and dropout.

    center, fp32 [D of the encoder], is subtracted from the features: sentence features share a large common
    part, which a frozen encoder cannot unlearn and which slows the classifier down. The layer follows Jain et al.
    (Renée) and Schultheis & Babbar (Spartex): the classifier then reads `intermediate` features. Whatever is there,
    they have length sqrt(width) again.
    """

    def __init__(self, width: int, intermediate: int, dropout: float, center: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.linear = nn.Linear(width, intermediate) if intermediate else None
        self.adapter: Adapter | None = None
        self.local: nn.Linear | None = None
        self.dropout = dropout
        self.encoder_width, self.width = width, intermediate or width

    def add_adapter(self, hidden: int) -> None:
        """From here on the encoder's features pass through an adapter, which changes nothing yet."""
        self.adapter = Adapter(self.encoder_width, hidden)

    def add_local(self, columns: int) -> None:
        """From here on the classifier reads so many local features, too; their directions are 0."""
        self.local = nn.utils.skip_init(nn.Linear, self.width, columns)
        for parameter in self.local.parameters():
            parameter.data.zero_()

    def parts(self) -> dict[str, nn.Module]:
        """What there is to train, by the section of the configuration that has its learning rate."""
        found = {"intermediate": self.linear, "adapter": self.adapter, "local": self.local}
        return {name: part for name, part in found.items() if part is not None}

    def shared(self, x_BD: Tensor) -> Tensor:
        """The features that all labels choose from: fp32 [B, D of the encoder] → fp32 [B, D]."""
        if self.center is not None:
            x_BD = unit_scale(x_BD - self.center)
        if self.adapter is not None:
            x_BD = unit_scale(self.adapter(x_BD))
        if self.linear is not None:
            x_BD = unit_scale(torch.relu(self.linear(x_BD.to(self.linear.weight.dtype))).float())
        return x_BD

    def forward(self, x_BD: Tensor) -> Tensor:
        """fp32 [B, D of the encoder] → fp32 [B, D and local features]"""
        x_BD = self.shared(x_BD)
        if self.local is not None:
            x_BD = torch.cat([x_BD, self.local(x_BD.to(self.local.weight.dtype)).float()], dim=1)
        return nnf.dropout(x_BD, self.dropout, self.training)


def unit_scale(x_BD: Tensor) -> Tensor:
    """Rows scaled to length sqrt(D)."""
    return nnf.normalize(x_BD, dim=1) * x_BD.shape[1] ** 0.5


def encoder_width(directory: Path) -> int:
    """Features of the encoder in `directory`, from its configuration alone. Raises ConfigError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True).hidden_size
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"encoder {directory} cannot be used: {str(error).splitlines()[0]}") from error


def load_encoder(directory: Path, pooling: str, dtype: torch.dtype) -> TextEncoder:
    """The encoder in `directory` with its parameters in `dtype`, in evaluation mode, on the CPU."""
    from transformers import AutoModel
    from transformers.utils import logging

    prefer_fused_attention()
    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the pooler that follows is dropped; its absence is not worth a warning
    try:
        model = AutoModel.from_pretrained(directory, dtype=dtype, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"encoder {directory} cannot be loaded: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(level)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # not used: it would cost D x D parameters and their optimizer state
    return TextEncoder(model, pooling).eval()


def prefer_fused_attention() -> None:
    """No cuDNN attention: it is planned anew for every batch shape, 5 ms a layer where batches differ in length."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in `directory`. Raises ConfigError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, use_fast=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoder {directory} has no usable tokenizer: {str(error).splitlines()[0]}") from error


def check_length(encoder: TextEncoder, max_tokens: int) -> None:
    """Raises ConfigError when the encoder has fewer positions than `max_tokens`."""
    config = encoder.model.config
    positions = getattr(config, "max_position_embeddings", max_tokens)
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # positions start behind the padding index
    if max_tokens > positions:
        raise ConfigError(f"data.max_tokens = {max_tokens} exceeds the encoder's {positions} positions; lower it")


def checkpoint_activations(encoder: TextEncoder, every_n_layers: int) -> None:
    """Every n-th layer keeps its input only and is recomputed in backward."""
    layers = _layers(encoder)
    if not layers:
        kind = encoder.model.config.model_type
        raise ConfigError(f"encoders of type {kind} cannot recompute layers; set encoder.checkpointing=off")
    recompute_layers(layers[::every_n_layers])


def compile_encoder(encoder: TextEncoder) -> None:
    """Compiles the layers; to be called before `checkpoint_activations`."""
    layers = _layers(encoder)
    if layers:
        compile_layers(layers)
    else:
        encoder.model.compile(dynamic=True)


def _layers(encoder: TextEncoder) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in encoder.model.modules() if isinstance(module, GradientCheckpointingLayer)]
