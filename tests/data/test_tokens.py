import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import turns
from engine.data import tokens
from engine.data.tokens import token_cache, tokenizer_digest

TEXTS = ["Open a file", "open a file in append mode", "the quick brown fox", "unknown words here", "lazy"]


def _direct(tokenizer, texts, max_tokens) -> list[list[int]]:
    return tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]


def _entries(cache) -> list:
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


def _rows(cached) -> list[list[int]]:
    return [cached.row(i).tolist() for i in range(len(cached))]


@pytest.mark.parametrize("max_tokens", [3, 6, 64])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_cache_equals_direct_tokenization(make_dataset, make_tokenizer, tmp_path, max_tokens, side):
    dataset, tokenizer = make_dataset([(text, [1]) for text in TEXTS]), make_tokenizer()
    tokenizer.truncation_side = side
    cached = token_cache(dataset.train, tokenizer, max_tokens, tmp_path / "cache")
    expected = _direct(tokenizer, TEXTS, max_tokens)
    assert _rows(cached) == expected
    assert cached.lengths().tolist() == [len(ids) for ids in expected]
    assert cached.lengths().dtype == np.int32
    assert cached.ids.dtype == np.uint16
    assert isinstance(cached.ids.base, np.memmap)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text("open  \t\n", min_size=1).filter(str.strip), min_size=1, max_size=8))
def test_long_texts_give_the_same_ids_though_only_their_beginning_is_read(
    make_dataset, make_tokenizer, tmp_path, texts
):
    """A limit of one character a token makes every text a long one."""
    texts = [text * 20 for text in texts]
    dataset, tokenizer = make_dataset([(text, []) for text in texts], overwrite=True), make_tokenizer()
    before, tokens._CHARACTERS_PER_TOKEN = tokens._CHARACTERS_PER_TOKEN, 1
    try:
        cached = token_cache(dataset.train, tokenizer, 8, tmp_path / "cache")
    finally:
        tokens._CHARACTERS_PER_TOKEN = before
    assert _rows(cached) == _direct(tokenizer, texts, 8)


def test_a_second_call_reads_what_the_first_wrote(make_dataset, make_tokenizer, tmp_path):
    dataset, tokenizer = make_dataset([(text, []) for text in TEXTS]), make_tokenizer()
    calls = []
    first = token_cache(dataset.train, tokenizer, 8, tmp_path, lambda done, total: calls.append((done, total)))
    assert calls == [(5, 5)]
    tokenizer(TEXTS, truncation=True, max_length=4, padding=True)  # leaves its settings in the tokenizer
    again = token_cache(dataset.train, tokenizer, 8, tmp_path, lambda done, total: calls.append((done, total)))
    assert calls == [(5, 5)]
    assert _rows(again) == _rows(first)


def test_other_texts_tokenizers_and_limits_have_their_own_entries(make_dataset, make_tokenizer, tmp_path):
    cache = tmp_path / "cache"
    dataset, tokenizer = make_dataset([(text, []) for text in TEXTS]), make_tokenizer()
    changed = make_dataset([(text[::-1], []) for text in TEXTS], path=tmp_path / "changed")
    other = make_tokenizer(("file", "open"))
    assert tokenizer_digest(tokenizer) == tokenizer_digest(make_tokenizer()) != tokenizer_digest(other)
    for split, used, limit in (
        (dataset.train, tokenizer, 8),
        (changed.train, tokenizer, 8),
        (dataset.train, other, 8),
        (dataset.train, tokenizer, 4),
    ):
        assert _rows(token_cache(split, used, limit, cache)) == _direct(used, split.texts(), limit)
    assert len(_entries(cache)) == 4


@pytest.mark.parametrize("damage", ["truncate", "delete", "empty"])
def test_a_damaged_entry_is_made_again(make_dataset, make_tokenizer, tmp_path, damage):
    dataset, tokenizer = make_dataset([(text, []) for text in TEXTS]), make_tokenizer()
    expected = _rows(token_cache(dataset.train, tokenizer, 8, tmp_path / "cache"))
    (file,) = (tmp_path / "cache").glob("*/ids.npy")
    if damage == "delete":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size - 2 if damage == "truncate" else 0)
    assert _rows(token_cache(dataset.train, tokenizer, 8, tmp_path / "cache")) == expected


def test_an_interruption_leaves_no_entry(make_dataset, make_tokenizer, tmp_path):
    dataset, tokenizer = make_dataset([(text, []) for text in TEXTS]), make_tokenizer()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_cache(dataset.train, tokenizer, 8, tmp_path / "cache", stop)
    assert _entries(tmp_path / "cache") == []


