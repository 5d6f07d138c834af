"""The ragged token cache: every text of a split tokenized once, as one flat memory-mapped run of ids.

    tokens = token_cache(dataset.train, tokenizer, max_tokens=96, cache=dataset.cache)
    input_ids, attention_mask = tokens.pad(rows, tokenizer.pad_token_id)

Tokenizing runs on the threads of the `tokenizers` library, which TOKENIZERS_PARALLELISM=false turns off. A process
that forks afterwards, without starting another program, gets that library's warning: start workers with "spawn".
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.data.arrays import NpyAppender, open_npy
from engine.turns import ProcessLock

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]

_LAYOUT = 1
_CHUNK_TEXTS = 2048
_CHUNK_CHARACTERS = 4 << 20
_CHARACTERS_PER_TOKEN = 16  # several times what any language needs; see `_beginning`


class Texts(Protocol):
    """What is used of engine.data.store.Split. digest: what changes when the texts do."""

    name: str
    digest: str

    def __len__(self) -> int: ...
    def texts(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class RaggedTokens:
    """Token ids of N texts, special tokens included.

    ids: uint16 or int32 [sum of lengths].  offsets: int64 [N + 1].  Both memory-mapped.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Number of tokens of every text: int32 [N]."""
        return np.diff(self.offsets).astype(np.int32)

    def row(self, i: int) -> np.ndarray:
        """Token ids of text `i` in 0 .. N-1: [T]."""
        assert 0 <= i < len(self)
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def pad(self, rows: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The texts `rows` [B] as a rectangle: input_ids int64 [B, T] and attention_mask int64 [B, T].

        T is the length of the longest of them; shorter ones are filled up with `pad_id` on the right.
        """
        rows = np.asarray(rows)
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        column = np.arange(lengths.max(initial=0))
        mask = column < lengths[:, None]
        input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
        input_ids[mask] = self.ids[(starts[:, None] + column)[mask]]
        return input_ids, mask.astype(np.int64)


def token_cache(
    split: Texts,
    tokenizer: "PreTrainedTokenizerBase",
    max_tokens: int,
    cache: Path,
    progress: Progress | None = None,
) -> RaggedTokens:
    """The tokens of a split, from the folder `cache` or made there when it has none that are right.

    tokenizer: a fast one of transformers. It is not changed.
    max_tokens: texts are cut to this many, special tokens included.
    progress: called with (texts done, all texts) while tokenizing.

    Memory is bounded by a chunk of texts. What is interrupted leaves no cache entry; what another process makes is
    waited for.
    """
    key = {
        "layout": _LAYOUT,
        "texts": split.digest,
        "tokenizer": tokenizer_digest(tokenizer),
        "max_tokens": max_tokens,
        "truncation_side": tokenizer.truncation_side,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = Path(cache) / f"tokens-{split.name}-{digest[:16]}"
    tokens = _open(folder, len(split))
    if tokens is not None:
        return tokens
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ProcessLock(folder.with_suffix(".lock")) as lock:
        lock.take_when_free(lambda: progress and progress(0, len(split)))
        if _open(folder, len(split)) is None:
            _build(folder, split, tokenizer, max_tokens, progress)
    tokens = _open(folder, len(split))
    assert tokens is not None
    return tokens


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 over everything that decides the ids: vocabulary, rules and special tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):  # left behind by the last call, not part of the tokenizer
        state.pop(setting, None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _open(folder: Path, n_texts: int) -> RaggedTokens | None:
    """The cache entry in `folder`, or None when it is missing or damaged."""
    try:
        tokens = RaggedTokens(open_npy(folder / "ids.npy"), open_npy(folder / "offsets.npy"))
    except (OSError, ValueError, EOFError):
        return None
    return tokens if len(tokens) == n_texts and tokens.offsets[-1] == len(tokens.ids) else None


def _build(
    folder: Path, split: Texts, tokenizer: "PreTrainedTokenizerBase", max_tokens: int, progress: Progress | None
) -> None:
    # Written under another name and renamed: an entry is complete or not there.
    tmp = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(4)}")
    tmp.mkdir(parents=True)
    try:
        dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
        with NpyAppender(tmp / "ids.npy", dtype) as ids, NpyAppender(tmp / "offsets.npy", np.int64) as offsets:
            offsets.append(np.zeros(1, dtype=np.int64))
            for encoded in _encoded_chunks(split.texts(), _truncating(tokenizer, max_tokens), max_tokens):
                ends = np.cumsum([len(text) for text in encoded])
                offsets.append(ends + ids.length)
                ids.append(np.concatenate(encoded))
                if progress:
                    progress(offsets.length - 1, len(split))
        _publish(tmp, folder, len(split))
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _publish(tmp: Path, folder: Path, n_texts: int) -> None:
    """Renames tmp to folder, unless another process has made a good entry there meanwhile, which may be in use."""
    try:
        tmp.replace(folder)
    except OSError:  # there is one
        if _open(folder, n_texts) is None:
            shutil.rmtree(folder, ignore_errors=True)
            tmp.replace(folder)


def _truncating(tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> "Tokenizer":
    """A copy that cuts to `max_tokens` and never pads: settings stick to a tokenizer, and this one is somebody's."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
    copy.no_padding()
    return copy


def _encoded_chunks(texts: Iterable[str], tokenizer: "Tokenizer", max_tokens: int) -> Iterator[list[np.ndarray]]:
    whole = tokenizer.truncation["direction"] != "right"
    for chunk in _chunks(texts):
        beginnings = chunk if whole else [_beginning(text, max_tokens * _CHARACTERS_PER_TOKEN) for text in chunk]
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(beginnings)]
        for number, text in enumerate(chunk):
            if len(beginnings[number]) < len(text) and len(encoded[number]) < max_tokens:
                encoded[number] = tokenizer.encode(text).ids
        yield [np.array(ids, dtype=np.int64) for ids in encoded]


def _beginning(text: str, characters: int) -> str:
    """At least `characters` of the text, up to the end of a word.

    What lies behind is cut off anyway once these give `max_tokens`, and tokenizing it takes time and memory.
    """
    end = characters
    while end < len(text) and (not text[end].isspace() or text[end - 1].isspace()):
        end += 1
    return text[:end]


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == _CHUNK_TEXTS or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
