"""The page Data: a table is brought in, looked at, cancelled, deleted; what is wrong is said where it is wrong."""

import json
import re
import time

import pytest
from app_process import serve, stop

from app.bring import _guesses
from app.imports import Choices, Imports, outcome, share
from app.inspections import Inspections
from app.jobs import Jobs
from app.removal import remove_dataset
from app.uploads import look, names, put
from app.workspace import Workspace
from engine.data.commands import add_data
from engine.data.table_readers import TableColumns
from engine.errors import ConfigError, DataError
from engine.runs import RunDirectory

ROWS = ["title;body;tags"] + [f"Text {i};{i} more words;x|label {i % 7}" for i in range(60)]


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "runs", tmp_path / "datasets")


@pytest.fixture
def imports(workspace):
    return Imports(workspace, Jobs(workspace.jobs))


def until(condition):
    """What `condition` says as soon as it says anything."""
    end = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def write_table(path, rows=ROWS):
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


# Files


def test_names_of_uploads_are_harmless_and_those_of_a_pair_are_found():
    assert names(["/tmp/1/../x y$.csv"]) == ["x_y_.csv"]
    assert names(["/tmp/1/.hidden.jsonl.gz"]) == ["hidden.jsonl.gz"]
    assert names(["/a/my_train.v2.csv.gz", "/b/my_test.csv"]) == ["train.csv.gz", "test.csv"]
    assert names(["/a/trn.json.gz", "/b/lbl.json.gz", "/c/tst.json.gz"]) == [
        "trn.json.gz",
        "lbl.json.gz",
        "tst.json.gz",
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "choose a file"),
        (["a/one.csv", "b/two.csv"], "one has to have train"),
        (["a/x.txt", "b/x.txt", "c/y.txt"], "same name"),
        ([f"{i}.txt" for i in range(50)], "command line"),
    ],
)
def test_uploads_that_make_no_dataset_are_refused(files, message):
    with pytest.raises(ConfigError, match=message):
        names(files)


def test_a_look_says_what_the_importer_says_without_our_folders(tmp_path):
    found = look([str(write_table(tmp_path / "mine.csv"))])
    assert found["columns"] == ["title", "body", "tags"]
    (tmp_path / "bad.csv.gz").write_bytes(b"no archive")
    with pytest.raises(DataError) as error:
        look([str(tmp_path / "bad.csv.gz")])
    assert str(error.value).startswith("bad.csv.gz:1: damaged gzip archive")


def test_an_upload_is_put_beside_the_job_and_stays_where_it_was(tmp_path):
    file = write_table(tmp_path / "mine.csv")
    (tmp_path / "files").mkdir()
    assert put([str(file)], tmp_path / "files").read_text() == file.read_text()
    assert put([str(file)], tmp_path / "files").name == "mine.csv" if not file.exists() else True


def test_usual_columns_are_guessed():
    assert _guesses(["id", "Body", "Title"], ("text", "body", "title"), ["title"]) == ["Title", "Body"]
    assert _guesses(["Title", "id"], ("text", "title"), ["title"]) == ["Title"]
    assert _guesses(["id"], ("text",)) == []


# Imports


@pytest.mark.parametrize(
    "name", ["", "  ", "../x", "a/b", ".x", "x.", "a b", "é", "python-api", "Taken", "a" * 80, "-x"]
)
def test_a_name_that_is_no_folder_of_ours_is_refused(imports, workspace, name):
    (workspace.datasets / "taken").mkdir(parents=True)
    with pytest.raises(ConfigError):
        imports.check_name(name)


def test_an_import_is_one_command(tmp_path):
    import argparse

    def command(commands, name, help, run):
        return commands.add_parser(name)

    parser = argparse.ArgumentParser()
    add_data(parser.add_subparsers(), command)
    choices = Choices(("title", "-body"), "tags", "|", 0.25, 7, True)
    options = parser.parse_args(choices.arguments("x.csv", tmp_path, "mine"))
    assert (options.text_column, options.labels_column, options.delimiter) == ("title,-body", "tags", "|")
    assert (options.test_fraction, options.seed, options.strict, options.name) == (0.25, 7, True, "mine")
    options = parser.parse_args(Choices(test_fraction=None).arguments("x", tmp_path, "mine"))
    assert (options.text_column, options.delimiter, options.strict) == ("text", None, False)


def test_progress_is_read_from_the_bar_of_a_log():
    assert share("importing:  45%|####5     | 12/27 [00:10<01:12, 1.2 bytes/s]") == (0.45, 72.0)
    assert share("importing:   0%|          | 0/27 [00:00<?, ? bytes/s]") == (0.0, None)
    assert share("collecting: 3 files [00:01, 2 files/s]") is None


