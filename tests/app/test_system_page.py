"""The page System: what `engine doctor` says, the folders in use, a report to copy."""

import re

import pytest
from app_process import serve, stop

from app.jobs import Jobs
from app.system_view import findings, folders, gauges, headline
from app.workspace import Workspace

GIB = 2**30
GPU = {"index": 0, "name": "<b>Card</b>", "total_bytes": 8 * GIB, "free_bytes": 6 * GIB}
BROKEN = {
    "works": False,
    "works_on_cpu": True,
    "device": None,
    "gpus": [],
    "driver": {"version": "1", "gpus": [GPU]},
    "memory": {"total": 32 * GIB, "usable": 16 * GIB, "free": 4 * GIB},
    "disk": {"runs": "/runs", "total": 100 * GIB, "free": 25 * GIB},
    "findings": [
        {"what": "gradio is old", "fix": "", "blocks": False},
        {"what": "torch does not see <i>the card</i>", "fix": "pip install 'torch<3'", "blocks": True},
    ],
}


def test_what_blocks_comes_first_with_its_command_and_nothing_is_markup():
    shown = findings(BROKEN)
    assert shown.index("torch does not see") < shown.index("gradio is old")
    assert "<code>pip install &#x27;torch&lt;3&#x27;</code>" in shown
    assert "<i>" not in shown and shown.count('class="copy"') == 1
    assert findings({"findings": []}) == ""


def test_gauges_show_what_is_used():
    shown = gauges(BROKEN)
    assert re.findall(r'aria-valuenow="(\d+)"', shown) == ["25", "75", "75"]
    assert "6.00 GiB free" in shown and "&lt;b&gt;Card" in shown
    assert gauges(BROKEN | {"driver": None, "memory": None, "disk": None}) == ""


def test_the_headline_says_whether_training_works_and_what_is_going_on():
    assert "not ready" in headline(BROKEN, "", False) and "--device cpu" in headline(BROKEN, "", False)
    works = BROKEN | {"works": True, "gpus": [GPU], "device": "cuda"}
    assert "Training works on this machine, on &lt;b&gt;Card" in headline(works, "", False)
    assert "ten to thirty seconds" in headline(None, "", True)
    assert "it crashed" in headline(None, "it crashed", False)


def test_folders_in_use_are_measured(tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "file").write_bytes(bytes(3 * 2**20))
    shown = folders(Workspace(tmp_path / "runs", tmp_path / "datasets"))
    assert "3 MiB in 1 file" in shown and "not made yet" in shown


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def address(place):
    process, address = serve(place / "runs", "--datasets", str(place / "datasets"), cwd=place)
    yield address
    stop(process)


def test_the_machine_is_shown_and_looked_at_again(browser, address, place):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(address)
    page.get_by_role("tab", name="System").click()
    table = page.locator("#doctor table")
    table.wait_for()
    assert re.search(r"✓\s*works\s+processor", table.inner_text())
    assert page.locator("#verdict").get_by_text("ready").count() == 1
    assert str(place / "runs") in page.locator("#folders").inner_text()
    page.get_by_role("button", name="Report to copy").click()
    report = page.locator("#report textarea")
    report.wait_for()
    assert "READY" in report.input_value() and "torch" in report.input_value()
    assert not Jobs(place / "runs" / ".jobs").list("doctor"), "its answer is kept by the interface"
    again = page.get_by_role("button", name="Look again")
    assert again.is_enabled()
    again.click()
    page.get_by_text("Looking at this machine").wait_for()
    assert again.is_disabled() and table.is_visible()
    page.reload()
    page.get_by_role("tab", name="System").click()
    page.get_by_text("Looking at this machine").wait_for()
    page.close()
