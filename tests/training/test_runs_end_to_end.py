"""Whole trainings on a tiny encoder: what they write, that they learn, and that they survive being stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.cli import main
from engine.runs import RunDirectory

TRAINABLE = ["--set", "encoder.trainable=all", "--set", "encoder.learning_rate=1e-3"]
LOCAL = [*TRAINABLE, "--set", "local.clusters=4", "--set", "rewire.interval=5"]
LEAD = ["--set", "words.lead_labels=4", "--set", "classifier.head_fraction=0.1"]


def train(flags, output, *more) -> Path:
    """Runs `engine train` in this process; returns the run's folder."""
    before = set(Path(output).glob("2*"))
    assert main(["train", *flags, "--output", str(output), *more]) == 0
    (run,) = set(Path(output).glob("2*")) - before
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = load_file(run / "model" / "classifier.safetensors")
    encoder = load_file(run / "model" / "encoder" / "model.safetensors")
    return found | {f"encoder.{name}": tensor for name, tensor in encoder.items()}


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("more", [[], TRAINABLE], ids=["frozen", "trainable"])
def test_a_run_learns_and_leaves_everything_its_contract_names(tiny_flags, tmp_path, more, capsys):
    run = train(tiny_flags, tmp_path / "runs", "--json", "--epochs", "12", *more)
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["P@1"] > 0.3  # guessing the most frequent label gives 0.1
    assert result["fan_in"] == 8
    assert result["group_size"] == 4
    assert result["peak_memory_bytes"] > 0
    assert result["wall_seconds"] > 0
    assert result["instances_per_second"] > 0
    for name in ("config.json", "plan.json", "status.json", "events.jsonl", "log.txt", "result.json"):
        assert (run / name).is_file(), name
    for name in ("model.json", "encoder", "classifier.safetensors", "labels.parquet", "metrics.json"):
        assert (run / "model" / name).exists(), name
    assert len(list((run / "checkpoints").glob("step_*"))) == 2
    assert json.loads((run / "status.json").read_text())["state"] == "completed"
    kinds = {event["type"] for event in RunDirectory(run).events()}
    assert kinds - {"rewire"} == {"step", "eval", "checkpoint", "message"}
    assert ("rewire" in kinds) == (not more), "below a trained encoder labels read features of clusters, which stay"
    assert "2 texts without labels are skipped" in (run / "log.txt").read_text()


