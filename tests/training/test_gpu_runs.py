"""Whole trainings on a GPU: they learn, and in deterministic mode give the same bits twice and after a stop."""

import json
import threading

import pytest
import torch
from test_runs_end_to_end import TRAINABLE, assert_same_bits, stop_after, train

from engine.cli import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DETERMINISTIC = [*TRAINABLE, "--device", "cuda", "--set", "training.deterministic=true"]


@pytest.mark.parametrize("dtype", ["auto", "fp8"])
def test_a_trainable_encoder_learns(tiny_flags, tmp_path, capsys, dtype):
    flags = [*tiny_flags, *TRAINABLE, "--device", "cuda", "--set", f"classifier.weight_dtype={dtype}"]
    train(flags, tmp_path, "--json", "--epochs", "12")
    assert json.loads(capsys.readouterr().out)["metrics"]["P@1"] > 0.3


def test_same_seed_same_bits_also_across_a_stop(tiny_flags, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.training.reporter.STOP_FILE_SECONDS", 0.0)
    flags = [*tiny_flags, *DETERMINISTIC, "--epochs", "30"]
    whole = train(flags, tmp_path / "whole")
    assert_same_bits(whole, train(flags, tmp_path / "again"))
    root = tmp_path / "stopped"
    threading.Thread(target=stop_after, args=(root, 40), daemon=True).start()
    assert main(["train", *flags, "--output", str(root)]) == 75
    (run,) = root.iterdir()
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_bits(whole, run)
