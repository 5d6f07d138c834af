"""Bad rows: left out, counted by kind, listed; or refused."""

import json

import pytest

from engine.data.importers import import_dataset
from engine.data.problems import REPORT, Problems
from engine.errors import DataError

CONTENT = b'text,labels\nfine,a\n ,a\nshort\n"two\nlines, caf\xe9",b\nalso fine,c\nx,y,z\n"bad" quote,d\nlast,a\n'


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "t.csv"
    file.write_bytes(CONTENT)
    return file


def test_bad_rows_are_left_out_counted_and_listed(source, tmp_path):
    problems = Problems()
    dataset = import_dataset(source, tmp_path / "out", problems=problems, test_fraction=0)
    assert list(dataset.train.texts()) == ["fine", "also fine", "last"]
    assert dataset.label_names() == ["a", "c"], "a label of nothing but bad rows is none"
    expected = {"empty text": 1, "wrong number of cells": 2, "not UTF-8": 1, "malformed row": 1}
    assert problems.counts() == dataset.meta["details"]["problems"] == expected
    assert problems.kinds["wrong number of cells"].first == f"{source}:4: 1 cell, but the header has 2"
    listed = [json.loads(line) for line in (dataset.path / REPORT).read_text().splitlines()]
    places = {"empty text": [3], "wrong number of cells": [4, 8], "not UTF-8": [6], "malformed row": [9]}
    for kind, lines in places.items():
        assert [row["where"] for row in listed if row["kind"] == kind] == [f"{source}:{line}" for line in lines]


def test_strictly_the_first_bad_row_is_refused(source, tmp_path):
    with pytest.raises(DataError, match=r"t\.csv:3: empty text"):
        import_dataset(source, tmp_path / "out", problems=Problems(strict=True))
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv"]


def test_the_report_does_not_grow_without_end(tmp_path, monkeypatch):
    from engine.data import problems as module

    monkeypatch.setattr(module, "MOST_LISTED", 3)
    (tmp_path / "t.csv").write_text("text,labels\nfine,a\n" + "short\n" * 10 + " ,a\n")
    problems = Problems()
    dataset = import_dataset(tmp_path / "t.csv", tmp_path / "out", problems=problems, test_fraction=0)
    assert problems.counts() == {"wrong number of cells": 10, "empty text": 1}
    listed = [json.loads(line) for line in (dataset.path / REPORT).read_text().splitlines()]
    assert [row["kind"] for row in listed] == ["wrong number of cells"] * 3 + ["empty text", "wrong number of cells"]
    assert listed[-1]["not_listed"] == 7


def test_without_problems_there_is_no_report(tmp_path):
    (tmp_path / "t.csv").write_text("text,labels\nfine,a\n")
    dataset = import_dataset(tmp_path / "t.csv", tmp_path / "out", test_fraction=0)
    assert not (dataset.path / REPORT).exists()
    assert "problems" not in dataset.meta["details"]


def test_a_file_of_nothing_but_problems_is_refused_with_the_first(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"body": "x"}\n' * 3)
    with pytest.raises(DataError, match=r"t\.jsonl:1: no column 'text'; found 'body'.*the first of 3 problems"):
        import_dataset(tmp_path / "t.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_all_held_out_says_so(tmp_path):
    (tmp_path / "t.csv").write_text("text,labels\nfine,a\n")
    with pytest.raises(DataError, match=r"every text \(1\) was held out for testing; lower the test fraction"):
        import_dataset(tmp_path / "t.csv", tmp_path / "out", test_fraction=0.999999)


def test_an_endless_line_is_left_out_alone(tmp_path, monkeypatch):
    from engine.data import sourcefiles

    monkeypatch.setattr(sourcefiles, "MAX_LINE_BYTES", 100)
    (tmp_path / "t.csv").write_text("text,labels\nfine,a\n" + "x" * 1000 + ",a\nlast,b\n")
    problems = Problems()
    dataset = import_dataset(tmp_path / "t.csv", tmp_path / "out", problems=problems, test_fraction=0)
    assert list(dataset.train.texts()) == ["fine", "last"]
    assert problems.kinds["line too long"].first.startswith(f"{tmp_path / 't.csv'}:3: line longer than")


def test_an_open_quote_costs_the_rows_it_swallows_and_says_which(tmp_path):
    (tmp_path / "t.csv").write_text('text,labels\nfine,a\n"open,a\nswallowed,a\nlost,a\n')
    problems = Problems()
    dataset = import_dataset(tmp_path / "t.csv", tmp_path / "out", problems=problems, test_fraction=0)
    assert list(dataset.train.texts()) == ["fine"]
    assert "t.csv:3: malformed row (unexpected end of data), which reaches to line 5" in problems.first()


def test_a_row_of_endless_lines_is_left_out_alone(tmp_path, monkeypatch):
    from engine.data import table_readers

    monkeypatch.setattr(table_readers, "MAX_LINE_BYTES", 1000)
    (tmp_path / "t.csv").write_text("text,labels\nfine,a\n" + '"\n",' * 400 + "\nlast,b\n")
    problems = Problems()
    dataset = import_dataset(tmp_path / "t.csv", tmp_path / "out", problems=problems, test_fraction=0)
    assert next(dataset.train.texts()) == "fine"
    assert problems.first().startswith(f"{tmp_path / 't.csv'}:3: malformed row (longer than")
