"""Requests of many clients through one model: one thread owns it and predicts whatever has arrived, together.

Nothing is waited for: a request that comes alone is predicted at once, and those that come while the model is busy
make the next batch. A request of many texts takes its turn batch by batch and does not hold up the others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from engine.inference.predictor import Prediction

BATCH_TEXTS = 32
MOST_WAITING = 4096  # texts

# (texts, k) → the k best labels of each text. Only ever called from one thread.
Predict = Callable[[list[str], int], list[list[Prediction]]]


class TooBusy(Exception):
    """So many texts wait already that this request would wait too long."""


@dataclass(eq=False)
class _Request:
    texts: list[str]
    k: int
    answer: Future = field(default_factory=Future)
    found: list[list[Prediction]] = field(default_factory=list)
    taken: int = 0  # texts that are in a batch, or were


# A request and those of its texts that are in the batch.
_Part = tuple[_Request, list[str]]


class Batcher:
    """Starts its thread when made; `close` ends it. Every other method may be called from any thread."""

    def __init__(self, predict: Predict, batch_texts: int = BATCH_TEXTS, most_waiting: int = MOST_WAITING) -> None:
        self._predict, self._batch_texts, self._most_waiting = predict, batch_texts, most_waiting
        self._requests: deque[_Request] = deque()
        self._waiting = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Texts that are in no batch yet."""
        return self._waiting

    def submit(self, texts: list[str], k: int) -> Future[list[list[Prediction]]]:
        """The k best labels of each text, once they are known. Raises TooBusy, also after `close`.

        A future that is cancelled before its first batch costs nothing.
        """
        request = _Request(texts, k)
        with self._changed:
            if self._closed or self._waiting + len(texts) > self._most_waiting:
                raise TooBusy
            self._requests.append(request)
            self._waiting += len(texts)
            self._changed.notify()
        return request.answer

    def close(self) -> None:
        """Predicts what was submitted, then ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._answer(batch)
            except Exception as error:
                if len(batch) == 1:
                    self._fail(batch[0], error)
                    continue
                for part in batch:  # one of them is the cause; the others shall not suffer
                    try:
                        self._answer([part])
                    except Exception as own:
                        self._fail(part, own)

    def _next_batch(self) -> list[_Part]:
        """Texts of the requests that wait longest; waits for one. Empty: closed and everything done."""
        batch: list[_Part] = []
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed)
            room, unfinished = self._batch_texts, []
            while self._requests and room:
                request = self._requests.popleft()
                if not request.taken and not request.answer.set_running_or_notify_cancel():
                    self._waiting -= len(request.texts)
                    continue
                texts = request.texts[request.taken : request.taken + room]
                request.taken += len(texts)
                room -= len(texts)
                self._waiting -= len(texts)
                batch.append((request, texts))
                if request.taken < len(request.texts):
                    unfinished.append(request)
            self._requests.extend(unfinished)
            if batch or (self._closed and not self._requests):
                return batch
        return self._next_batch()  # everything that waited was cancelled

    def _answer(self, batch: list[_Part]) -> None:
        texts = [text for _, part in batch for text in part]
        found = iter(self._predict(texts, max(request.k for request, _ in batch)))
        for request, part in batch:
            request.found += [next(found)[: request.k] for _ in part]
            if len(request.found) == len(request.texts):
                request.answer.set_result(request.found)

    def _fail(self, part: _Part, error: Exception) -> None:
        request, _ = part
        with self._changed:
            if request in self._requests:
                self._requests.remove(request)
                self._waiting -= len(request.texts) - request.taken
        request.answer.set_exception(error)
