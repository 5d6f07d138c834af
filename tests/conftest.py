"""A tiny encoder made from a configuration, a tiny corpus, and a home directory that is not the user's."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # tiny matrices: more threads only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may reach the network
TOPICS = ["file", "date", "shell", "graph", "colour", "sound", "mail", "number", "tree", "queue"]
VERBS = ["open", "read", "write", "close", "parse", "copy", "sort", "find", "merge", "print"]
FILLER = ["the", "a", "of", "and", "with", "from", "into", "quick", "slow", "large", "small", "new"]


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """Nothing is read from or written to the user's home or the working folder."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.chdir(home)


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """Accelerate keeps one precision a process; every test may choose its own."""
    yield
    import sys

    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)


def make_encoder(folder: Path, hidden: int = 32, layers: int = 2) -> Path:
    """A BERT of a few thousand parameters with a word-level tokenizer, saved as a Hugging Face directory."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TOPICS, *VERBS, *FILLER]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(count: int, seed: int) -> list[tuple[str, list[int]]]:
    """Texts whose words tell their labels: 10 topics, 10 verbs, 100 pairs of them."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        topic, verb = rng.randrange(10), rng.randrange(10)
        words = [TOPICS[topic], VERBS[verb], *rng.choices(FILLER, k=rng.randrange(2, 12))]
        rng.shuffle(words)
        rows.append((" ".join(words), [topic, 10 + verb, 20 + 10 * topic + verb]))
    return rows


def write_dataset(folder: Path, train, test, labels: int = 120) -> Path:
    from engine.data.store import DatasetWriter

    with DatasetWriter(folder, folder.name, {"made": "here"}) as writer:
        for split, rows in (("train", train), ("test", test)):
            for number, (text, ids) in enumerate(rows):
                writer.add(split, str(number), text, ids)
        writer.finish([f"label-{i}" for i in range(labels)])
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """600 training texts, of which two have no label; 100 test texts; 120 labels."""
    train = [*make_rows(598, 1), ("the quick graph", []), ("a slow queue", [])]
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny", train, make_rows(100, 2))


@pytest.fixture(scope="session")
def tiny_flags(tiny_encoder, tiny_dataset) -> list[str]:
    """Arguments of `engine train` that make a run of seconds."""
    settings = {
        "data.max_tokens": 16, "data.validation_fraction": 0.1, "classifier.fan_in": 8, "classifier.group_size": 4,
        "training.batch_size": 32, "training.warmup_steps": 5, "rewire.interval": 7, "evaluation.baselines": "false",
        "classifier.learning_rate": 0.02,
    }  # fmt: skip
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["--profile", "cpu", "--data", str(tiny_dataset), "--encoder", str(tiny_encoder), "--epochs", "4", *sets]
