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


OPTIONS = {
    "defaults": [],
    "launched one by one": ["--set", "encoder.cuda_graphs=off"],
    "fp8": ["--set", "classifier.weight_dtype=fp8"],
    "torch": ["--set", "classifier.backend=torch"],
    "per label": ["--set", "classifier.group_size=1"],
    "compiled": ["--set", "encoder.compile=true"],
    "compiled and computed again": [
        *("--set", "encoder.compile=true", "--set", "encoder.checkpointing=every_1"),
        *("--set", "encoder.optimizer_in_backward=true"),
    ],
    "activation checkpointing": ["--set", "encoder.checkpointing=every_1"],
    "micro-batches": ["--set", "training.micro_batch=8"],
    "optimizer in backward": ["--set", "encoder.optimizer_in_backward=true"],
    "local features": ["--set", "local.clusters=4", "--set", "auxiliary.weight=0.3"],
    "intermediate layer": ["--set", "intermediate.width=64", "--set", "classifier.fan_in=16"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_trainable_encoder_learns(tiny_flags, tmp_path, capsys, name):
    flags = [*tiny_flags, *TRAINABLE, "--device", "cuda", *OPTIONS[name]]
    train(flags, tmp_path, "--json", "--epochs", "12")
    assert json.loads(capsys.readouterr().out)["metrics"]["P@1"] > 0.3


@pytest.mark.parametrize("more", [[], ["--set", "words.lead_labels=4"]], ids=["defaults", "labels that read all words"])
def test_a_frozen_encoder_with_an_adapter_learns(tiny_flags, tmp_path, capsys, more):
    train([*tiny_flags, "--device", "cuda", *more], tmp_path, "--json", "--epochs", "12")
    assert json.loads(capsys.readouterr().out)["metrics"]["P@1"] > 0.3


def test_same_seed_same_bits_also_across_a_stop(tiny_flags, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.training.reporter.STOP_FILE_SECONDS", 0.0)
    flags = [*tiny_flags, *DETERMINISTIC, "--epochs", "30"]
    whole = train(flags, tmp_path / "whole")
    assert_same_bits(whole, train(flags, tmp_path / "again"))
    root = tmp_path / "stopped"
    threading.Thread(target=stop_after, args=(root, 40), daemon=True).start()
    assert main(["train", *flags, "--output", str(root)]) == 75
    (run,) = root.glob("2*")
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_bits(whole, run)


def test_a_gpu_without_bf16_trains_in_fp16(tiny_flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("engine.planning.hardware.BF16_CAPABILITY", (99, 0))
    run = train([*tiny_flags, *TRAINABLE, "--device", "cuda"], tmp_path, "--json", "--epochs", "12")
    assert json.loads(capsys.readouterr().out)["metrics"]["P@1"] > 0.3
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["compute"], plan["weight_dtype"]) == ("fp16", "fp16")


def test_features_that_are_not_finite_stop_the_run_and_leave_the_last_checkpoint(tiny_flags, tmp_path, capsys):
    flags = [*tiny_flags, *TRAINABLE, "--device", "cuda", "--set", "encoder.learning_rate=1e30", "--epochs", "3"]
    flags += ["--set", "encoder.weight_decay=0", "--set", "encoder.clip_norm=0", "--output", str(tmp_path)]
    assert main(["train", *flags]) == 1
    assert "not finite" in capsys.readouterr().err
