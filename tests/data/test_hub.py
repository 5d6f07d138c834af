"""Datasets of the library `datasets`: saved folders, and what a hub would give."""

import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cli import main
from engine.data.importers import import_dataset
from engine.data.problems import Problems
from engine.data.table_readers import TableColumns
from engine.errors import DataError, EnvironmentProblem

ROWS = {"text": ["one", "two", " ", "four"], "labels": [["a", "b"], [], ["a"], None]}


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


def sets(dataset, split):
    names = dataset.label_names()
    return [{names[i] for i in split.labels.row(row)} for row in range(len(split))]


def test_a_saved_dataset_of_several_splits_is_imported(datasets, tmp_path):
    part = datasets.Dataset.from_dict({"text": ["five"], "labels": [["c"]]})
    whole = datasets.DatasetDict(train=datasets.Dataset.from_dict(ROWS), test=part, validation=part)
    whole.save_to_disk(str(tmp_path / "saved"))
    problems = Problems()
    dataset = import_dataset(tmp_path / "saved", tmp_path / "out", problems=problems)
    assert list(dataset.train.texts()) == ["one", "two", "four"]
    assert sets(dataset, dataset.train) == [{"a", "b"}, set(), set()]
    assert sets(dataset, dataset.test) == [{"c"}]
    assert problems.first() == f"{tmp_path / 'saved' / 'train'}:3: empty text; remove the instance or give it a text"
    assert dataset.meta["details"]["not_read"] == ["validation"]
    assert dataset.name == "saved"


def test_a_saved_split_alone_is_the_training_set(datasets, tmp_path):
    rows = datasets.Dataset.from_dict({"title": ["A"] * 300, "body": ["b"] * 300, "tags": ["x;y"] * 300})
    rows.select(range(299, -1, -1)).save_to_disk(str(tmp_path / "saved"))
    columns = TableColumns(("title", "body"), "tags")
    dataset = import_dataset(tmp_path / "saved", tmp_path / "out", columns=columns, test_fraction=0)
    assert list(dataset.train.texts()) == ["A. b"] * 300
    assert sets(dataset, dataset.train)[299] == {"x", "y"}
    assert dataset.meta["details"]["delimiter"] == ";"


@pytest.mark.parametrize("several", [True, False])
def test_numbers_with_names_become_names(datasets, tmp_path, several):
    kind = datasets.ClassLabel(names=["cat", "dog"])
    features = {"text": datasets.Value("string"), "labels": datasets.Sequence(kind) if several else kind}
    labels = [[0, 1], [1]] if several else [0, 1]
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": labels}, features=datasets.Features(features))
    rows.save_to_disk(str(tmp_path / "saved"))
    dataset = import_dataset(tmp_path / "saved", tmp_path / "out", test_fraction=0)
    assert sets(dataset, dataset.train) == ([{"cat", "dog"}, {"dog"}] if several else [{"cat"}, {"dog"}])


def test_a_folder_of_a_hub_is_read_as_the_library_reads_it(datasets, tmp_path):
    (tmp_path / "repository" / "small").mkdir(parents=True)
    datasets.Dataset.from_dict(ROWS).to_parquet(str(tmp_path / "repository" / "small" / "train-0.parquet"))
    dataset = import_dataset(tmp_path / "repository", tmp_path / "out", format="hub", test_fraction=0)
    assert list(dataset.train.texts()) == ["one", "two", "four"]


def test_a_folder_of_parquet_files_needs_no_library(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(ROWS), tmp_path / "data" / "train-00000-of-00001.parquet")
    assert len(import_dataset(tmp_path, tmp_path / "out", test_fraction=0).train) == 3


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / "saved" / name).write_text("{}")
    with pytest.raises(EnvironmentProblem, match=r"pip install 'fanin\[hub\]'"):
        import_dataset(tmp_path / "saved", tmp_path / "out")
    assert main(["data", "import", "somebody/something", "--format", "hub", "--output", str(tmp_path / "out")]) == 5
    assert "fanin[hub]" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"_data_files": [{"filename": "../../etc/passwd"}]}'])
def test_a_damaged_saved_dataset_is_refused(datasets, tmp_path, content):
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text(content)
    with pytest.raises(DataError, match="not readable as a saved dataset") as caught:
        import_dataset(folder, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_texts_that_end_behind_the_file_are_refused(datasets, tmp_path):
    """Arrow would read whatever memory lies there."""
    datasets.Dataset.from_dict({"text": ["one", "three"], "labels": ["a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    (file,) = (tmp_path / "saved").glob("*.arrow")
    content, ends = file.read_bytes(), np.array([0, 3, 8], "<i4").tobytes()
    assert content.count(ends) == 1
    file.write_bytes(content.replace(ends, np.array([0, 3, 2**30], "<i4").tobytes()))
    with pytest.raises(DataError, match=r"\.arrow: damaged, not readable as Arrow \(.*\); save it again") as caught:
        import_dataset(tmp_path / "saved", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    size=st.just(1.0) | st.floats(0, 1),
)
def test_a_damaged_arrow_file_ends_in_one_line_or_in_a_dataset(datasets, tmp_path, changes, size):
    saved = tmp_path / "saved"
    if not saved.exists():
        datasets.Dataset.from_dict({key: values * 30 for key, values in ROWS.items()}).save_to_disk(str(saved))
        (tmp_path / "whole").write_bytes(next(saved.glob("*.arrow")).read_bytes())
    content = bytearray((tmp_path / "whole").read_bytes())
    for place, change in changes:
        at = round(place * len(content))
        content[at : at + len(change)] = change
    next(saved.glob("*.arrow")).write_bytes(content[: round(size * len(content))])
    said = ""
    try:
        import_dataset(saved, tmp_path / "out", test_fraction=0, overwrite=True)
    except DataError as error:
        said = str(error)
    assert "\n" not in said
    assert {entry.name for entry in tmp_path.iterdir()} <= {"saved", "whole", "out"}


def test_tables_beside_a_file_of_such_a_name_are_tables(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "train.csv").write_text("text,labels\na,b\n")
    assert import_dataset(tmp_path, tmp_path / "out", test_fraction=0).meta["details"]["format"] == "csv"


def test_a_name_that_no_hub_gives_is_refused(datasets, tmp_path, capsys):
    assert main(["data", "import", "no/such:thing", "--format", "hub", "--output", str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err
    assert "no/such:thing: not readable as a dataset of a hub" in error
    assert "Traceback" not in error


def test_columns_that_are_missing_are_named(datasets, tmp_path):
    datasets.Dataset.from_dict({"sentence": ["a"], "label": [1]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"train: no column 'text'; found 'sentence', 'label'"):
        import_dataset(tmp_path / "saved", tmp_path / "out")