def test_a_second_import_waits_for_the_first_one_which_leaves_no_files(imports, tmp_path):
    file = write_table(tmp_path / "mine.csv")
    first = imports.start([str(file)], "mine", Choices(("title",), "tags"))
    with pytest.raises(ConfigError, match="another import is running"):
        imports.start([str(file)], "other", Choices(("title",), "tags"))
    done = until(lambda: next((job for job in imports.list() if job.state != "running"), None))
    assert (done.id, done.state, outcome(done)) == (first.id, "done", outcome(done))
    assert re.match(r"\d+ training texts, \d+ test texts, 8 labels$", outcome(done))
    imports.list()
    assert not done.files.exists()


def test_a_failed_import_says_the_importers_line(imports, tmp_path):
    imports.start([str(write_table(tmp_path / "mine.csv"))], "mine", Choices(("nothing",), "tags"))
    failed = until(lambda: next((job for job in imports.list() if job.state == "failed"), None))
    assert outcome(failed).startswith("mine.csv:1: no column 'nothing'; found 'title', 'body', 'tags'")


# What is in a dataset


def test_a_dataset_is_inspected_once(workspace, make_named):
    make_named("made")
    inspections = Inspections(workspace, Jobs(workspace.jobs))
    assert inspections.look("made").state == "running"
    look = until(lambda: (found := inspections.look("made")).state == "done" and found)
    assert look.report["labels"] == 8
    assert not inspections.jobs.list("inspect")
    assert Inspections(workspace, Jobs(workspace.jobs)).look("made").report == look.report
    assert not inspections.jobs.list("inspect"), "the second look asks nobody"


def test_an_inspection_that_failed_is_asked_for_again_on_request_only(workspace, make_named):
    (make_named("made") / "train.parquet").write_bytes(b"x")
    inspections = Inspections(workspace, Jobs(workspace.jobs))
    inspections.look("made")
    failed = until(lambda: (found := inspections.look("made")).state == "failed" and found)
    assert "truncated" in failed.words
    assert inspections.look("made").state == "failed"
    assert inspections.look("made", again=True).state == "running"


@pytest.fixture
def make_named(workspace):
    """Makes a dataset of that name in the workspace."""

    def make(name):
        from engine.data.store import DatasetWriter

        with DatasetWriter(workspace.datasets / name, name, {}) as writer:
            for i in range(30):
                writer.add("train", str(i), f"text {i}", [0, 1 + i % 7])
            writer.finish([f"label {i}" for i in range(8)])
        return workspace.datasets / name

    return make


def test_a_dataset_is_deleted_unless_a_run_trains_on_it(workspace, make_named, tmp_path):
    path = make_named("made")
    run = RunDirectory(workspace.runs / "20260101-000000-made")
    run.path.mkdir(parents=True)
    run.write_json("config.json", {"config": {"data.path": str(path)}})
    run.status("training", 1, 10, "")
    with pytest.raises(ConfigError, match=r"20260101-000000-made is training with this dataset"):
        remove_dataset(workspace, "made")
    run.status("stopped", 1, 10, "")
    remove_dataset(workspace, "made")
    assert not path.exists()
    for id in ("made", "../runs", "python-stdlib", ""):
        with pytest.raises(ConfigError):
            remove_dataset(workspace, id)


# In a browser


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def address(place):
    (place / "work").mkdir()
    process, address = serve(place / "runs", "--datasets", str(place / "datasets"), cwd=place / "work")
    yield address
    stop(process)


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(address)
    page.get_by_text("this corpus is not made yet", exact=False).or_(page.locator("#about .tiles")).first.wait_for()
    yield page
    page.close()
    assert errors == []


def upload(page, path):
    box = page.locator("#bring")
    if not page.locator("#upload").is_visible():
        box.get_by_role("button", name="Bring your own").click()
    page.locator("#upload input[type=file]").set_input_files(str(path))
    page.locator("#upload-says p").wait_for()