OPTIONS = {
    "dense": ["--fan-in", "dense"],
    "per label": ["--set", "classifier.group_size=1"],
    "sgd": ["--set", "classifier.optimizer=sgd", "--set", "classifier.learning_rate=5"],
    "adamw8bit": ["--set", "classifier.optimizer=adamw8bit"],
    "squared hinge": ["--set", "classifier.loss=squared_hinge"],
    "rigl": ["--set", "rewire.method=rigl"],
    "never rewired": ["--set", "rewire.method=none"],
    "no adapter": ["--set", "adapter.width=0"],
    "adapter, intermediate layer": ["--set", "adapter.width=64", "--set", "intermediate.width=48"],
    "intermediate layer": ["--set", "intermediate.width=48", "--set", "classifier.fan_in=12"],
    "local features": LOCAL,
    "local features, frozen": ["--set", "local.clusters=4", "--set", "auxiliary.weight=0.3"],
    "labels that read all words, trained": [*LOCAL, *LEAD],
    "labels that read all words, bf16": [*LEAD, "--set", "classifier.weight_dtype=bf16"],
    "auxiliary": [*TRAINABLE, "--set", "auxiliary.weight=0.3", "--set", "auxiliary.meta_labels=8"],
    "bf16": ["--set", "classifier.weight_dtype=bf16"],
    "fp8": ["--set", "classifier.weight_dtype=fp8"],
    "cls pooling": [*TRAINABLE, "--set", "encoder.pooling=cls"],
    "no head": ["--set", "classifier.head_fraction=0"],
    "no validation": ["--set", "data.validation_fraction=0"],
    "adamw": [*TRAINABLE, "--set", "encoder.optimizer=adamw"],
    "optimizer in backward": [*TRAINABLE, "--set", "encoder.optimizer_in_backward=true"],
    "activation checkpointing": [*TRAINABLE, "--set", "encoder.checkpointing=every_1"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains(tiny_flags, tmp_path, name, capsys):
    train(tiny_flags, tmp_path, "--json", "--epochs", "10", *OPTIONS[name])
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["P@1"] > 0.25


def test_a_frozen_encoder_needs_no_bitsandbytes(tiny_flags, tmp_path, monkeypatch):
    for name in ("bitsandbytes", "bitsandbytes.functional"):
        monkeypatch.setitem(sys.modules, name, None)
    train(tiny_flags, tmp_path)


def test_same_seed_same_bits(tiny_flags, tmp_path):
    assert_same_bits(train(tiny_flags, tmp_path), train(tiny_flags, tmp_path))


def test_micro_batches_do_not_change_the_result(tiny_flags, tiny_encoder, tmp_path):
    still = shutil.copytree(tiny_encoder, tmp_path / "still")
    config = json.loads((still / "config.json").read_text())
    # Without dropout: its noise is drawn a micro-batch at a time.
    (still / "config.json").write_text(
        json.dumps({**config, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0})
    )
    flags = [*tiny_flags, *TRAINABLE, "--encoder", str(still), "--max-steps", "12"]
    flags += ["--set", "encoder.dropout=0", "--set", "encoder.optimizer=adamw", "--set", "rewire.method=none"]
    whole = weights(train(flags, tmp_path / "runs"))
    parts = weights(train(flags, tmp_path / "runs", "--set", "training.micro_batch=8"))
    for name in ("tail.weight", "encoder.encoder.layer.0.output.dense.weight"):
        assert (parts[name] - whole[name]).abs().mean() < 0.03 * whole[name].abs().mean(), name


def stop_after(root: Path, steps: int) -> None:
    """Touches the stop file of the run that appears in `root` once it has done `steps` steps."""
    while True:
        for events in root.glob("*/events.jsonl"):
            if any(event["step"] >= steps for event in RunDirectory(events.parent).events(["step"])):
                RunDirectory(events.parent).request_stop()
                return
        time.sleep(0.002)


@pytest.mark.parametrize("more", [[], TRAINABLE, LOCAL], ids=["frozen", "trainable", "local features"])
def test_a_stopped_run_resumes_to_the_same_bits(tiny_flags, tmp_path, more, monkeypatch):
    monkeypatch.setattr("engine.training.reporter.STOP_FILE_SECONDS", 0.0)
    flags = [*tiny_flags, *more, "--epochs", "30"]
    whole = train(flags, tmp_path / "whole")
    root = tmp_path / "stopped"
    watcher = threading.Thread(target=stop_after, args=(root, 40), daemon=True)
    watcher.start()
    assert main(["train", *flags, "--output", str(root)]) == 75
    (run,) = root.glob("2*")
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped"
    assert 40 <= status["step"] < status["total"]
    assert status["message"] == f"stopped at step {status['step']:,} of {status['total']:,} and saved"
    rewired = [event["step"] for event in RunDirectory(run).events(["rewire"])]
    assert main(["train", "--resume", str(run)]) == 0
    assert [e["step"] for e in RunDirectory(run).events(["rewire"])][: len(rewired)] == rewired
    assert len(list(RunDirectory(run).events(["rewire"]))) == len(list(RunDirectory(whole).events(["rewire"])))
    assert_same_bits(whole, run)
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"] == json.loads((whole / "result.json").read_text())["metrics"]
    assert result["wall_seconds"] >= result["training_seconds"]  # of both sessions


def test_a_killed_run_resumes_from_its_last_epoch_to_the_same_bits(tiny_flags, tmp_path):
    flags = [*tiny_flags, "--epochs", "40"]
    whole = train(flags, tmp_path / "whole")
    root = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "engine", "train", *flags, "--output", str(root)], cwd=SOURCE)
    wait_for(lambda: any(root.glob("*/checkpoints/step_*/manifest.json")), process)
    process.kill()
    process.wait()
    (run,) = root.glob("2*")
    assert RunDirectory(run).state() == "failed"
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_bits(whole, run)


