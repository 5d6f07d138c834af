"""The page that asks models, as its users meet it, and what it is made of."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from app_process import serve, stop
from app_runs import LABELS, RANKING, make_run, save_bundle_of

from tiny import write_dataset

DONE = "20260101-000000-done"
TRAIN = [(f"text {i} of label {i % 6}", [i % 6]) for i in range(20)] + [("the <i>only</i> text of two", [0, 1])]


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_encoder):
    folder = tmp_path_factory.mktemp("predict")
    dataset = write_dataset(folder / "data", TRAIN, [("a test text to try", [1]), ("another one", [2])], labels=6)
    root = folder / "runs"
    done = make_run(root, DONE, "completed", 10, 10, "best at step 9", {"P@1": 0.735})
    done.write_json("config.json", {"config": {"data.path": str(dataset)}})
    save_bundle_of(tiny_encoder, done.model)
    make_run(root, "20260102-000000-bare", "stopped", 4, 10, "stopped on request")
    # This very process writes its status, so it counts as running.
    live = make_run(root, "20260104-000000-live", "training", 250, 1000, "epoch 3 of 10")
    shutil.copytree(done.model, live.model)
    return root


@pytest.fixture(scope="module")
def address(root):
    process, address = serve(root, cwd=root.parent)
    yield address
    stop(process)


@pytest.fixture(scope="module")
def client(address):
    from gradio_client import Client

    client = Client(address, verbose=False)
    yield client
    client.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(address)
    page.get_by_role("tab", name="Predict").click()
    page.locator("#examples button").first.wait_for()
    yield page
    page.close()
    assert errors == []


# The API


def test_client_asks_a_model(client):
    found = client.predict(DONE, "open a file", 3, api_name="/predict")
    assert list(found) == RANKING[:3]
    assert all(0 < probability < 1 for probability in found.values())


def test_labels_below_the_threshold_are_left_out(client):
    found = client.predict(run=DONE, text="open a file", k=6, threshold=0.5, api_name="/predict")
    assert 0 < len(found) < 6
    assert all(probability >= 0.5 for probability in found.values())


@pytest.mark.parametrize(
    ("run", "text", "message"),
    [
        ("20260101-000000-done", "  ", "type a text"),
        ("20260102-000000-bare", "a", "has no model"),
        ("20260104-000000-live", "a", "still training"),
        ("../20260101-000000-done", "a", "not there any more"),
        ("/etc", "a", "not there any more"),
        ("", "a", "choose a run"),
    ],
)
def test_client_is_told_what_is_wrong(client, run, text, message):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=message):
        client.predict(run, text, 3, api_name="/predict")


# In a browser


def answers(page):
    return page.locator("#answer .label").all_inner_texts()


def test_labels_appear_as_the_text_is_typed(page):
    box = page.get_by_label("Model of the run")
    assert box.input_value() == f"{DONE} (completed, P@1 73.5 %)"
    page.get_by_label("Text to label").press_sequentially("open")
    page.locator("#answer button").nth(4).wait_for()
    assert answers(page) == RANKING[:5]
    assert "in 1 training text" in page.locator("#answer").inner_text()
    page.get_by_label("number input for How many labels to show").fill("2")
    page.wait_for_function("document.querySelectorAll('#answer button').length == 2")
    page.get_by_label("number input for Lowest probability to show").fill("0.99")
    page.get_by_text("lower the threshold").wait_for()
    page.get_by_text("The same in code").click()
    code = page.locator("#predict-code").inner_text()
    assert f"run='{DONE}'" in code and "threshold=0.99" in code and " open -k 2" in code


def test_a_keyboard_alone_tries_an_example_and_sees_the_texts_behind_a_label(page):
    page.locator("#examples button").first.press("Enter")
    page.locator("#answer button").first.wait_for()
    assert page.get_by_label("Text to label").input_value() == "a test text to try"
    page.locator("#answer button").nth(RANKING.index(LABELS[1])).press("Enter")
    texts = page.locator("#learned-from li")
    texts.first.wait_for()
    assert texts.all_inner_texts() == [text for text, labels in TRAIN if 1 in labels][:5]


def test_a_file_is_labelled_whatever_happens_to_the_page_and_its_labels_are_downloaded(page, tmp_path):
    page.get_by_role("button", name="Label this file").click()
    page.get_by_text("Choose a file first").wait_for()
    table = tmp_path / "my texts.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([["id", "words"], *([i, f"open file {i}"] for i in range(40))])
    page.locator("#texts-file input[type=file]").set_input_files(table)
    column = page.get_by_label("Column with the texts")
    column.wait_for()
    assert column.input_value() == "words"
    page.get_by_role("button", name="Label this file").click()
    page.locator("#batch .chip").wait_for()
    page.reload()
    page.get_by_role("tab", name="Predict").click()
    page.locator("#batch .chip.done").wait_for()
    button = page.get_by_role("link", name="Download the labels").or_(
        page.get_by_role("button", name="Download the labels")
    )
    with page.expect_download() as download:
        button.first.click()
    assert download.value.suggested_filename == "my_texts-labels.jsonl"
    rows = [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == [f"open file {i}" for i in range(40)]
    assert [entry["label"] for entry in rows[0]["labels"]] == RANKING[:5]
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("Files that were labelled are listed here").wait_for()


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    page.get_by_label("More tabs").click()
    page.get_by_role("button", name="Predict").or_(page.get_by_role("tab", name="Predict")).last.click()
    page.get_by_label("Text to label").fill("open a file")
    page.locator("#answer button").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


# Whole files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,words\n1,one\n", "a.csv:1: no column 'text' among 'id', 'words'; choose another column"),
        ("a.txt", "\n", "a.txt:1: empty text"),
        ("a.txt", "", "a.txt has no texts"),
        ("a.jsonl", "{\n", "a.jsonl:1: not JSON"),
        ("a.parquet", "x", "cannot read .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_before_anything_starts(root, tmp_path, name, content, message):
    from app.batches import start
    from app.jobs import Jobs
    from app.models import Models
    from engine.errors import DataError

    (tmp_path / name).write_text(content)
    jobs = Jobs(tmp_path / "jobs")
    with pytest.raises(DataError, match=re.escape(message)) as error:
        start(jobs, Models(root).run(DONE), str(tmp_path / name), None, 5)
    assert str(tmp_path) not in str(error.value)
    assert list(jobs.root.iterdir()) == []


def test_the_column_with_the_longest_text_comes_first(tmp_path):
    from app.batches import columns

    for name, content in (
        ("a.csv", "id,title,body\n12345,short,much longer than that\n"),
        ("a.jsonl", '{"id": 7, "title": "short", "body": "much longer than that"}\n'),
    ):
        (tmp_path / name).write_text(content)
        found = columns(tmp_path / name)
        assert (found[0], "title" in found) == ("body", True)
    for separator in ";\t|":
        (tmp_path / "a.csv").write_text(f'id{separator}body\n1{separator}"two\nlines"\n')
        assert columns(tmp_path / "a.csv") == ["body", "id"]
    (tmp_path / "a.txt").write_text("id,title\n")
    assert columns(tmp_path / "a.txt") == []


def test_the_same_file_is_offered_under_the_same_name(tmp_path, monkeypatch):
    from app.downloads import offered

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    file = tmp_path / "elsewhere" / "labels.jsonl"
    file.parent.mkdir()
    file.write_text("{}\n")
    first = offered(file)
    assert first == offered(file)
    assert first.startswith(str(tmp_path / "served")) and Path(first).read_text() == "{}\n"


# What the models have learned from


def test_a_dataset_that_went_away_is_named(root, tmp_path):
    from app.answers import example_texts, training_texts
    from engine.errors import DataError
    from engine.runs import RunDirectory

    shutil.copytree(root / DONE, tmp_path / DONE)
    run = RunDirectory(tmp_path / DONE)
    run.write_json("config.json", {"config": {"data.path": str(tmp_path / "gone")}})
    with pytest.raises(DataError, match="gone, which this model has learned from, is not there any more"):
        training_texts(run, 0)
    assert example_texts(run) == []


def test_what_files_say_is_text_on_the_page():
    from app.answers import bars, example_buttons, training_list
    from app.models import Answer

    for shown in (
        bars([Answer("<b>", 0, 0.5, 1)], 0.0), training_list("<b>", ["<b>"]), example_buttons(["<b>"]),
    ):  # fmt: skip
        assert "&lt;b&gt;" in shown and "<b>" not in shown


# Models in memory


def test_models_are_loaded_once_and_again_when_they_change(root, tmp_path):
    from app.models import MODELS_IN_MEMORY, Models

    shutil.copytree(root, tmp_path / "runs")
    done = tmp_path / "runs" / "20260101-000000-done"
    for number in range(MODELS_IN_MEMORY):
        shutil.copytree(done, tmp_path / "runs" / f"20250101-00000{number}-copy")
    models = Models(tmp_path / "runs")
    models.predict(done.name, "open", 1)
    first = models._load(done / "model")
    assert models._load(done / "model") is first
    os.utime(done / "model" / "model.json", ns=(0, 0))
    second = models._load(done / "model")
    assert second is not first
    for number in range(MODELS_IN_MEMORY):
        models.predict(f"20250101-00000{number}-copy", "open", 1)
    assert len(models._loaded) == MODELS_IN_MEMORY
    assert models._load(done / "model") is not second


def test_a_damaged_model_is_reported(root, tmp_path):
    from app.models import Models
    from engine.errors import EngineError

    for name in ("model.json", "labels.parquet", "classifier.safetensors", "encoder"):
        run = tmp_path / name / "20260101-000000-done"
        shutil.copytree(root / "20260101-000000-done", run)
        victim = run / "model" / name
        shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
        with pytest.raises(EngineError):
            Models(tmp_path / name).predict(run.name, "open", 1)
