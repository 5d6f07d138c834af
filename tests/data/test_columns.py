"""What is seen of files before they are imported."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.cli import main
from engine.data.columns import look_at
from engine.data.importers import import_dataset
from engine.errors import DataError


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "|"), ("a.tsv", "\t")])
def test_the_columns_of_a_table_are_found_whatever_separates_them(tmp_path, name, separator):
    rows = [["title", "tags"], ["one, two", "x"], ["short"], ["three", "y"]]
    lines = (separator.join(f'"{cell}"' for cell in row) for row in rows)
    (tmp_path / name).write_text("\n".join(lines))
    found = look_at(tmp_path / name)
    assert (found["columns"], found["rows"]) == (["title", "tags"], [["one, two", "x"], ["three", "y"]])


def test_a_wrong_name_is_answered_by_the_columns_that_the_file_has(tmp_path):
    (tmp_path / "a.csv").write_text("title;tags\none;x\n")
    with pytest.raises(DataError, match=r"no column 'text'; found 'title', 'tags'; name the columns"):
        import_dataset(tmp_path / "a.csv", tmp_path / "out")


def test_json_lines_and_parquet(tmp_path):
    rows = [{"text": "a" * 400, "labels": ["x", "y"]}, {"labels": [], "text": None}]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl.gz", "a.parquet"):
        found = look_at(tmp_path / name, rows=9)
        assert found["columns"] == ["text", "labels"]
        assert [row[1] for row in found["rows"]] == ["['x', 'y']", "[]"]
        assert [len(row[0]) for row in found["rows"]] == [300, 0]


def test_a_folder_says_its_layout_and_splits(tmp_path):
    for name in ("train_raw_texts.txt", "train_labels.txt"):
        (tmp_path / name).write_text("a\n")
    found = look_at(tmp_path)
    assert (found["format"], found["splits"], found["columns"]) == ("aalto", {"train": "train_raw_texts.txt"}, [])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty file"),
        ("a.jsonl", b"[]\n", "no JSON object"),
        ("a.parquet", b"x", "not readable as Parquet"),
        ("a.txt", b"x", "unknown layout"),
        ("a.csv.gz", b"x", "damaged gzip"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        look_at(tmp_path / name)


def test_the_command(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text,labels\none,x\n")
    assert main(["data", "columns", str(tmp_path / "a.csv")]) == 0
    assert capsys.readouterr().out == "format csv: train a.csv\n  'text': 'one'\n  'labels': 'x'\n"
    assert main(["data", "columns", str(tmp_path / "a.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == [["one", "x"]]
