"""Run directories: writers that crash, readers that must not be fooled, ids that come from strangers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from engine import runs
from engine.errors import ConfigError, DataError, EnvironmentProblem
from engine.runs import RunDirectory, delete_run, find_run, list_runs

# Reports a state under a kept-up heartbeat and then does nothing until it is killed.
CHILD = """
import sys, time
from pathlib import Path
from engine.runs import RunDirectory
run = RunDirectory.create(Path(sys.argv[1]), "child")
with run.alive():
    run.status(sys.argv[2], 3, 10, "epoch 1")
    print(run.path, flush=True)
    time.sleep(60)
"""


def start_child(root, state="training"):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(root), state], stdout=subprocess.PIPE, text=True)
    return child, RunDirectory.open(child.stdout.readline().strip())


def age(run, **changes):
    """Rewrites parts of status.json behind the writer's back."""
    path = run.path / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_ids_are_unique_and_sort_by_time_even_in_a_race(tmp_path):
    found, start = [], threading.Barrier(8)

    def create():
        start.wait()
        found.append(RunDirectory.create(tmp_path, "debian depends/8gb").id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 8
    assert all("/" not in id and " " not in id and "debian-depends-8gb" in id for id in found)


def test_a_name_cannot_leave_the_folder(tmp_path):
    run = RunDirectory.create(tmp_path / "runs", "../../etc/passwd")
    assert run.path.parent == tmp_path / "runs"


def test_open_names_the_next_step(tmp_path):
    with pytest.raises(ConfigError, match="engine runs list"):
        RunDirectory.open(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is not a run"):
        RunDirectory.open(tmp_path)
    with pytest.raises(ConfigError, match="it holds none"):
        RunDirectory.open(tmp_path, "20260101-000000")
    run = RunDirectory.create(tmp_path)
    assert RunDirectory.open(run.path).path == RunDirectory.open(tmp_path, run.id).path == run.path


def test_json_is_strict_and_replaced_in_one_step(tmp_path):
    import numpy as np

    run = RunDirectory.create(tmp_path)
    value = {"loss": float("nan"), "path": tmp_path, "n": np.int64(3), "metrics": {"P@1": np.float32(0.5)}, "k": (1, 3)}
    run.write_json("result.json", value)
    text = (run.path / "result.json").read_text()
    assert "NaN" not in text
    expected = {"loss": None, "path": str(tmp_path), "n": 3, "metrics": {"P@1": 0.5}, "k": [1, 3]}
    assert run.read_json("result.json") == expected
    with pytest.raises(TypeError):
        run.write_json("result.json", {"bad": object()})
    assert run.read_json("result.json") == expected
    assert not list(run.path.glob("*.tmp")) + list(run.path.glob(".*.tmp"))


def test_missing_and_damaged_json_say_where(tmp_path):
    run = RunDirectory.create(tmp_path)
    with pytest.raises(DataError, match=r"plan\.json is missing"):
        run.read_json("plan.json")
    (run.path / "plan.json").write_text('{"fan_in": ')
    with pytest.raises(DataError, match=r"plan\.json is damaged"):
        run.read_json("plan.json")


def test_a_reader_never_sees_half_a_file(tmp_path):
    run = RunDirectory.create(tmp_path)
    run.write_json("plan.json", {"n": 0})
    done = threading.Event()

    def write():
        for n in range(100):
            run.write_json("plan.json", {"n": n, "filler": "x" * 20_000})
        done.set()

    threading.Thread(target=write).start()
    while not done.is_set():
        run.read_json("plan.json")


def test_events_survive_a_torn_line(tmp_path):
    run = RunDirectory.create(tmp_path)
    assert list(run.events()) == []
    run.event("step", step=1, loss=0.5)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"type": "step", "st')
    assert [event["step"] for event in run.events()] == [1]
    run.event("eval", step=2)
    assert [event["step"] for event in run.events()] == [1, 2]
    assert [event["type"] for event in run.events({"eval"})] == ["eval"]
    assert all(isinstance(event["time"], float) for event in run.events())


def test_log_appends_lines(tmp_path):
    run = RunDirectory.create(tmp_path)
    run.log("one\n")
    run.log("two — ž")
    assert [line[21:] for line in (run.path / "log.txt").read_text(encoding="utf-8").splitlines()] == ["one", "two — ž"]


def test_progress_reports_survive_a_full_disk(tmp_path):
    """A folder where the file should be stands in for the disk: both raise OSError from the write."""
    run = RunDirectory.create(tmp_path)
    for name in ("events.jsonl", "log.txt"):
        (run.path / name).mkdir()
    run.event("step", step=1)
    run.log("line")
    (run.path / "status.json").unlink()
    (run.path / "status.json").mkdir()
    run._written = float("-inf")
    run.heartbeat(step=2)
    with pytest.raises(OSError, match=r"status\.json"):
        run.status("completed")


def test_a_heartbeat_is_cheap_and_tells_the_latest(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path)
    run.status("training", 0, 100, "epoch 1")
    written = (run.path / "status.json").stat().st_ino
    for step in range(100):
        run.heartbeat(step)
    assert (run.path / "status.json").stat().st_ino == written
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.0)
    run.heartbeat(message="epoch 2")
    status = run.read_status()
    assert (status["step"], status["total"], status["message"]) == (99, 100, "epoch 2")


def test_alive_keeps_beating_and_leaves_an_end_state_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "HEARTBEAT_SECONDS", 0.02)
    run = RunDirectory.create(tmp_path)
    with run.alive():
        first = run.read_status()["heartbeat"]
        deadline = time.monotonic() + 5
        while run.read_status()["heartbeat"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.read_status()["heartbeat"] > first
        run.status("completed", 10, 10)
        ended = run.read_status()["heartbeat"]
        time.sleep(0.1)
    assert run.read_status()["heartbeat"] == ended
    assert run.state() == "completed"


def test_a_killed_process_is_not_running(tmp_path):
    child, run = start_child(tmp_path)
    try:
        assert run.state() == "training"
        assert run.process_alive()
        child.kill()
        # Not waited for yet: the pid still exists, as a zombie.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert run.state() == "failed"
    finally:
        child.kill()
        child.wait()
    assert run.state() == "failed"
    status = run.current_status()
    assert "while training" in status["message"]
    assert status["step"] == 3


def test_a_silent_process_is_not_running_but_still_there(tmp_path):
    child, run = start_child(tmp_path)
    try:
        child.send_signal(signal.SIGSTOP)
        age(run, heartbeat=time.time() - runs.SILENCE_SECONDS - 1)
        assert run.state() == "failed"
        assert run.process_alive()
    finally:
        child.kill()
        child.wait()


def test_a_reused_pid_is_not_the_run(tmp_path):
    run = RunDirectory.create(tmp_path)
    run.status("training")
    assert run.state() == "training"
    age(run, create_time=run.read_status()["create_time"] - 100)
    assert run.state() == "failed"


@pytest.mark.parametrize("state", runs.END_STATES)
def test_an_end_state_outlives_its_process(tmp_path, state):
    run = RunDirectory.create(tmp_path)
    run.status(state, 5, 5, "done")
    age(run, pid=2**22 + 1, heartbeat=0)
    assert run.state() == state


@pytest.mark.parametrize("text", ["", "[]", '{"state": "dancing"}', '{"state": "training"}', "\xff"])
def test_a_broken_status_reads_as_failed(tmp_path, text):
    run = RunDirectory.create(tmp_path)
    (run.path / "status.json").write_text(text, encoding="latin-1")
    assert run.state() == "failed"
    assert run.current_status()["message"]


def test_an_unknown_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dancing"):
        RunDirectory.create(tmp_path).status("dancing")


def test_stop_is_a_file(tmp_path):
    run = RunDirectory.create(tmp_path)
    assert not run.stop_requested()
    RunDirectory.open(run.path).request_stop()
    assert run.stop_requested()
    assert (run.path / "stop").exists()
    run.clear_stop()
    run.clear_stop()
    assert not run.stop_requested()


def test_listing_is_newest_first_and_tolerates_broken_runs(tmp_path):
    assert list_runs(tmp_path / "nothing") == []
    old = RunDirectory(tmp_path / "20240101-000000-old")
    old.path.mkdir()
    old.status("completed", 10, 10)
    old.write_json("config.json", {"profile": "8gb"})
    old.write_json("plan.json", {"fan_in": 64, "labels": 39034})
    old.write_json("result.json", {"metrics": {"P@1": 0.7}, "fan_in": 128})
    old.model.mkdir()
    (old.model / "model.json").write_text("{}")
    new = RunDirectory.create(tmp_path, "new")
    (tmp_path / "20250101-000000-broken").mkdir()
    (tmp_path / "20250101-000000-broken" / "config.json").write_text("{")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("")

    first, broken, last = list_runs(tmp_path)
    assert (first.id, first.state, first.active, first.metrics) == (new.id, "preparing", True, {})
    assert abs(first.started - time.time()) < 5
    assert (broken.state, broken.active) == ("failed", False)
    assert (last.id, last.state, last.profile, last.fan_in, last.labels) == (old.id, "completed", "8gb", 128, 39034)
    assert last.metrics == {"P@1": 0.7}
    assert last.has_model
    assert not first.has_model


@pytest.mark.parametrize(
    "id", ["..", ".", "", "/etc", "../outside", "a/../inside", "inside/", "inside\0", None, ["inside"]]
)
def test_only_a_listed_id_finds_a_run(tmp_path, id):
    for place in (tmp_path / "outside", tmp_path / "runs" / "inside"):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
    assert find_run(tmp_path / "runs", "inside").path == tmp_path / "runs" / "inside"
    with pytest.raises(ConfigError, match="it holds 1, such as inside"):
        find_run(tmp_path / "runs", id)


def test_a_queued_run_is_active_while_its_process_lives(tmp_path):
    child, run = start_child(tmp_path, "queued")
    try:
        (listed,) = list_runs(tmp_path)
        assert (listed.state, listed.active) == ("queued", True)
    finally:
        child.kill()
        child.wait()
    assert run.state() == "failed"
    assert "while queued" in run.current_status()["message"]


def test_a_deleted_run_is_gone_with_everything_in_it(tmp_path):
    run, other = (RunDirectory.create(tmp_path, name, "stopped") for name in ("mine", "other"))
    (run.checkpoints / "step_5").mkdir(parents=True)
    (run.checkpoints / "step_5" / "classifier.safetensors").write_bytes(b"x")
    delete_run(tmp_path, run.id)
    assert [path.name for path in tmp_path.iterdir()] == [other.id]
    with pytest.raises(ConfigError, match="engine runs list"):
        delete_run(tmp_path, run.id)
    with pytest.raises(ConfigError, match="engine runs list"):
        delete_run(tmp_path, f"../{tmp_path.name}/{other.id}")


@pytest.mark.parametrize("state", runs.ACTIVE_STATES)
def test_a_run_whose_process_lives_is_not_deleted(tmp_path, state):
    run = RunDirectory.create(tmp_path, "mine", state)
    age(run, heartbeat=0)  # silent for long
    with pytest.raises(ConfigError, match=f"{state}; stop it first"):
        delete_run(tmp_path, run.id)
    assert run.read_status()["state"] == state
    age(run, pid=2**22 + 1)
    delete_run(tmp_path, run.id)
    assert list_runs(tmp_path) == []


def test_deleting_follows_no_link(tmp_path):
    outside = RunDirectory.create(tmp_path / "elsewhere", "precious", "completed")
    root = tmp_path / "runs"
    run = RunDirectory.create(root, "mine", "stopped")
    (run.path / "model").symlink_to(outside.path)
    (root / "linked").symlink_to(outside.path)
    delete_run(root, run.id)
    delete_run(root, "linked")
    assert list(root.iterdir()) == []
    assert outside.state() == "completed"


def test_half_of_a_deleted_run_is_not_listed_and_goes_with_the_next(tmp_path, monkeypatch):
    first, second = (RunDirectory.create(tmp_path, name, "stopped") for name in ("first", "second"))

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        with pytest.raises(EnvironmentProblem, match="Permission denied"):
            delete_run(tmp_path, first.id)
    assert [run.id for run in list_runs(tmp_path)] == [second.id]
    delete_run(tmp_path, second.id)
    assert list(tmp_path.iterdir()) == []
