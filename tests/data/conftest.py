"""Datasets, tokenizers and the built-in corpus for the tests of engine.data."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.data.python_api import build_python_api
from engine.data.store import Dataset, DatasetWriter

WORDS = "open a file in append mode read write close the quick brown fox jumps over lazy dog".split()


@pytest.fixture
def make_dataset(tmp_path) -> Callable[..., Dataset]:
    """Writes (text, label ids) pairs as a dataset of `labels` labels."""

    def make(train, test=(), labels: int = 10, path: Path | None = None, overwrite: bool = False) -> Dataset:
        with DatasetWriter(path or tmp_path / "made", "made", {"source": "here"}, overwrite) as writer:
            for split, rows in (("train", train), ("test", test)):
                for number, (text, ids) in enumerate(rows):
                    writer.add(split, f"{split}-{number}", text, ids)
            return writer.finish(f"label {number}" for number in range(labels))

    return make


@pytest.fixture(scope="session")
def make_tokenizer():
    """A word-level tokenizer over a list of words, with [CLS] and [SEP] around every text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(words=tuple(WORDS)):
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )

    return make


@pytest.fixture(scope="session")
def stdlib_corpus(tmp_path_factory) -> Dataset:
    return build_python_api(tmp_path_factory.mktemp("corpus") / "stdlib", scope="stdlib")
