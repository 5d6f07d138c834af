"""A run goes on with the words that it began with, whatever would be chosen now."""

import json
import threading

import pytest
import torch
from safetensors.torch import load_file
from test_runs_end_to_end import assert_same_bits, stop_after, train

from engine.cli import main
from engine.training import prepare

WORDS = ["--set", "words.lead_labels=4", "--set", "words.pairs=40", "--set", "classifier.head_fraction=0.1"]


@pytest.fixture
def flags(tiny_flags):
    return [*tiny_flags, *WORDS, "--epochs", "30"]


@pytest.fixture
def stopped(flags, tmp_path, monkeypatch):
    """A run that has been stopped after some steps."""
    monkeypatch.setattr("engine.training.reporter.STOP_FILE_SECONDS", 0.0)
    root = tmp_path / "stopped"
    threading.Thread(target=stop_after, args=(root, 40), daemon=True).start()
    assert main(["train", *flags, "--output", str(root)]) == 75
    (run,) = root.glob("2*")
    return run


def test_words_are_not_counted_again(flags, stopped, tmp_path, monkeypatch):
    whole = train(flags, tmp_path / "whole")
    saved = load_file(next((stopped / "checkpoints").glob("step_*")) / "words.safetensors")
    model = load_file(whole / "model" / "classifier.safetensors")
    assert len(saved["pairs"]) == 40
    assert all(torch.equal(saved[name], model[f"words.{name}"]) for name in ("idf", "pairs"))
    monkeypatch.setattr(prepare, "WordStatistics", None)
    assert main(["train", "--resume", str(stopped)]) == 0
    assert_same_bits(whole, stopped)


def test_they_are_where_a_checkpoint_of_before_has_none(flags, stopped, tmp_path):
    whole = train(flags, tmp_path / "whole")
    for step in (stopped / "checkpoints").glob("step_*"):
        (step / "words.safetensors").unlink()
        manifest = json.loads((step / "manifest.json").read_text())
        del manifest["words.safetensors"]
        (step / "manifest.json").write_text(json.dumps(manifest))
    assert main(["train", "--resume", str(stopped)]) == 0
    assert_same_bits(whole, stopped)
