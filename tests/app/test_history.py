"""What a page knows of a run: everything it said, thinned, read once."""

import json
import time

import numpy as np
import pytest

from app.history import NUMBERS, POINTS, WORDS, Curve, Histories, History


def write(file, events, mode="a"):
    with file.open(mode) as stream:
        for event in events:
            stream.write(json.dumps({"time": 1.0, **event}) + "\n")


def step(number, loss=1.0, **more):
    return {"type": "step", "step": number, "loss": loss, "instances_per_second": 10.0, "memory_bytes": 5, **more}


@pytest.fixture
def log(tmp_path):
    return tmp_path / "events.jsonl"


def test_only_what_was_appended_is_read(log):
    write(log, [step(1), step(2)])
    history = History(log)
    history.refresh()
    read = history.size
    assert read == log.stat().st_size
    log.write_bytes(b"x" * read)  # nothing of it is looked at again
    write(log, [step(3, 0.5)])
    history.refresh()
    assert list(history.curve("loss").steps) == [1, 2, 3] and history.curve("loss").last == 0.5


def test_a_line_that_is_still_written_waits(log):
    log.write_text('{"type": "step", "time": 1, "step": 1, "lo')
    history = History(log)
    history.refresh()
    assert history.size == 0 and not history.curves
    with log.open("a") as stream:
        stream.write('ss": 2.0}\n')
    history.refresh()
    assert history.curve("loss").last == 2.0


def test_damaged_lines_and_unknown_events_are_passed_over(log):
    write(log, [step(1)])
    with log.open("a") as stream:
        stream.write('not json\n[1]\n{"no": "type"}\n')
    write(log, [{"type": "later"}, step(2)])
    history = History(log)
    history.refresh()
    assert list(history.curve("loss").steps) == [1, 2]


def test_steps_told_again_after_a_crash_replace_those_before(log):
    write(log, [step(n, 1.0) for n in (10, 20, 30)] + [step(n, 2.0) for n in (20, 30, 40)])
    history = History(log)
    history.refresh()
    assert list(history.curve("loss").steps) == [10, 20, 30, 40]
    assert list(history.curve("loss").values) == [1.0, 2.0, 2.0, 2.0]


def test_a_run_of_a_million_steps_is_thinned_and_looked_at_cheaply(log):
    """Step events come every ten steps."""
    with log.open("w") as stream:
        for number in range(10, 1_000_001, 10):
            stream.write(f'{{"type":"step","time":1.0,"step":{number},"loss":{1e6 / number}}}\n')
    histories = Histories()
    history = histories.of(log.parent)
    steps, values = history.curve("loss").thinned()
    assert len(steps) == len(values) == POINTS
    assert steps[-1] == 1_000_000 and values[-1] == 1.0
    assert (np.diff(steps) > 0).all() and (np.diff(values) < 0).all()
    began = time.process_time()
    for _ in range(20):
        histories.of(log.parent).curve("loss").thinned()
    share = (time.process_time() - began) / 20
    print(f"{1000 * share:.1f} ms a look")
    assert histories.of(log.parent) is history


@pytest.mark.parametrize("count", [0, 1, 2, POINTS - 1, POINTS, POINTS + 1, 3 * POINTS + 7])
def test_a_curve_keeps_its_ends_and_its_mean(count):
    curve = Curve()
    for n in range(count):
        curve.add(n, float(n % 5))
    steps, values = curve.thinned()
    assert len(steps) == len(values) == min(count, POINTS)
    if count:
        assert steps[-1] == count - 1 and values[-1] == curve.last
        assert values.min() >= 0 and values.max() <= 4
        assert abs(values.mean() - np.mean(curve.values)) < 0.5


def test_validation_the_best_model_and_words(log):
    events = [
        {"type": "message", "text": "hardware  CPU"},
        {"type": "eval", "step": 10, "epoch": 0, "metrics": {"P@1": 0.5, "PSP@1": 0.2, "instances": 7}, "best": True},
        {"type": "checkpoint", "step": 10, "seconds": 0.5},
        {"type": "eval", "step": 20, "epoch": 1, "metrics": {"P@1": 0.4}, "best": False},
        {"type": "eval", "step": 30, "epoch": 2, "metrics": {}, "best": True},
    ]
    write(log, events)
    history = History(log)
    history.refresh()
    assert history.metrics == ["P@1", "PSP@1"] and not set(history.metrics) & set(NUMBERS)
    assert list(history.curve("P@1").values) == [0.5, 0.4]
    assert [text for _, text in history.words] == [
        "hardware: CPU",
        "validation after epoch 1: P@1 50.0 %, the best so far",
        "saved everything at step 10 in 0.5 s",
        "validation after epoch 2: P@1 40.0 %",
    ]
    write(log, [{"type": "message", "text": str(n)} for n in range(2 * WORDS)])
    history.refresh()
    assert len(history.words) == WORDS and history.words[-1][1] == str(2 * WORDS - 1)
    log.write_text("")  # another run of the same name
    history.refresh()
    assert not history.words and history.best is None
