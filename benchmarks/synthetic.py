"""Data and encoders of a given size and no meaning, for measuring time and memory without a network.

Words are made of syllables. A text is words drawn with Zipf's frequencies; its labels are drawn evenly, so that
every part of the classifier has positives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import numpy as np

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxz", "aeiou"
LABELS_A_TEXT = 5
TEXTS_AT_ONCE = 4096
SPECIAL = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")


@dataclass(frozen=True)
class Shape:
    """An encoder: its family and the sizes that decide time and memory."""

    family: str
    vocabulary: int
    width: int
    layers: int
    heads: int


SHAPES = {
    "bert-base": Shape("bert", 30_522, 768, 12, 12),
    "distilroberta": Shape("roberta", 50_265, 768, 6, 12),
    "minilm": Shape("bert", 30_522, 384, 6, 12),
    "tiny": Shape("bert", 2_000, 32, 2, 2),
}


def words(count: int) -> list[str]:
    """The first `count` words of three syllables."""
    syllables = [consonant + vowel for consonant, vowel in product(CONSONANTS, VOWELS)]
    return ["".join(parts) for parts in islice(product(syllables, repeat=3), count)]


def make_dataset(path: Path, labels: int, texts: int, test_texts: int, tokens: int, vocabulary: list[str]) -> None:
    """A dataset directory of `texts` training and `test_texts` test texts of tokens - 2 words each."""
    from engine.data.store import DatasetWriter

    rng = np.random.default_rng(0)
    frequency = 1.0 / np.arange(1, len(vocabulary) + 1)
    cumulative = np.cumsum(frequency / frequency.sum())
    with DatasetWriter(path, path.name, {"made by": "benchmarks/synthetic.py"}) as writer:
        for split, count in (("train", texts), ("test", test_texts)):
            for start in range(0, count, TEXTS_AT_ONCE):
                rows = min(TEXTS_AT_ONCE, count - start)
                chosen = np.searchsorted(cumulative, rng.random((rows, max(1, tokens - 2)))).clip(
                    max=len(vocabulary) - 1
                )
                targets = rng.integers(0, labels, (rows, LABELS_A_TEXT))
                for number, (text, ids) in enumerate(zip(chosen.tolist(), targets.tolist(), strict=True), start):
                    writer.add(split, str(number), " ".join([vocabulary[word] for word in text]), ids)
        writer.finish(_label_names(labels))


def _label_names(labels: int) -> Iterator[str]:
    return (f"label {number}" for number in range(labels))


def known_words(shape: Shape) -> list[str]:
    """The words that an encoder of that shape knows, frequent first."""
    return words(shape.vocabulary - len(SPECIAL))


def make_encoder(folder: Path, shape: Shape, tokens: int) -> list[str]:
    """An encoder with random weights and a tokenizer that knows whole words. Returns the words, frequent first."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    known = known_words(shape)
    ids = {word: number for number, word in enumerate([*SPECIAL, *known])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=tokens,
    )  # fmt: skip
    sizes = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.width,
        "max_position_embeddings": max(514, tokens + 2),
        "pad_token_id": ids["[PAD]"],
    }
    torch.manual_seed(0)
    model = BertModel(BertConfig(**sizes)) if shape.family == "bert" else RobertaModel(RobertaConfig(**sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return known
