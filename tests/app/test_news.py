"""How an open page learns of news, and that it rests where there are none."""

import shutil
import time
import urllib.request
from itertools import pairwise
from types import SimpleNamespace
from unittest import mock

import pytest
from app_process import serve, stop
from app_runs import make_run

from app.frames import SCRIPT, SlowFrames
from app.history import Histories
from app.jobs import Jobs
from app.news import ANYWAY_SECONDS, ASK_SECONDS, stamp
from app.runlist import STARTING_SECONDS, RunList
from app.shared import Shared
from app.workspace import Workspace
from engine.config import resolve
from engine.data.store import DatasetWriter
from engine.training.new_run import create_run


@pytest.fixture
def shared(tmp_path):
    workspace = Workspace(tmp_path / "runs", tmp_path / "datasets", tmp_path / "encoders")
    jobs = Jobs(workspace.jobs)
    machine = SimpleNamespace(asking=False, report=None, problem="")
    return Shared(workspace, jobs, machine, RunList(workspace.runs), Histories())


def fresh(shared, now=0.0):
    shared.runs.forget()
    return stamp(shared, now)


def test_where_nothing_happens_the_stamp_stays_for_a_while(shared):
    make_run(shared.workspace.runs, "20260101-000000-mine", "completed", 10, 10)
    assert fresh(shared) == fresh(shared, ANYWAY_SECONDS - 1) != fresh(shared, ANYWAY_SECONDS + 1)


def test_a_training_is_looked_at_as_often_as_it_is_asked_for(shared):
    run = make_run(shared.workspace.runs, "20260101-000000-mine", "training", 5, 10)
    assert fresh(shared) != fresh(shared, ASK_SECONDS)
    run.status("completed", 10, 10)
    assert fresh(shared) == fresh(shared, ASK_SECONDS)


def test_whatever_pages_show_changes_the_stamp(shared):
    runs, seen = shared.workspace.runs, [fresh(shared)]
    run = make_run(runs, "20260101-000000-mine", "stopped", 5, 10)
    seen.append(fresh(shared))
    run.status("failed", 5, 10, "ran out of memory")
    seen.append(fresh(shared))
    run.model.mkdir()
    (run.model / "model.json").write_text("{}")
    run.status("failed", 5, 10, "ran out of memory")
    seen.append(fresh(shared))
    shutil.rmtree(run.path)
    seen.append(fresh(shared))
    dataset = shared.workspace.datasets / "mine"
    with DatasetWriter(dataset, "mine", {}) as writer:
        writer.add("train", "0", "a text", [0])
        writer.finish(["a label"])
    seen.append(fresh(shared))
    shutil.rmtree(dataset)
    shared.machine.asking = True
    seen.append(fresh(shared))
    shared.machine.report = {}
    seen.append(fresh(shared))
    assert all(before != after for before, after in pairwise(seen))


def test_a_job_changes_it_when_it_begins_when_it_ends_and_when_it_goes(shared):
    seen = [fresh(shared)]
    job = shared.jobs.start(shared.jobs.prepare("import"), "looking", ["runs", "list", "--output", "nowhere"])
    assert fresh(shared) != fresh(shared, ASK_SECONDS)
    seen.append(fresh(shared))
    while shared.jobs.get(job.id).state == "running":
        time.sleep(0.05)
    seen.append(fresh(shared))
    assert seen[-1] == fresh(shared, ASK_SECONDS)
    shared.jobs.remove(job.id)
    assert fresh(shared) == seen[0] and len({*seen}) == 3


def test_only_the_page_itself_is_changed_on_its_way():
    page, sent = b"<html><head><title>", []

    async def app(scope, receive, send):
        headers = [(b"content-type", b"text/html"), (b"Content-Length", str(len(page)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": page})

    async def send(message):
        sent.append(message)

    for path in ("/", "/config"):
        with pytest.raises(StopIteration):  # nothing in it waits
            SlowFrames(app)({"type": "http", "path": path}, None, send).send(None)
    changed, kept = sent[1]["body"], sent[3]["body"]
    assert changed == b"<html><head>" + SCRIPT.encode() + b"<title>" and kept == page
    assert [int(dict(each["headers"]).get(b"content-length", 0)) for each in sent[::2]] == [len(changed), 0]


def test_an_open_page_sees_a_run_come_and_then_draws_few_frames(tmp_path, browser):
    process, address = serve(tmp_path / "runs", "--datasets", str(tmp_path / "datasets"))
    try:
        page = browser.new_page()
        page.add_init_script(
            "window.drawn = 0; const real = window.requestAnimationFrame.bind(window);"
            "window.requestAnimationFrame = draw => { drawn += 1; return real(draw) }"
        )
        page.goto(address)
        page.get_by_role("tab", name="Runs").click()
        page.get_by_text("No runs in").wait_for()
        make_run(tmp_path / "runs", "20260101-000000-mine", "stopped", 5, 10)
        page.get_by_text("20260101-000000-mine").first.wait_for()
        page.wait_for_function("() => performance.now() - awake > 8000", timeout=60_000)
        before = page.evaluate("drawn")
        page.wait_for_timeout(3000)
        assert page.evaluate("drawn") - before < 60  # where each loop alone would make 180
        page.close()
    finally:
        stop(process)


def test_a_page_says_that_the_interface_has_ended_and_is_loaded_again_by_another(tmp_path, browser):
    make_run(tmp_path / "runs", "20260101-000000-mine", "stopped", 5, 10)
    process, address = serve(tmp_path / "runs", "--datasets", str(tmp_path / "datasets"))
    page = browser.new_page()
    try:
        page.goto(address)
        page.get_by_role("tab", name="Train").click()
        page.get_by_text("step 5 of 10").wait_for()
        page.wait_for_function("() => asking.server")
        stop(process)
        page.wait_for_function("() => document.body.classList.contains('ended')")
        port = int(address.rstrip("/").rpartition(":")[2])
        make_run(tmp_path / "runs", "20260102-000000-new", "training", 7, 10)
        process, _ = serve(tmp_path / "runs", "--datasets", str(tmp_path / "datasets"), port=port)
        page.get_by_text("step 7 of 10").wait_for()
        assert not page.evaluate("document.body.classList.contains('ended')")
    finally:
        page.close()
        stop(process)


def test_a_run_that_was_just_made_is_being_started(shared):
    config, origins = resolve("cpu", {"run.output": str(shared.workspace.runs)}, {})
    create_run(config, "cpu", origins)
    (seen,) = shared.runs()
    assert (seen.state, seen.message, seen.active) == ("preparing", "starting", True)
    shared.runs.forget()
    with mock.patch("app.runlist.time.time", return_value=time.time() + STARTING_SECONDS + 1):
        (seen,) = shared.runs()
    assert seen.state == "stopped"


def test_the_stamp_is_for_those_who_may_see_the_pages(tmp_path):
    (tmp_path / "auth").write_text("me:hunter2\n")
    process, address = serve(tmp_path / "none", "--auth", str(tmp_path / "auth"))
    asked = urllib.request.Request(
        f"{address}gradio_api/run/news", b'{"data": []}', {"Content-Type": "application/json"}
    )
    try:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(asked)
    finally:
        stop(process)
