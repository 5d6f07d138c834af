"""What the page Data says of a dataset, without a browser."""

import csv

import pytest

from app.data_view import warnings
from engine.data.importers import import_dataset
from engine.data.inspection import inspect
from engine.data.table_readers import TableColumns


@pytest.fixture
def said(tmp_path):
    """A function of the rows of a training and a test table, and a delimiter: the warnings about their dataset."""

    def say(train, test, delimiter=None) -> list[str]:
        for name, rows in (("train", train), ("test", test)):
            with open(tmp_path / f"{name}.csv", "w", newline="") as stream:
                csv.writer(stream).writerows([("text", "labels"), *rows])
        dataset = import_dataset(tmp_path, tmp_path / "out", columns=TableColumns(delimiter=delimiter))
        return list(warnings(inspect(dataset), dataset.meta))

    return say


def test_texts_without_labels_are_skipped_and_not_scored(said):
    found = said([("one", "a;b"), ("two", "")], [("three", "a"), ("four", "")])
    assert "Without any label: 1 training text (50.0 %). Training skips them." in found
    assert "Without any label: 1 test text (50.0 %). The scores leave them out." in found


def test_a_delimiter_that_no_field_has_is_worth_knowing(said):
    found = said([("one", "a,b")], [("two", "a")], delimiter=";")
    assert any(line.startswith("No field of labels has the sign ';'") for line in found)
