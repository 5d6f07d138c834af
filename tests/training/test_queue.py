"""Runs that are made in one process and trained in another, one after the other."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from test_runs_end_to_end import SOURCE, assert_same_bits, train, wait_for

from engine.cli import main
from engine.config import parse_assignment, resolve
from engine.errors import ConfigError
from engine.runs import WORKING_STATES, RunDirectory, list_runs
from engine.training.new_run import create_run
from engine.turns import ProcessLock, Turn


@pytest.fixture
def make(tiny_flags, tmp_path):
    """make(**changes): a run in `tmp_path` as another program makes it, with the settings of `tiny_flags`."""

    def create(**changes) -> RunDirectory:
        flags = dict(zip(tiny_flags[::2], tiny_flags[1::2], strict=True))
        sets = [text for flag, text in zip(tiny_flags[::2], tiny_flags[1::2], strict=True) if flag == "--set"]
        overrides = dict(parse_assignment(text) for text in sets)
        overrides |= {"data.path": flags["--data"], "encoder.name": flags["--encoder"], "training.epochs": 4}
        config, origins = resolve("cpu", {**overrides, "run.output": str(tmp_path), **changes}, {})
        return create_run(config, "cpu", origins)

    return create


@pytest.fixture
def launch():
    """launch(run, *flags): `engine train --resume RUN --queue` in a process of its own."""
    children = []

    def start(run: RunDirectory, *flags: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "engine", "train", "--resume", str(run.path), "--queue", *flags]
        child = subprocess.Popen(command, cwd=SOURCE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def message(run: RunDirectory) -> str:
    return run.current_status()["message"]


def test_a_run_that_was_made_trains_as_one_that_was_started(make, tiny_flags, tmp_path):
    run = make()
    assert (run.state(), message(run)) == ("stopped", "made, not started yet")
    (listed,) = list_runs(tmp_path)
    assert (listed.active, listed.profile, listed.step) == (False, "cpu", 0)
    assert main(["train", "--resume", str(run.path), "--queue"]) == 0
    started = train(tiny_flags, tmp_path / "started")
    assert_same_bits(run.path, started)
    mine, theirs = (json.loads((path / "config.json").read_text()) for path in (run.path, started))
    assert mine["versions"] == theirs["versions"]
    assert {k for k in mine["config"] if mine["config"][k] != theirs["config"][k]} == {"run.output"}


def test_a_run_is_made_and_waits_without_torch():
    code = "import sys, engine.cli, engine.training.new_run, engine.training.session as s; "
    code += "import filelock, engine.data.builtin; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_folder_that_cannot_be_made(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="no folder can be made there"):
        make(**{"run.output": str(tmp_path / "file")})


def test_runs_take_turns_the_oldest_is_next_and_a_killed_one_holds_nothing(make, launch):
    busy, older, younger = (make(**{"run.name": name}) for name in ("busy", "older", "younger"))
    busy.status("training")
    with Turn(busy) as turn:
        assert turn.take()
        second = launch(younger)
        wait_for(lambda: younger.state() == "queued", second)
        assert message(younger) == f"waiting for {busy.id} to finish"
        first = launch(older)
        wait_for(lambda: older.state() == "queued", first)
        busy.status("completed")
    wait_for(lambda: older.state() in WORKING_STATES, first)
    wait_for(lambda: message(younger) == f"waiting for {older.id} to finish", second)
    first.kill()
    assert second.wait(60) == 0
    assert younger.state() == "completed"
    assert (younger.path / "log.txt").read_text().count("queued ") == 2


def test_a_run_that_is_started_with_queue_waits_without_torch(make, tiny_flags, tmp_path):
    """Which its own making has loaded."""
    busy = make(**{"run.name": "busy"})
    busy.status("training")
    flags = [*tiny_flags, "--queue", "--json", "--output", str(tmp_path)]
    with Turn(busy) as turn:
        assert turn.take()
        child = subprocess.Popen([sys.executable, "-m", "engine", "train", *flags], cwd=SOURCE)
        wait_for(lambda: any(run.state == "queued" for run in list_runs(tmp_path)), child)
        process = psutil.Process(child.pid)
        assert process.memory_info().rss < 150 * 2**20
        assert "--json" in process.cmdline()
        child.terminate()
        assert child.wait(30) == 75


@pytest.mark.parametrize("how", ["stop file", signal.SIGINT, signal.SIGTERM])
def test_a_queued_run_can_be_stopped_and_keeps_its_place_in_training(make, launch, how, capsys):
    busy, run = make(**{"run.name": "busy"}), make()
    run.status("stopped", 40, 300, "earlier")
    with Turn(busy) as turn:
        assert turn.take()
        child = launch(run)
        wait_for(lambda: run.state() == "queued", child)
        assert message(run) == "waiting for another training to finish"
        if how == "stop file":
            assert main(["runs", "stop", str(run.path)]) == 0
            assert "leave the queue" in capsys.readouterr().out
        else:
            os.kill(child.pid, how)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 75
    status = run.current_status()
    assert (status["state"], status["step"], status["total"]) == ("stopped", 40, 300)
    assert status["message"] in errors
    assert f"engine train --resume {run.path} --queue" in errors
    assert "Traceback" not in errors


def test_without_queue_a_run_says_once_whom_it_shares_the_memory_with(make, capsys):
    busy, run = make(**{"run.name": "busy"}), make(**{"training.max_steps": 3})
    busy.status("training")
    with Turn(busy) as turn:
        assert turn.take()
        assert main(["train", "--resume", str(run.path)]) == 0
    assert f"{busy.id} is training in the same folder" in capsys.readouterr().err
    assert (run.path / "log.txt").read_text().count("--queue waits for it") == 1


def test_a_folder_without_locks_is_said_and_training_goes_on(make, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    run = make(**{"training.max_steps": 3})
    monkeypatch.setattr("fcntl.flock", refuse)
    assert main(["train", "--resume", str(run.path), "--queue"]) == 0
    assert capsys.readouterr().err.count("no lock can be had there (Operation not supported)") == 1


GONE = {
    "dataset": ({"data.path": "/nowhere"}, 3, "/nowhere"),
    "encoder": ({"encoder.name": "nobody/nothing"}, 2, "nobody/nothing"),
    "fan-in": ({"classifier.fan_in": 33}, 2, "classifier.fan_in = 33"),
}


@pytest.mark.parametrize("name", GONE)
def test_what_cannot_train_is_recorded_as_failed(make, name, capsys):
    changes, code, expected = GONE[name]
    run = make(**changes)
    assert main(["train", "--resume", str(run.path), "--queue"]) == code
    assert run.state() == "failed"
    assert expected in message(run)
    assert message(run) in capsys.readouterr().err


BAD = {
    "damaged": ("{", 3, "config.json is damaged"),
    "empty": ("{}", 3, "config.json is damaged"),
    "unknown": ('{"profile": "cpu", "config": {"data.colour": "red"}}', 2, "data.colour"),
    "refused": ('{"profile": "cpu", "config": {"training.epochs": -1}}', 2, "training.epochs"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_configuration_that_is_refused_is_recorded_as_failed(make, name):
    text, code, expected = BAD[name]
    run = make()
    (run.path / "config.json").write_text(text)
    assert main(["train", "--resume", str(run.path), "--queue"]) == code
    assert run.state() == "failed"
    assert expected in message(run)


def test_a_mistake_of_the_caller_leaves_the_run_as_it_is(make):
    run = make()
    assert main(["train", "--resume", str(run.path), "--fan-in", "16"]) == 2
    assert (run.state(), message(run)) == ("stopped", "made, not started yet")


def test_the_state_of_another_process_is_left_alone(make, launch):
    busy, run = make(**{"run.name": "busy"}), make()
    with Turn(busy) as turn:
        assert turn.take()
        child = launch(run)
        wait_for(lambda: run.state() == "queued", child)
        before = run.read_status()["pid"]
        (run.path / "config.json").write_text("{")
        assert main(["train", "--resume", str(run.path)]) == 2
        assert (run.state(), run.read_status()["pid"]) == ("queued", before)


def test_a_run_that_another_process_is_about_to_train_is_left_alone(make, capsys):
    run = make()
    with ProcessLock(run.path / ".lock") as lock:
        assert lock.take()
        assert main(["train", "--resume", str(run.path)]) == 2
    assert "held by another process" in capsys.readouterr().err
    assert message(run) == "made, not started yet"


def test_steps_tell_the_memory_of_the_host(make):
    run = make(**{"training.max_steps": 20})
    assert main(["train", "--resume", str(run.path)]) == 0
    (step,) = run.events(["step"])
    assert step["host_bytes"] > 50 * 2**20


def test_the_peak_of_the_launching_process_is_not_counted():
    code = "from engine.peak_memory import host_peak_bytes; print(host_peak_bytes())"
    held = bytearray(200 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert int(done.stdout) < len(held)
