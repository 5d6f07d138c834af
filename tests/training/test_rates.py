"""What depends on how long a training is: learning rates, and how many texts come without words."""

from dataclasses import replace

import pytest
from test_runs_end_to_end import train

from engine.config import RunConfig
from engine.model.classifier import ClassifierShape
from engine.runs import RunDirectory
from engine.training.schedules import RATE, Length, classifier_rate, texts_without_words, warmup_cosine

LONG = 10**6  # steps an epoch


ALL, SOME = (ClassifierShape(labels=96, head=32, width=32, fan_in=fan_in, group_size=16) for fan_in in (32, 8))
WORDS = replace(SOME, words=64, head_words=64, vocabulary=256)


@pytest.mark.parametrize(
    ("length", "shape", "rate"),
    [
        (Length(LONG, LONG), WORDS, 3e-3),
        (Length(4 * LONG, LONG), WORDS, 3e-3),
        (Length(16 * LONG, LONG), WORDS, 1.5e-3),
        (Length(4000, 250), WORDS, 1.5e-3),
        (Length(2000, 125), WORDS, 2.25e-3),  # 1,500 steps of 3e-3 go as far
        (Length(1500, 90), WORDS, 3e-3),
        (Length(10, 1), WORDS, 3e-3),
        (Length(16 * LONG, LONG), ALL, 3e-3),
        (Length(16 * LONG, LONG), replace(SOME, head=96), 3e-3),
        (Length(16 * LONG, LONG), replace(SOME, clusters=4, local=2), 3e-3),
        (Length(16 * LONG, LONG), SOME, 6e-3),
        (Length(16 * LONG, LONG), replace(SOME, fan_in=9), 3e-3),
    ],
)
def test_the_rate_falls_with_the_epochs_where_labels_read_words_and_is_higher_where_they_read_little(
    length, shape, rate
):
    assert classifier_rate(RunConfig(), length, shape) == pytest.approx(rate)
    chosen = RunConfig.from_flat({"classifier.learning_rate": 0.01})
    assert classifier_rate(chosen, length, shape) == 0.01


@pytest.mark.parametrize(
    ("settings", "epochs", "share"),
    [
        ({}, 10, 0.3),
        ({}, 4, 0.3),
        ({}, 3, 0.2),
        ({}, 1.5, 0.05),
        ({}, 1, 0.0),
        ({}, 0.5, 0.0),
        ({"words.dropout": 0.0}, 10, 0.0),
        ({"words.dropout": 0.1}, 1, 0.1),
        ({"encoder.trainable": "none"}, 10, 0.0),
        ({"encoder.trainable": "none", "intermediate.width": 64}, 10, 0.0),
        ({"encoder.trainable": "none", "words.dropout": 0.2}, 10, 0.2),
    ],
)
def test_how_many_texts_come_without_words(settings, epochs, share):
    assert texts_without_words(RunConfig.from_flat(settings), Length(int(epochs * 100), 100)) == pytest.approx(share)


@pytest.mark.parametrize(("steps", "epochs"), [(0, 16), (17 * 5, 5), (17, 1)])
def test_a_run_that_ends_early_has_the_rate_of_the_epochs_that_it_trains(
    tiny_flags, tmp_path, monkeypatch, steps, epochs
):
    monkeypatch.setattr("engine.training.schedules.RATE_STEPS", 0)
    more = ["--epochs", "16", "--set", "classifier.learning_rate=auto", "--set", f"training.max_steps={steps}"]
    run = train(tiny_flags, tmp_path, *more, "--set", "training.warmup_steps=0")
    first = next(event for event in RunDirectory(run).events(["step"]))
    peak = RATE * min(1.0, (4 / epochs) ** 0.5)
    share = warmup_cosine(first["step"], 17 * epochs, 0)  # 540 texts in batches of 32
    assert first["learning_rate"] == pytest.approx(peak * share)
    assert (
        f"rates     classifier {peak:.2g}, adapter 0.0005, words 0.015 at the peak\n" in (run / "log.txt").read_text()
    )


def test_a_run_of_few_steps_keeps_its_rate_and_few_texts_lose_their_words(tiny_flags, tmp_path):
    more = ["--set", "classifier.learning_rate=auto", "--set", "encoder.trainable=all"]
    run = train(tiny_flags, tmp_path, *more, "--epochs", "16", "--set", f"training.max_steps={2 * 17}")
    said = "classifier 0.003, words 0.015, encoder 0.0001 at the peak; 10% of the texts without words"
    assert f"rates     {said}\n" in (run / "log.txt").read_text()
