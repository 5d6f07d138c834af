"""What there is to plan for, from a configuration: the encoder it names, the card or the CPU, the texts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.config import RunConfig
from engine.errors import ConfigError
from engine.planning.encoders import EncoderShape, encoder_shape, known_shape
from engine.planning.hardware import GIB, Hardware, available_memory, cpu_compute, detect, host_memory
from engine.planning.planner import Problem

MODEL_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # on the hub, with or without an owner


def problem_for(config: RunConfig, hardware: Hardware, labels: int, folders: bool = True) -> Problem:
    """A training of `config` with so many labels on `hardware`, its texts as long as they may be.

    folders: whether the encoder may be a local directory. Raises ConfigError for an encoder that is not known here,
    and for texts that are too long for it.
    """
    encoder = find_shape(config.encoder.name, folders)
    tokens = config.data.max_tokens
    if tokens > encoder.longest_text:
        raise ConfigError(
            f"data.max_tokens = {tokens} exceeds the encoder's {encoder.longest_text} positions; lower it"
        )
    return Problem(config, hardware, labels, encoder, tokens)


def named_hardware(config: RunConfig, profile: str | None) -> Hardware:
    """The card that is asked for, or this machine's CPU; where no memory is named, this machine's."""
    memory = config.hardware.memory_gib
    if config.hardware.device == "cpu" or profile == "cpu":
        size, free = (host_memory(), available_memory()) if memory == "auto" else (int(memory * GIB), None)
        return Hardware("cpu", f"a CPU with {size / GIB:.1f} GiB", size, 1, cpu_compute(), free)
    if memory == "auto":
        return detect(config.hardware.device)
    name = f"a card with {memory:g} GiB that computes in bf16 (RTX 30 series or newer)"
    return Hardware("cuda", name, int(memory * GIB), 1, "bf16")


def find_shape(name: str, folders: bool = True) -> EncoderShape:
    """A known shape, that of a local directory where `folders`, or that of a model in the Hugging Face cache.

    Raises ConfigError, which lists the names that are known.
    """
    try:
        return encoder_shape(name) if folders else known_shape(name)
    except ConfigError:
        found = _cached(name)
        if found is None:
            raise
        return encoder_shape(str(found))


def _cached(name: str) -> Path | None:
    """Folder of a model in the Hugging Face cache, found without loading its library."""
    if not MODEL_NAME.fullmatch(name):
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    folders = (home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots").glob("*")
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)