def test_texts_are_tokenized_in_chunks(make_dataset, make_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_CHUNK_TEXTS", 3)
    monkeypatch.setattr(tokens, "_CHUNK_CHARACTERS", 40)
    texts = ["open", "open a file", "read", "write", "the quick brown fox jumps over the lazy dog", "dog", "fox"]
    dataset, tokenizer = make_dataset([(text, []) for text in texts]), make_tokenizer()
    done = []
    cached = token_cache(dataset.train, tokenizer, 16, tmp_path / "cache", lambda n, total: done.append(n))
    assert done == [3, 5, 7], "three texts, then two that are long together, then the rest"
    assert _rows(cached) == _direct(tokenizer, texts, 16)


def test_a_large_vocabulary_takes_wider_ids(make_dataset, make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(tuple(f"w{i}" for i in range(70_000)))
    cached = token_cache(make_dataset([("w69999 w1", [])]).train, tokenizer, 8, tmp_path / "cache")
    assert cached.ids.dtype == np.int32
    assert _rows(cached) == [[2, 70_003, 5, 3]]


def test_the_tokenizer_is_left_as_it_was(make_dataset, make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    token_cache(make_dataset([("open", [])]).train, tokenizer, 8, tmp_path / "cache")
    assert tokenizer.backend_tokenizer.to_str() == before


def test_padding_makes_a_rectangle(make_dataset, make_tokenizer, tmp_path):
    dataset, tokenizer = make_dataset([(text, []) for text in TEXTS]), make_tokenizer()
    cached = token_cache(dataset.train, tokenizer, 16, tmp_path / "cache")
    rows = np.array([1, 4, 1, 0])
    input_ids, mask = cached.pad(rows, tokenizer.pad_token_id)
    expected = tokenizer([TEXTS[i] for i in rows], padding=True)
    assert input_ids.tolist() == expected["input_ids"]
    assert mask.tolist() == expected["attention_mask"]
    assert input_ids.dtype == mask.dtype == np.int64
    assert cached.pad(np.array([], dtype=np.int64), 0)[0].shape == (0, 0)


def test_tokenizing_prints_nothing_when_a_program_is_started_afterwards(tmp_path):
    """The library warns where a process forks after its threads ran; starting a program must not look like that."""
    script = """
import subprocess, sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from engine.data.store import DatasetWriter
from engine.data.tokens import token_cache
backend = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
folder = Path(sys.argv[1])
with DatasetWriter(folder / "d", "d", {}) as writer:
    for number in range(100):
        writer.add("train", str(number), "a b a", [])
    dataset = writer.finish(["x"])
print(len(token_cache(dataset.train, PreTrainedTokenizerFast(tokenizer_object=backend), 8, folder / "cache").ids))
subprocess.run([sys.executable, "-c", "print('child')"], check=True)
"""
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    assert sorted(run.stdout.split()) == ["300", "child"]
    assert "parallelism" not in run.stderr


def test_several_processes_at_once_get_the_same_tokens_and_make_them_once(
    make_dataset, make_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.01)
    dataset, done = make_dataset([(text, []) for text in TEXTS]), []
    tokenizers = [make_tokenizer() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        tasks = [
            pool.submit(token_cache, dataset.train, each, 8, tmp_path / "cache", lambda *now: done.append(now))
            for each in tokenizers
        ]
        for task in tasks:
            assert _rows(task.result()) == _direct(tokenizers[0], TEXTS, 8)
    assert done.count((len(TEXTS), len(TEXTS))) == 1


def test_a_good_entry_that_another_process_has_made_meanwhile_stays(make_dataset, make_tokenizer, tmp_path):
    """As where the file system has no locks: nobody's files are taken away from under them."""
    dataset, tokenizer, cache = make_dataset([(text, []) for text in TEXTS]), make_tokenizer(), tmp_path / "cache"
    first = _rows(token_cache(dataset.train, tokenizer, 8, cache))
    (folder,) = _entries(cache)
    number = folder.stat().st_ino
    tokens._build(folder, dataset.train, tokenizer, 8, None)
    assert folder.stat().st_ino == number
    (folder / "ids.npy").write_bytes(b"damaged")
    tokens._build(folder, dataset.train, tokenizer, 8, None)
    assert _rows(token_cache(dataset.train, tokenizer, 8, cache)) == first
    assert _entries(cache) == [folder]
