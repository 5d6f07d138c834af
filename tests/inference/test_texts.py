"""Files of texts to predict from: whatever they hold, texts come out or one line says what is wrong and where."""

import csv
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.inference import texts
from engine.inference.texts import read_texts

PARTS = [
    b"text", b",", b"\n", b'"', b"a", b"\r", b"\x00", b"\xff", b"\xef\xbb\xbf", b'{"text": "a"}\n', b'{"text": null}\n',
    b'{"text": "\\ud800"}\n', b"[1]\n", b"9" * 5000, b"[" * 5000, b"text,b\n", b"a,b\n", b"\n\n", b"\xe2\x80\xa8",
    b"\xc2\x85", b"\x1b[2J", b" ",
]  # fmt: skip
PROPERTY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")).map(str.strip).filter(bool)


@PROPERTY
@example(content=b"\r\x00")
@example(content="\u2028,b\n".encode())
@given(content=st.binary(max_size=60) | st.lists(st.sampled_from(PARTS), max_size=8).map(b"".join))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path, content):
    for ending in texts.SUFFIXES:
        for head in (b"", b"text,b\n"):
            file = tmp_path / f"t{ending}"
            file.write_bytes(head + content)
            said = ""
            try:
                assert all(text.strip() for text in read_texts(str(file)))
            except DataError as error:
                said = str(error)
            assert said.isprintable()


@PROPERTY
@given(rows=st.lists(LINES, min_size=1), mark=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_texts_come_back_as_they_were_written(tmp_path, rows, mark, end):
    first = "\ufeff" if mark and not rows[0].startswith("\ufeff") else ""
    (tmp_path / "t.jsonl").write_text(first + end.join(json.dumps({"text": row}) for row in rows), newline="")
    assert list(read_texts(str(tmp_path / "t.jsonl"))) == rows
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as stream:
        stream.write(first)
        table = csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL)
        table.writerows([("n", "text"), *enumerate(rows)])
    assert list(read_texts(str(tmp_path / "t.csv"))) == rows


def test_a_field_longer_than_the_parsers_own_limit_is_read(tmp_path):
    limit = csv.field_size_limit()
    text = "word " * 100_000 + "end"
    (tmp_path / "t.csv").write_text(f"text,b\n{text},x\n")
    assert list(read_texts(str(tmp_path / "t.csv"))) == [text]
    assert csv.field_size_limit() == limit


def test_a_row_of_endless_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LONGEST_LINE", 1000)
    (tmp_path / "t.csv").write_text("text,b\nfine,x\n" + '"\n",' * 5000)
    with pytest.raises(DataError, match=r"t\.csv:\d+: a row of more than"):
        list(read_texts(str(tmp_path / "t.csv")))


@pytest.mark.parametrize("name", ["folder.txt", "nothing.txt", "file.xml"])
def test_what_is_no_file_of_texts_is_named(tmp_path, name):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match=name):
        list(read_texts(str(tmp_path / name)))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_of_the_columns_is_found_as_an_import_finds_it(tmp_path, separator):
    rows = [("id", "text"), (1, f"one{separator} with the separator"), (2, "two;\nin lines, and | more")]
    with open(tmp_path / "t.csv", "w", newline="") as stream:
        stream.write("\n")  # a blank line in front
        csv.writer(stream, delimiter=separator).writerows(rows)
    assert list(read_texts(str(tmp_path / "t.csv"))) == [text for _, text in rows[1:]]


@pytest.mark.parametrize(("row", "cells"), [("a text, with a comma,x", 3), ("alone", 1)])
def test_a_row_of_other_cells_than_the_header_is_refused(tmp_path, row, cells):
    (tmp_path / "t.csv").write_text(f"text,b\nfine,x\n{row}\n")
    with pytest.raises(DataError, match=rf"t\.csv:3: {cells} cells?, but the header has 2; put quotes around"):
        list(read_texts(str(tmp_path / "t.csv")))


def test_columns_that_are_not_there_are_shown_apart(tmp_path):
    (tmp_path / "t.csv").write_text("id;words\n1;one\n")
    with pytest.raises(DataError, match=r"t\.csv:1: no column 'text' among 'id', 'words'; name it with --column"):
        list(read_texts(str(tmp_path / "t.csv")))
