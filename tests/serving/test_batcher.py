"""Many requests, one thread: batches of what has arrived, in turn, each with its own answer."""

import threading

import pytest

from engine.inference.predictor import Prediction
from engine.serving.batcher import Batcher, TooBusy


class Gate:
    """A prediction that waits until it is let through and remembers its batches."""

    def __init__(self):
        self.batches, self.entered, self.open = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, texts, k):
        self.batches.append(texts)
        self.entered.release()
        assert self.open.acquire(timeout=30)
        if "poison" in texts:
            raise ValueError("poison")
        return [[Prediction(f"{text}/{rank}", 1.0, rank) for rank in range(k)] for text in texts]


def answer(future):
    return [[prediction.label for prediction in row] for row in future.result(30)]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def batcher(gate):
    made = Batcher(gate, batch_texts=3, most_waiting=6)
    yield made
    for _ in range(100):
        gate.open.release()
    made.close()


def busy(batcher, gate):
    """A first request that keeps the model busy."""
    first = batcher.submit(["first"], 1)
    assert gate.entered.acquire(timeout=30)
    return first


def test_what_arrives_while_the_model_is_busy_is_predicted_together(batcher, gate):
    first = busy(batcher, gate)
    others = [batcher.submit([text], k) for text, k in (("a", 1), ("b", 3), ("c", 2))]
    gate.open.release()
    gate.open.release()
    assert answer(first) == [["first/0"]]
    assert [answer(other) for other in others] == [[["a/0"]], [["b/0", "b/1", "b/2"]], [["c/0", "c/1"]]]
    assert gate.batches == [["first"], ["a", "b", "c"]]


def test_a_request_of_many_texts_does_not_hold_up_the_others(batcher, gate):
    first = busy(batcher, gate)
    many = batcher.submit(["1", "2", "3", "4", "5"], 1)
    one = batcher.submit(["one"], 1)
    for _ in range(3):
        gate.open.release()
    answer(first)
    assert answer(one) == [["one/0"]]
    assert answer(many) == [["1/0"], ["2/0"], ["3/0"], ["4/0"], ["5/0"]]
    assert gate.batches[1:] == [["1", "2", "3"], ["one", "4", "5"]]


def test_too_many_waiting_texts_are_refused_and_those_waiting_are_not(batcher, gate):
    busy(batcher, gate)
    waiting = batcher.submit(["x"] * 6, 1)
    with pytest.raises(TooBusy):
        batcher.submit(["y"], 1)
    for _ in range(3):
        gate.open.release()
    assert len(answer(waiting)) == 6
    assert batcher.waiting == 0


def test_a_text_that_fails_fails_alone(batcher, gate):
    first = busy(batcher, gate)
    bad, good = batcher.submit(["poison"], 1), batcher.submit(["good"], 1)
    for _ in range(4):
        gate.open.release()
    answer(first)
    with pytest.raises(ValueError, match="poison"):
        bad.result(30)
    assert answer(good) == [["good/0"]]


def test_a_failed_request_is_dropped_with_the_rest_of_its_texts(batcher, gate):
    busy(batcher, gate)
    bad = batcher.submit(["poison", "b", "c", "d"], 1)
    gate.open.release()
    gate.open.release()
    with pytest.raises(ValueError, match="poison"):
        bad.result(30)
    assert batcher.waiting == 0


def test_cancelled_requests_are_not_predicted(batcher, gate):
    busy(batcher, gate)
    cancelled, kept = batcher.submit(["cancelled"], 1), batcher.submit(["kept"], 1)
    assert cancelled.cancel()
    gate.open.release()
    gate.open.release()
    assert answer(kept) == [["kept/0"]]
    assert gate.batches == [["first"], ["kept"]]


def test_closing_answers_what_waits_and_takes_nothing_new(batcher, gate):
    first = busy(batcher, gate)
    waiting = batcher.submit(["a"], 1)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.open.release()
    gate.open.release()
    closing.join(30)
    assert answer(first) and answer(waiting) == [["a/0"]]
    with pytest.raises(TooBusy):
        batcher.submit(["late"], 1)
