"""Turns in a folder of runs: one at a time, the oldest that waits is next, and the dead hold nothing."""

import subprocess
import sys

import pytest

from engine.runs import RunDirectory
from engine.turns import ProcessLock, Turn

# Takes the turn of a run, says whether it has it, and keeps it until its input ends. Its run is in the given state.
CHILD = """
import sys
from engine.runs import RunDirectory
from engine.turns import Turn
run = RunDirectory(sys.argv[1])
run.status(sys.argv[2])
with Turn(run) as turn:
    print(turn.take() if sys.argv[2] != "queued" else None, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    """new(id): a run that no process has; child(run, state): a process that has it."""
    children = []

    class Folder:
        def new(self, id: str) -> RunDirectory:
            run = RunDirectory(tmp_path / id)
            run.path.mkdir()
            run.status("stopped")
            return run

        def child(self, run: RunDirectory, state: str) -> subprocess.Popen:
            command = [sys.executable, "-c", CHILD, str(run.path), state]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            children.append(child)
            child.said = child.stdout.readline().strip()
            return child

    yield Folder()
    for child in children:
        child.kill()
        child.communicate()


def test_a_turn_is_had_by_one_and_lost_with_its_process(folder):
    run = folder.new("2")
    child = folder.child(folder.new("1"), "training")
    assert child.said == "True"
    with Turn(run) as turn:
        assert not turn.take_as_next()
        assert turn.ahead() == "1"
        child.kill()
        child.wait()
        assert turn.take_as_next()
    with Turn(folder.new("3")) as turn:
        assert turn.take()


def test_the_oldest_run_that_waits_is_next(folder):
    first = folder.child(folder.new("1"), "queued")
    with Turn(folder.new("2")) as turn:
        assert not turn.take_as_next()
        assert turn.ahead() == "1"
        first.kill()  # it waits no more
        first.wait()
        assert turn.take_as_next()


def test_younger_runs_that_wait_and_runs_that_ended_are_not_waited_for(folder):
    folder.new("1")
    run = folder.new("2")
    folder.child(folder.new("3"), "queued")
    with Turn(run) as turn:
        assert turn.take_as_next()


def test_a_holder_without_a_name(folder):
    run, other = folder.new("1"), folder.new("2")
    folder.child(other, "training")
    other.status("completed")
    with Turn(run) as turn:
        assert not turn.take_as_next()
        assert turn.ahead() == "another training"


def test_a_folder_without_locks_says_why(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with ProcessLock(tmp_path / "lock") as lock:
        assert not lock.take()
        assert lock.problem == "Operation not supported"


def test_a_lock_that_would_outlive_its_process_is_none(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")  # for which filelock has a substitute

    monkeypatch.setattr("fcntl.flock", refuse)
    with ProcessLock(tmp_path / "lock") as lock:
        assert not lock.take()
        assert lock.problem
    assert list(tmp_path.iterdir()) == []
