import csv
import gzip
import json

import pytest

from engine.data.importers import import_dataset
from engine.data.tables import TableColumns
from engine.errors import DataError


def _sets(dataset, split) -> list[set[str]]:
    names = dataset.label_names()
    return [{names[i] for i in split.labels.row(row)} for row in range(len(split))]


def test_a_folder_of_csv_files_is_imported(tmp_path):
    folder = tmp_path / "news"
    folder.mkdir()
    (folder / "train.csv").write_text('labels,text,uid\nsports; world,"A, quoted\ntext",u1\n,No labels,u2\n')
    (folder / "test.csv").write_text("text,labels\nUnseen,world;new\n")
    dataset = import_dataset(folder, tmp_path / "out")
    assert list(dataset.train.texts()) == ["A, quoted\ntext", "No labels"]
    assert list(dataset.train.uids()) == ["u1", "u2"]
    assert _sets(dataset, dataset.train) == [{"sports", "world"}, set()]
    assert _sets(dataset, dataset.test) == [{"world", "new"}]
    assert dataset.label_frequency().tolist() == [1, 1, 0]
    assert dataset.name == "news"


def test_json_lines_take_lists_and_strings_of_labels(tmp_path):
    file = tmp_path / "notes.jsonl"
    rows = [{"text": "one", "labels": ["a", "b"]}, {"text": "two", "labels": "b;c"}, {"text": "three", "labels": [7]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    dataset = import_dataset(file, tmp_path / "out", columns=TableColumns(seed=1))
    found = dict(zip(dataset.train.texts(), _sets(dataset, dataset.train), strict=True))
    if dataset.test is not None:
        found |= dict(zip(dataset.test.texts(), _sets(dataset, dataset.test), strict=True))
    assert found == {"one": {"a", "b"}, "two": {"b", "c"}, "three": {"7"}}
    assert dataset.name == "notes"


def test_columns_and_delimiters_can_be_named(tmp_path):
    (tmp_path / "train.tsv").write_text("body\ttags\nhello there\tx|y\n")
    (tmp_path / "test.tsv.gz").write_bytes(gzip.compress(b"body\ttags\nbye\ty\n"))
    dataset = import_dataset(tmp_path, tmp_path / "out", columns=TableColumns("body", "tags", "|"))
    assert _sets(dataset, dataset.train) == [{"x", "y"}]
    assert list(dataset.test.texts()) == ["bye"]


def test_a_tenth_of_one_file_is_held_out_by_text(tmp_path):
    file = tmp_path / "all.csv"
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("text", "labels"), *((f"text {i % 2000}", "a") for i in range(4000))])
    first, again, other = (
        import_dataset(file, tmp_path / f"out{i}", columns=TableColumns(seed=seed)) for i, seed in enumerate((1, 1, 2))
    )
    held_out = set(first.test.texts())
    assert 300 < len(first.test) < 500
    assert not held_out & set(first.train.texts()), "equal texts stand on one side"
    assert first.digest == again.digest
    assert held_out != set(other.test.texts())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "body,labels\nx,y\n", r"t\.csv:1: no column 'text'; found 'body', 'labels'"),
        ("t.csv", 'text,labels\n"two\nlines",a\nx\n', r"t\.csv:4: 1 cells, but the header has 2"),
        ("t.csv", 'text,labels\nfine,a\n"open,a\n', r"t\.csv:3: malformed row"),
        ("t.csv", "text,labels\nfine,a\n ,a\n", r"t\.csv:3: empty text"),
        ("t.csv", "text,labels\n", "no train instances"),
        ("t.jsonl", '{"text": "x"}\n', r"t\.jsonl:1: no column 'labels'; found 'text'"),
        ("t.jsonl", '{"text": 5, "labels": []}\n', r"t\.jsonl:1: 'text' is int, not a string"),
        ("t.jsonl", '{"text": "x", "labels": {}}\n', r"t\.jsonl:1: 'labels' is neither a string nor a list"),
        ("t.jsonl", '{"text": "x", "labels": [[]]}\n', r"t\.jsonl:1: 'labels' is neither a string nor a list"),
        ("t.jsonl", "text\n", r"t\.jsonl:1: invalid JSON"),
    ],
)
def test_a_bad_table_is_named_by_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        import_dataset(tmp_path / name, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_long_cell_is_read_and_the_limit_of_the_process_kept(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "train.csv").write_text("text,labels\n" + "word " * 100_000 + ",a\n")
    (tmp_path / "test.csv").write_text("text,labels\nx,a\n")
    assert len(next(import_dataset(tmp_path, tmp_path / "out").train.texts())) > 400_000
    assert csv.field_size_limit() == limit
