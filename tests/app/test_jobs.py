"""Commands that the interface starts: they outlive it, and say how they ended."""

import os
import signal
import time

import pytest

from app.jobs import KEPT, Jobs, last_lines
from engine.errors import ConfigError


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "jobs")


def start(jobs, *arguments, kind="plan"):
    return jobs.start(jobs.prepare(kind), "a plan", list(arguments), asked="for a test")


def ended(jobs, id, seconds=60):
    end = time.monotonic() + seconds
    while (job := jobs.get(id)).state == "running":
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job


def test_a_command_leaves_its_result(jobs):
    job = start(jobs, "plan", "--labels", "1000", "--vram", "8", "--json")
    job = ended(Jobs(jobs.root), job.id)  # whoever looks, another process too
    assert (job.state, job.title, job.details) == ("done", "a plan", {"asked": "for a test"})
    assert '"fan_in"' in job.output()


def test_a_command_that_fails_says_why(jobs):
    job = ended(jobs, start(jobs, "plan", "--labels", "0", "--vram", "8").id)
    assert job.state == "failed"
    assert job.words == "--labels 0 must be a whole number above 0"
    job = ended(jobs, start(jobs, "no-such-command").id)
    assert job.state == "failed" and "no-such-command" in job.words


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_command_is_not_running_for_ever(jobs):
    job = start(jobs, "predict", "nothing")
    import json

    os.kill(json.loads((job.path / "job.json").read_text())["pid"], signal.SIGKILL)
    job = ended(jobs, job.id, 10)
    assert job.state == "failed" and job.words.startswith("ended without a word")


def test_jobs_are_listed_by_kind_newest_first_and_old_ones_go(jobs):
    first = start(jobs, "plan", "--labels", "5", "--vram", "8")
    second = start(jobs, "plan", "--labels", "5", "--vram", "8")
    other = start(jobs, "plan", "--labels", "5", "--vram", "8", kind="other")
    assert [job.id for job in jobs.list("plan")] == [second.id, first.id]
    assert [job.id for job in jobs.list("other")] == [other.id]
    for job in (first, second, other):
        ended(jobs, job.id)
    for _ in range(KEPT):
        (jobs.prepare("plan") / "job.json").write_text('{"kind": "plan", "title": "t", "started": 0, "pid": 0}')
    third = start(jobs, "plan", "--labels", "5", "--vram", "8")
    kept = [job.id for job in jobs.list("plan")]
    assert third.id == kept[0] and len(kept) == KEPT and first.id not in kept
    ended(jobs, third.id)


def test_what_ended_can_be_removed_and_nothing_else(jobs):
    job = start(jobs, "plan", "--labels", "5", "--vram", "8")
    ended(jobs, job.id)
    jobs.remove(job.id)
    for id in (job.id, "../jobs", "", "/etc"):
        with pytest.raises(ConfigError):
            jobs.get(id)


def test_last_lines_skip_what_a_bar_wrote_over(tmp_path):
    file = tmp_path / "t"
    assert last_lines(file, 3) == []
    file.write_bytes(b"x" * 100_000 + b"\nfirst\n 10%\r 50%\r100%\n\nlast\xff")
    assert last_lines(file, 3) == ["first", "100%", "last\ufffd"]
