"""Learning rates that follow how often a text comes again: of the epochs that are trained, not of those asked for."""

import pytest
from test_runs_end_to_end import train

from engine.runs import RunDirectory
from engine.training.schedules import warmup_cosine


@pytest.mark.parametrize(("steps", "epochs"), [(0, 16), (17 * 5, 5), (17, 1)])
def test_the_rate_is_that_of_the_epochs_that_are_trained(tiny_flags, tmp_path, steps, epochs):
    more = ["--epochs", "16", "--set", "classifier.learning_rate=auto", "--set", f"training.max_steps={steps}"]
    run = train(tiny_flags, tmp_path, *more, "--set", "training.warmup_steps=0")
    first = next(event for event in RunDirectory(run).events(["step"]))
    total = 17 * epochs  # 540 texts in batches of 32
    peak = 3e-3 * min(1.0, (4 / epochs) ** 0.5)
    assert first["learning_rate"] == pytest.approx(peak * warmup_cosine(first["step"], total, 0))
