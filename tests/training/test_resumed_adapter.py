"""A run that began before frozen encoders had adapters goes on without one."""

import json
import threading

from safetensors.torch import load_file
from test_runs_end_to_end import assert_same_bits, stop_after, train

from engine.cli import main


def forget_adapter(run) -> None:
    """As a run's files were before."""
    config, plan = (json.loads((run / name).read_text()) for name in ("config.json", "plan.json"))
    for part in ("config", "origins"):
        config[part] = {key: value for key, value in config[part].items() if not key.startswith("adapter.")}
    del plan["adapter"]
    (run / "config.json").write_text(json.dumps(config))
    (run / "plan.json").write_text(json.dumps(plan))


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