def test_a_table_is_previewed_imported_and_shown(page, place):
    bad = "Text without all cells;x"
    upload(page, write_table(place / "my papers.csv", [*ROWS, bad, ";;x"]))
    preview = page.locator("#upload-says")
    assert "title" in preview.inner_text() and "Text 4" in preview.inner_text()
    assert page.get_by_label("Column with the labels").input_value() == "tags"
    command = page.locator("#command textarea")
    page.get_by_label("Name of the dataset").fill("papers")
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(t => t.value.includes('--name papers'))")
    assert "--text-column=title,body --labels-column=tags" in command.input_value()
    page.get_by_role("button", name="Import", exact=True).click()
    page.locator("#about .tiles").wait_for()
    assert re.search(r"Training texts\s+5\d\s", page.locator("#about").inner_text())
    assert re.search(r"Labels\s+8\s", page.locator("#about").inner_text())
    assert page.get_by_label("Dataset", exact=True).input_value() == "papers (8 labels)"
    assert "2 rows were left out" in page.locator("#import-progress").inner_text()
    left_out = page.locator("#origin").inner_text()
    assert "wrong number of cells" in left_out and "empty text" in left_out
    assert "label 3" in page.locator("#rows").inner_text()
    before = page.locator("#rows").inner_text()
    page.get_by_role("button", name="Show other rows").click()
    page.wait_for_function("before => document.querySelector('#rows').innerText !== before", arg=before)
    for name in ("Train", "Plan"):  # which opened before this dataset was there
        page.get_by_role("button", name=f"{name} with this data").click()
        page.locator("button[role=tab][aria-selected=true]", has_text=name).wait_for()
        chosen = page.get_by_label("Dataset").filter(visible=True).first
        assert chosen.input_value() == "papers (8 labels)"
        page.get_by_role("tab", name="Data").first.click()


def test_what_is_wrong_is_said_at_its_field_before_anything_starts(page, place):
    started = len(list((place / "runs" / ".jobs").glob("*-import")))
    upload(page, write_table(place / "plain.csv", ["heading,words", "a,b"]))
    problem = page.locator("#columns-problem")
    assert "the column that holds the labels" in problem.inner_text()
    page.get_by_label("Name of the dataset").fill("no/name")
    page.locator("#name-problem").get_by_text("A name has at most").wait_for()
    page.get_by_role("button", name="Import", exact=True).click()
    problem.get_by_text("Choose the column that holds the text").wait_for()
    page.locator("#upload").get_by_role("button", name=re.compile("[Rr]emove|[Cc]lear")).first.click()
    upload(page, write_table(place / "notes.txt", ["a"]))
    page.locator("#upload-says").get_by_text("unknown layout").wait_for()
    assert len(list((place / "runs" / ".jobs").glob("*-import"))) == started


def test_progress_survives_a_reload_and_an_import_can_be_cancelled(page, place):
    words = " ".join(f"word{i}" for i in range(40))
    table = write_table(
        place / "large.csv", ["text,labels", *(f"{i} {words},label {i % 90000}" for i in range(400_000))]
    )
    upload(page, table)
    page.get_by_role("button", name="Import", exact=True).click()
    bar = page.locator("#import-progress [role=progressbar]")
    bar.wait_for()
    page.reload()
    page.get_by_text(re.compile(r"Importing large: \d+ %")).wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.locator("#import-progress").get_by_text("cancelled").first.wait_for()
    assert not [path.name for path in (place / "datasets").iterdir() if path.name.startswith("large")]
    assert page.get_by_role("button", name="Cancel").count() == 0
    page.get_by_role("button", name="Imports so far").click()
    page.locator("#imports").get_by_text("■ cancelled").wait_for()


def test_the_built_in_corpus_is_one_click(page, place):
    page.get_by_role("button", name="Use the built-in corpus").click()
    page.wait_for_function("document.querySelector('#dataset input').value.startsWith('Python API finder, standard')")
    page.locator("#origin").get_by_text("python-stdlib").wait_for()
    report = json.loads(next((place / "work/datasets/python-stdlib/cache").glob("inspection-*.json")).read_text())
    assert f"{report['labels']:,}" in page.locator("#about").inner_text()
    assert not page.get_by_role("button", name="Delete this dataset").is_visible()


@pytest.fixture
def leaving(place):
    """A dataset that was made on the command line."""
    from engine.data.importers import import_dataset

    table = write_table(place / "leaving.csv")
    import_dataset(table, place / "datasets" / "leaving", columns=TableColumns(("title",), "tags"))


def test_a_dataset_goes_on_to_training_or_is_deleted_after_a_question(leaving, page, place):
    page.get_by_label("Dataset", exact=True).click()
    page.get_by_role("option", name="leaving (8 labels)").click()
    page.locator("#rows").get_by_text("label 3").first.wait_for()
    page.get_by_role("button", name="Train with this data").click()
    page.locator("button[role=tab][aria-selected=true]", has_text="Train").wait_for()
    assert "leaving (8 labels)" in page.evaluate("[...document.querySelectorAll('input')].map(input => input.value)")
    page.get_by_role("tab", name="Data").click()
    page.get_by_role("button", name="Delete this dataset").click()
    page.get_by_text("Delete leaving for good?").wait_for()
    assert (place / "datasets" / "leaving").is_dir()
    page.get_by_role("button", name="Yes, delete it").click()
    page.get_by_text("Leaving is deleted").wait_for()
    assert not (place / "datasets" / "leaving").exists()
    page.wait_for_function("!document.querySelector('#dataset input').value.startsWith('leaving')")
