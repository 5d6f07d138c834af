"""Starts, resumes and stops trainings. Each is a process of its own: closing the page or the interface ends none."""

from __future__ import annotations

import sys
from pathlib import Path

from app.jobs import detached
from engine.config import RunConfig
from engine.runs import RunDirectory, find_run
from engine.training.new_run import create_run

OUTPUT = "output.txt"  # of the process, in the run directory


def start(config: RunConfig, profile: str, origins: dict[str, str]) -> str:
    """Makes a run of that configuration (see `engine.config.resolve`) and starts it. Returns its id.

    It waits for its turn if another run trains. Raises an EngineError for what is quickly seen not to work.
    """
    run = create_run(config, profile, origins)
    _go(run)
    return run.id


def resume(runs: Path, id: str) -> None:
    """Goes on with a run that has stopped or failed. Raises ConfigError when there is none of that id."""
    _go(find_run(runs, id))


def stop(runs: Path, id: str) -> None:
    """Asks a run to save itself and stop. Raises ConfigError when there is none of that id."""
    find_run(runs, id).request_stop()


def _go(run: RunDirectory) -> None:
    with (run.path / OUTPUT).open("ab") as output:
        detached([sys.executable, "-m", "engine", "train", "--resume", str(run.path), "--queue"], output, output)