SOURCE = Path(__file__).parents[2]


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_stop(tiny_flags, tmp_path, number, capsys):
    flags = [*tiny_flags, "--epochs", "2000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", "train", *flags, "--output", str(tmp_path)],
        cwd=SOURCE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: any(list(RunDirectory(p).events(["step"])) for p in tmp_path.glob("2*")), process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    (run,) = tmp_path.glob("2*")
    assert f"engine train --resume {run}" in errors
    step = json.loads((run / "status.json").read_text())["step"]
    assert main(["runs", "show", str(run)]) == 0
    assert f"go on with `engine train --resume {run}`" in capsys.readouterr().out
    assert (run / "checkpoints" / f"step_{step}" / "manifest.json").is_file()


def test_resume_refuses_changed_settings_and_names_them(tiny_flags, tmp_path, capsys):
    run = train(tiny_flags, tmp_path, "--max-steps", "5")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
    assert main(["train", "--resume", str(run), "--fan-in", "16", "--seed", "0"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "classifier.fan_in (8 → 16)" in error
    assert "run.seed" not in error

    config = json.loads((run / "config.json").read_text())
    config["config"]["training.epochs"] = 9
    (run / "config.json").write_text(json.dumps(config))
    assert main(["train", "--resume", str(run)]) == 2
    assert "training.epochs (4 → 9)" in capsys.readouterr().err


def test_resume_refuses_a_changed_dataset(tiny_flags, tiny_dataset, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_dataset, copy)
    run = train(tiny_flags, tmp_path / "runs", "--data", str(copy), "--max-steps", "5")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
    meta = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**meta, "name": "other"}))
    assert main(["train", "--resume", str(run)]) == 3
    assert "has changed since" in capsys.readouterr().err


def test_a_full_disk_is_said_and_training_goes_on(tiny_flags, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.training.checkpoints.SPARE_BYTES", 2**62)
    run = train(tiny_flags, tmp_path)
    assert json.loads((run / "status.json").read_text())["state"] == "completed"
    assert (
        "free some space. Earlier checkpoints are intact; training goes on without it" in (run / "log.txt").read_text()
    )
    assert not list((run / "checkpoints").glob("*"))


def test_stopping_on_a_full_disk_fails_with_advice_and_the_last_checkpoint(tiny_flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("engine.training.reporter.STOP_FILE_SECONDS", 0.0)

    def fill_then_stop() -> None:
        while not list(tmp_path.glob("*/checkpoints/step_*/manifest.json")):
            time.sleep(0.002)
        monkeypatch.setattr("engine.training.checkpoints.SPARE_BYTES", 2**62)
        (run,) = tmp_path.glob("2*")
        RunDirectory(run).request_stop()

    threading.Thread(target=fill_then_stop, daemon=True).start()
    assert main(["train", *tiny_flags, "--epochs", "200", "--output", str(tmp_path)]) == 5
    assert "free some space" in capsys.readouterr().err
    (run,) = tmp_path.glob("2*")
    assert list((run / "checkpoints").glob("step_*/manifest.json"))


@pytest.mark.parametrize("adapter", ["0", "auto"])
def test_a_classifier_that_diverges_stops_the_run_with_advice(tiny_flags, tmp_path, capsys, adapter):
    """Without an adapter there is no gradient of a frozen encoder's features to look at."""
    flags = [*tiny_flags, "--set", f"adapter.width={adapter}"]
    flags += ["--set", "classifier.optimizer=sgd", "--set", "classifier.loss=squared_hinge"]
    flags += ["--set", "classifier.learning_rate=1e10", "--epochs", "10", "--output", str(tmp_path)]
    assert main(["train", *flags]) == 1
    assert "not finite" in (said := capsys.readouterr().err)
    assert "lower learning rates" in said
