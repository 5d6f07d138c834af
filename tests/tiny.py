"""A tiny encoder made from a configuration, and tiny corpora whose words tell their labels."""

from __future__ import annotations

import random
from pathlib import Path

TOPICS = ["file", "date", "shell", "graph", "colour", "sound", "mail", "number", "tree", "queue"]
VERBS = ["open", "read", "write", "close", "parse", "copy", "sort", "find", "merge", "print"]
FILLER = ["the", "a", "of", "and", "with", "from", "into", "quick", "slow", "large", "small", "new"]


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
