"""A run that began before frozen encoders had adapters goes on without one."""

import hashlib
import json
import threading
from pathlib import Path

from safetensors.torch import load_file
from test_runs_end_to_end import assert_same_bits, stop_after, train

from engine.cli import main


def without_adapter(values: dict) -> dict:
    return {key: value for key, value in values.items() if not key.startswith("adapter.")}


def rewrite(file: Path, **parts: dict) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


def forget_adapter(run: Path) -> None:
    """The files of a run as they were before."""
    stored = json.loads((run / "config.json").read_text())
    rewrite(run / "config.json", **{part: without_adapter(stored[part]) for part in ("config", "origins")})
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({key: value for key, value in plan.items() if key != "adapter"}))
    for step in (run / "checkpoints").glob("step_*"):
        file = step / "state.json"
        rewrite(file, config=without_adapter(json.loads(file.read_text())["config"]))
        content = file.read_bytes()
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        rewrite(step / "manifest.json", **{"state.json": entry})


def test_a_run_of_before_goes_on_without_an_adapter(tiny_flags, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.training.reporter.STOP_FILE_SECONDS", 0.0)
    without = [*tiny_flags, "--epochs", "30", "--set", "adapter.width=0"]
    whole, root = train(without, tmp_path / "whole"), tmp_path / "stopped"
    threading.Thread(target=stop_after, args=(root, 40), daemon=True).start()
    assert main(["train", *without, "--output", str(root)]) == 75
    (run,) = root.glob("2*")
    forget_adapter(run)
    assert main(["train", "--resume", str(run)]) == 0
    assert_same_bits(whole, run)
    assert not any(name.startswith("adapter.") for name in load_file(run / "model" / "classifier.safetensors"))
