"""The whole story in a browser: data, plan, training, stop, resume, questions, comparison, whole files; and what goes
wrong on the way."""

import json
import os
import re
import shutil
import signal
import time

import pytest
from app_process import serve, stop

from engine.data.manifest import read_manifest
from engine.runs import list_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_dataset):
    folder = tmp_path_factory.mktemp("story")
    shutil.copytree(tiny_dataset, folder / "datasets" / "tiny")
    return folder


@pytest.fixture(scope="module")
def serve_story(folder, tiny_encoder):
    options = ["--datasets", str(folder / "datasets"), "--encoders", str(tiny_encoder.parent)]
    return lambda: serve(folder / "runs", *options, cwd=folder, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")


@pytest.fixture(scope="module")
def server(folder, serve_story):
    process, address = serve_story()
    now = [process, address]
    yield now
    stop(now[0])
    for run in list_runs(folder / "runs"):  # trainings outlive the interface, also that of a test that failed
        if run.active:
            os.kill(json.loads((run.path / "status.json").read_text())["pid"], signal.SIGKILL)


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(server[1])
    yield page
    page.close()
    assert errors == []


def open_page(page, name):
    page.get_by_role("tab", name=name).first.click()
    page.get_by_role("tab", name=name, selected=True).first.wait_for()


def choose(page, label, option):
    """Picks an option of a dropdown."""
    page.get_by_label(label).filter(visible=True).first.click()
    page.get_by_role("option", name=option).first.click()


def field(page, key):
    return page.locator(f"#set-{key.replace('.', '-')}").locator("input, textarea").first


def pick(page, key, option):
    field(page, key).click()
    page.get_by_role("option", name=option).first.click()


def fill_in(page, encoder, name, data="tiny", **settings):
    """The form of a training that takes seconds on a tiny encoder."""
    if not page.get_by_role("button", name="Start training").is_visible():
        page.get_by_role("button", name="New training").click()
    pick(page, "data.path", re.compile(f"^{data}"))
    pick(page, "profile", re.compile("^cpu$"))
    values = {
        "run.name": name, "encoder.name": encoder, "data.max_tokens": 16, "classifier.fan_in": 8, "training.epochs": 2,
        **settings,
    }  # fmt: skip
    for key, value in values.items():
        field(page, key).fill(str(value))


def watch(page, run):
    page.locator("#run input").click()
    page.get_by_role("option", name=re.compile(run)).click()


def shown(page, run, text):
    """Of a run, at the top of what the page Train shows."""
    page.locator("#run-head", has_text=f"-{run}").get_by_text(text).first.wait_for()


def test_data_plan_training_questions(page, server, serve_story, folder, tiny_encoder):
    # The built-in corpus
    open_page(page, "Data")
    page.get_by_role("button", name="Use the built-in corpus").click()
    page.locator("#origin").get_by_text("python-stdlib").wait_for()
    labels = f"{read_manifest(folder / 'datasets' / 'python-stdlib')[0]['n_labels']:,} labels"
    page.locator("#about").get_by_text(labels.split()[0]).first.wait_for()
    # What fits
    page.get_by_role("button", name="Plan with this data").click()
    page.get_by_text("Predicted memory at its peak").wait_for()
    page.get_by_label("Features a label reads (fan-in)").click()
    page.get_by_role("option", name="64", exact=True).click()
    page.locator("#plan").get_by_text("64 of 384").wait_for()
    page.locator("#plan-commands").get_by_text("--set classifier.fan_in=64").first.wait_for()
    page.get_by_role("button", name="Train with these settings").click()
    # A training, watched over a reload
    page.get_by_role("button", name="Start training").wait_for()
    assert field(page, "data.path").input_value().startswith("Python API finder, standard")
    assert field(page, "classifier.fan_in").input_value() == "64"
    fill_in(page, tiny_encoder.name, "first", "Python API finder, standard", **{"training.epochs": 40_000})
    page.get_by_text(f"{labels}: fan-in 8 of 32").wait_for()
    page.get_by_role("button", name="Start training").click()
    shown(page, "first", re.compile("step [1-9].* of "))
    (run,) = list_runs(folder / "runs")
    assert run.state == "training" and run.id.endswith("first")
    page.reload()
    page.get_by_role("tab", name="Train", selected=True).first.wait_for()
    shown(page, "first", run.id)
    shown(page, "first", re.compile("step .* left"))
    page.get_by_role("img", name="Texts a second").wait_for()
    # The interface ends and comes back; the training does not notice
    stop(server[0])
    time.sleep(0.5)
    assert list_runs(folder / "runs")[0].active
    server[:] = serve_story()
    page.goto(server[1])
    open_page(page, "Train")
    shown(page, "first", re.compile("step .* left"))
    # A second training waits for its turn
    fill_in(page, tiny_encoder.name, "second", **{"classifier.fan_in": 16})
    page.get_by_role("button", name="Start training").click()
    shown(page, "second", re.compile("Waiting for .*first to finish"))
    page.get_by_role("button", name="Stop waiting").wait_for()
    assert not page.get_by_role("button", name="Start training").is_visible(), "the form makes room for the run"
    # Stop and save, then go on; the second takes its turn meanwhile
    watch(page, "first")
    page.get_by_role("button", name="Stop and save").click()
    shown(page, "first", re.compile("Stopped at step .* and saved"))
    stopped = next(run for run in list_runs(folder / "runs") if run.id.endswith("first"))
    watch(page, "second")
    shown(page, "second", "completed")
    watch(page, "first")
    page.get_by_role("button", name="Resume").click()
    shown(page, "first", re.compile("step .* left"))
    resumed = next(run for run in list_runs(folder / "runs") if run.id.endswith("first"))
    assert resumed.step >= stopped.step > 0
    page.get_by_role("button", name="Stop and save").click()
    shown(page, "first", re.compile("Stopped at step .* and saved"))
    # Questions
    open_page(page, "Predict")
    choose(page, "Model of the run", re.compile("second"))
    page.get_by_label("Text to label").fill("the quick file open")
    page.locator("#answer").get_by_text("label-").first.wait_for()
    assert "%" in page.locator("#answer").inner_text()
    # Comparison
    open_page(page, "Runs")
    for name in ("first", "second"):
        page.locator(f"[data-run$={name}]").click()
        page.get_by_text("Settings that were chosen" if name == "first" else "Settings that differ").wait_for()
    differing = page.locator("tr.differs")
    assert "classifier.fan_in" in differing.all_inner_texts()[0] or any(
        "classifier.fan_in" in text for text in differing.all_inner_texts()
    )
    # A whole file
    (folder / "texts.txt").write_text("open a file\nread a date\n")
    open_page(page, "Predict")
    page.locator("input[type=file]").last.set_input_files(folder / "texts.txt")
    page.get_by_role("button", name="Label this file").click()
    with page.expect_download() as download:
        page.get_by_text("Download the labels").click()
    lines = download.value.path().read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["open a file", "read a date"]


def test_a_killed_training_is_failed_with_its_last_words(page, folder, tiny_encoder):
    open_page(page, "Train")
    fill_in(page, tiny_encoder.name, "killed", **{"training.epochs": 40_000})
    page.get_by_role("button", name="Start training").click()
    shown(page, "killed", re.compile("step [1-9].* of "))
    run = next(run for run in list_runs(folder / "runs") if run.id.endswith("killed"))
    os.kill(json.loads((run.path / "status.json").read_text())["pid"], signal.SIGKILL)
    page.locator("#run-head", has_text="-killed").get_by_text("failed").first.wait_for()
    shown(page, "killed", "The process ended while training, without a word")
    page.get_by_text("Last words of the process").wait_for()
    assert page.get_by_role("button", name="Resume").is_visible()


def start_in_vain(page):
    """Its answer is waited for: the form is read a moment after the click."""
    page.get_by_role("button", name="Start training").click()
    page.locator("#train-said .problem").get_by_text("Not started: ").wait_for()


def test_what_cannot_be_is_said_where_it_is_before_anything_starts(page, folder, tiny_encoder):
    before = len(list_runs(folder / "runs"))
    open_page(page, "Train")
    fill_in(page, tiny_encoder.name, "none", **{"training.epochs": -4, "training.batch_size": "ten"})
    page.get_by_text("⚠ -4 must be at least 1").wait_for()
    page.get_by_text("⚠ 'ten' must be a whole number").wait_for()
    start_in_vain(page)
    field(page, "training.epochs").fill("2")
    page.get_by_text("⚠ -4 must be at least 1").wait_for(state="detached")
    field(page, "training.batch_size").fill("")
    field(page, "encoder.name").fill(str(tiny_encoder))
    page.get_by_text("is no name of a model").first.wait_for()
    start_in_vain(page)
    field(page, "encoder.name").fill(tiny_encoder.name)
    page.get_by_text("is no name of a model").first.wait_for(state="detached")
    page.get_by_role("button", name="All other settings").click()
    page.get_by_role("button", name="Hardware").click()
    field(page, "hardware.memory_gib").fill("0.6")  # less than torch alone takes
    advice = page.locator("#train-said .problem")
    advice.get_by_text("GiB").wait_for()
    start_in_vain(page)
    assert len(list_runs(folder / "runs")) == before


def test_a_run_is_deleted_after_a_question(page, folder):
    open_page(page, "Runs")
    page.locator("[data-run$=killed]").click()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="No, keep it").click()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Yes, delete it").click()
    page.locator("[data-run$=killed]").wait_for(state="detached")
    assert not [run for run in list_runs(folder / "runs") if run.id.endswith("killed")]


