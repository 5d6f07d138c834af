"""Which instances form which batch: a pure function of (seed, epoch, position).

    batches = epoch_batches(rows, lengths, batch_size=128, seed=0, epoch=3)
    for position in range(start, len(batches)):
        rows = batches[position]

A run that stopped at (epoch, position) goes on with exactly the batches it would have had.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

_ORDER_STREAM = 0
_BATCH_STREAM = 1
_VALIDATION_STREAM = 2

FINEST, AN_OCTAVE = 4, 8  # lengths are multiples of the first; from one power of two to the next there are so many
_WINDOW_BATCHES = 64  # texts are sorted by length inside a window of this many batches


@dataclass(frozen=True)
class Batches:
    """The batches of one epoch. `batches[position]` is int64 [batch_size]; the last one may be shorter.

    Holds one number an instance: order int64 [N].
    """

    order: np.ndarray
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, position: int) -> np.ndarray:
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} batches")
        return self.order[position * self.batch_size : (position + 1) * self.batch_size]


def epoch_batches(rows: np.ndarray, lengths: np.ndarray | None, batch_size: int, seed: int, epoch: int) -> Batches:
    """Deals `rows` [N] into batches, every row once.

    lengths: int [N], of the texts of `rows`, or None. With lengths, a batch holds texts of about the same length, so
    that little of it is padding: rows are shuffled, sorted by length inside windows of 64 batches, cut, and the
    batches shuffled. Without, rows are only shuffled.
    """
    rows = np.asarray(rows, dtype=np.int64)
    order = _generator(seed, epoch, _ORDER_STREAM).permutation(len(rows))
    if lengths is None:
        return Batches(rows[order], batch_size)
    assert len(lengths) == len(rows)
    window = np.arange(len(rows)) // (batch_size * _WINDOW_BATCHES)
    order = order[np.lexsort((np.asarray(lengths)[order], window))]  # stable: equal lengths stay shuffled
    full = len(rows) // batch_size
    shuffled = _generator(seed, epoch, _BATCH_STREAM).permutation(full)
    body = order[: full * batch_size].reshape(full, batch_size)[shuffled]
    return Batches(rows[np.concatenate([body.ravel(), order[full * batch_size :]])], batch_size)


def rounded(tokens: int, longest: int) -> int:
    """The length, at least `tokens` and at most `longest`, to which texts of up to `tokens` tokens are filled up where
    batches are to have few shapes."""
    octave = 1 << max(tokens - 1, 1).bit_length() - 1
    step = max(FINEST, octave // AN_OCTAVE)
    return min(-(-tokens // step) * step, longest)


def split_validation(n: int, fraction: float, seed: int, cap: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Divides the rows 0 .. n-1 at random: (train rows, validation rows), both int64 and sorted.

    The validation side gets `fraction` of the rows, at most `cap`, and when `fraction` is positive at least one;
    the train side is never empty.
    """
    size = min(round(n * fraction), cap, n - 1)
    if fraction > 0 and n > 1:
        size = max(size, 1)
    chosen = np.zeros(n, dtype=bool)
    chosen[_generator(seed, 0, _VALIDATION_STREAM).permutation(n)[: max(size, 0)]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def prefetch(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, made up to `depth` ahead in a background thread.

    An exception in `items` is raised here, at its place in the order. Closing this generator, or leaving the loop
    over it, stops the thread and waits for it.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: object) -> None:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
            put("end", None)
        except BaseException as error:  # all of them: the consumer must not wait for ever
            put("error", error)

    thread = threading.Thread(target=fill, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, stream])))
