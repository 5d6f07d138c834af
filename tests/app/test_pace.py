"""How often an open page looks for news: seldom while nothing is going on."""

import gradio as gr
import pytest
from app_runs import make_run

from app.history import Histories
from app.interface import IDLE_SECONDS, PAGES, REFRESH_SECONDS, _now
from app.jobs import Jobs
from app.runlist import RunList
from app.shared import Shared
from app.workspace import Workspace


@pytest.fixture
def shared(tmp_path):
    workspace = Workspace(tmp_path / "runs", tmp_path / "datasets", tmp_path / "encoders")
    jobs = Jobs(workspace.jobs)
    return Shared(workspace, jobs, None, RunList(workspace.runs), Histories())  # whose machine is not looked at


def paces(answer):
    """Seconds that the timers of the pages are set to; empty where they are left alone."""
    return {part.value for part in answer[2:] if isinstance(part, gr.Timer)}


def test_pages_of_an_idle_interface_look_seldom_and_then_are_left_alone(shared):
    first = _now(shared, None)
    assert len(first) == 2 + len(PAGES) and paces(first) == {IDLE_SECONDS}
    assert all(part == gr.skip() for part in _now(shared, first[1]))


def test_a_training_is_followed_closely_and_its_end_for_a_while(shared):
    idle = _now(shared, None)
    run = make_run(shared.workspace.runs, "20260101-000000-mine", "training", 5, 10)
    shared.runs.forget()
    began = _now(shared, idle[1])
    assert paces(began) == {REFRESH_SECONDS}
    run.status("completed", 10, 10)
    shared.runs.forget()
    ended = _now(shared, began[1])
    assert not paces(ended)
    assert paces(_now(shared, ended[1])) == {IDLE_SECONDS}


def test_a_job_is_followed_closely(shared):
    idle = _now(shared, None)
    path = shared.jobs.prepare("import")
    shared.jobs.start(path, "inspecting", ["runs", "list", "--output", str(path)])
    assert paces(_now(shared, idle[1])) == {REFRESH_SECONDS}