def test_a_model_is_packed_and_downloaded(page, folder, tmp_path):
    import zipfile

    open_page(page, "Runs")
    page.locator("[data-run$=second]").click()
    page.get_by_role("button", name="Pack the model").click()
    page.locator("#download-model").wait_for()
    with page.expect_download() as download:
        page.locator("#download-model").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    (folder_of_model,) = tmp_path.iterdir()
    from engine.inference.predictor import Predictor

    assert Predictor.load(folder_of_model).predict(["open a file"], k=1)[0]


def test_the_keyboard_alone_starts_a_training(page, folder, tiny_encoder):
    """From the top of the page with Tab, arrows, typing and Enter."""
    page.get_by_role("tab", name="Train").first.focus()
    page.keyboard.press("Enter")
    page.get_by_label("Name of the run").wait_for(state="attached")
    reach(page, "New training", "Start training")
    settings = {
        "run.name": "by-hand", "training.epochs": 1, "classifier.fan_in": 8, "data.max_tokens": 16,
        "encoder.name": tiny_encoder.name,
    }  # fmt: skip
    for key, value in settings.items():
        reach_field(page, key)
        page.keyboard.type(str(value))
    reach(page, "Start training")
    page.keyboard.press("Enter")
    shown(page, "by-hand", "completed")


def test_the_keyboard_alone_asks_a_model(page):
    page.get_by_role("tab", name="Predict").first.focus()
    page.keyboard.press("Enter")
    box = page.get_by_label("Text to label")
    box.wait_for()
    page.wait_for_function("document.querySelector('#model input').value.includes('by-hand')")
    for _ in range(20):
        page.keyboard.press("Tab")
        if box.evaluate("field => field === document.activeElement"):
            break
    else:
        raise AssertionError("Tab does not reach the text")
    page.keyboard.type("the quick file open", delay=20)
    page.locator("#answer button").first.wait_for()


def reach(page, *names):
    """Moves on with Tab until a button of one of these names is in focus."""
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText || ''").strip() in names:
            return
    raise AssertionError(f"Tab does not reach {names}")


def reach_field(page, key):
    for _ in range(60):
        page.keyboard.press("Tab")
        if field(page, key).evaluate("field => field === document.activeElement"):
            return
    raise AssertionError(f"Tab does not reach {key}")
