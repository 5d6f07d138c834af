"""A training as its process lives through it: takes the run, waits for its turn, trains, and leaves an end state.

torch is imported when the training begins, so that a run that waits takes neither memory nor time.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.config import RunConfig
from engine.errors import ConfigError, StopRequested
from engine.runs import ACTIVE_STATES, RunDirectory
from engine.training.new_run import create_run, read_config, with_changes
from engine.training.reporter import Reporter
from engine.turns import PATIENCE_SECONDS, RUN_FILE, ProcessLock, Turn

POLL_SECONDS = 1.0


def create_checked_run(config: RunConfig, profile: str, origins: dict[str, str]) -> RunDirectory:
    """Makes a run as `create_run` does, after a look at what is quickly seen not to work (loads torch).

    Raises EnvironmentProblem, DataError or ConfigError, and makes no folder, for a device, a dataset, an encoder or a
    fan-in that cannot be used.
    """
    from engine.data.builtin import BUILT_IN
    from engine.data.label_texts import require_label_texts
    from engine.data.store import Dataset
    from engine.model.encoder import encoder_width
    from engine.model.sources import find_encoder
    from engine.planning.hardware import detect
    from engine.planning.planner import check_fan_in

    detect(config.hardware.device)
    check_fan_in(config, config.intermediate.width or encoder_width(find_encoder(config.encoder.name)))
    if config.data.path not in BUILT_IN:
        dataset = Dataset.open(Path(config.data.path).absolute())
        if config.data.augment_with_labels is True:
            require_label_texts(dataset)
    return create_run(config, profile, origins)


@contextmanager
def resume(path: Path, changes: dict[str, Any], queue: bool = False) -> Iterator[tuple[RunDirectory, dict[str, Any]]]:
    """Goes on with the run in `path` from its last checkpoint, or from the beginning if it has none.

    Yields the run and its result, and keeps the turn until the body is done: the process holds the training's memory.
    changes: {"section.key": value} given on the command line, refused where they are not the run's · queue: wait until
    no other run in the same folder trains.
    The state of a run that another process has, or that is completed, is left alone; any other failure is recorded.
    """
    run = RunDirectory.open(path)
    with _sole_process(run), Turn(run) as turn:
        reporter = Reporter(run)
        with _recorded(reporter):
            config, profile = read_config(run)
        config = with_changes(config, changes, run.path)  # a mistake of the caller, not of the run
        run.clear_stop()
        yield run, _execute(reporter, config, profile, turn, queue)


@contextmanager
def _sole_process(run: RunDirectory) -> Iterator[None]:
    """Holds the run. Raises ConfigError if another process does, or if there is nothing left to train."""
    with ProcessLock(run.path / RUN_FILE) as lock:
        taken = lock.take() or lock.problem
        state = run.state()
        if state in ACTIVE_STATES:
            raise ConfigError(f"{run.path} is {state} in another process; stop it first: `engine runs stop {run.path}`")
        if not taken:
            raise ConfigError(f"{run.path} is held by another process, which has not ended; see `engine runs list`")
        if state == "completed":
            raise ConfigError(f"{run.path} is completed; `engine runs show {run.path}` shows its result")
        yield


def _execute(reporter: Reporter, config: RunConfig, profile: str, turn: Turn, queue: bool) -> dict[str, Any]:
    run = reporter.run
    with _recorded(reporter), run.alive(), reporter.stop_signals():
        _take_turn(reporter, turn, queue)
        reporter.enter("preparing", reporter.step, reporter.total, "starting")
        from engine.training.run import train

        result = train(run, config, profile, reporter)
        reporter.enter("completed", reporter.total, reporter.total)
        return result


def _take_turn(reporter: Reporter, turn: Turn, queue: bool) -> None:
    if queue:
        _wait_for_turn(reporter, turn)
    elif not turn.take(PATIENCE_SECONDS) and not turn.problem:
        reporter.say(
            f"warning: {turn.ahead()} is training in the same folder, and both share the memory; --queue waits for it"
        )
    if turn.problem:
        reporter.say(f"warning: trainings in {turn.root} cannot take turns: no lock can be had there ({turn.problem})")


def _wait_for_turn(reporter: Reporter, turn: Turn) -> None:
    """Raises StopRequested when that is asked for."""
    shown = None
    while not turn.take_as_next() and not turn.problem:
        if reporter.stopping():
            raise StopRequested("stopped before its turn", f"engine train --resume {reporter.run.path} --queue")
        waiting = f"waiting for {turn.ahead()} to finish"
        if waiting != shown:
            reporter.enter("queued", reporter.step, reporter.total, waiting)
            reporter.say(f"queued    {waiting}")
            shown = waiting
        time.sleep(POLL_SECONDS)


@contextmanager
def _recorded(reporter: Reporter) -> Iterator[None]:
    """Leaves the state `stopped` or `failed` behind an exception of its body."""
    try:
        yield
    except StopRequested as stop:
        reporter.enter("stopped", reporter.step, reporter.total, stop.what)
        raise
    except BaseException as error:
        message = str(error) or type(error).__name__
        reporter.run.log(traceback.format_exc())
        reporter.run.event("message", text=f"failed: {message}")
        try:
            reporter.enter("failed", reporter.step, reporter.total, message)
        except OSError as problem:
            reporter.say(f"the failure could not be written to {reporter.run.path}: {problem}", event=False)
        raise
