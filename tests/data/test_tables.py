import csv
import gzip
import json

import pytest

from engine.cli import main
from engine.data.importers import import_dataset
from engine.data.problems import Problems
from engine.data.table_readers import TableColumns
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
    dataset = import_dataset(file, tmp_path / "out", test_fraction=0)
    found = dict(zip(dataset.train.texts(), _sets(dataset, dataset.train), strict=True))
    assert found == {"one": {"a", "b"}, "two": {"b", "c"}, "three": {"7"}}
    assert dataset.name == "notes"


def test_columns_and_delimiters_can_be_named(tmp_path):
    (tmp_path / "train.tsv").write_text("body\ttags\nhello there\tx|y\n")
    (tmp_path / "test.tsv.gz").write_bytes(gzip.compress(b"body\ttags\nbye\ty\n"))
    dataset = import_dataset(tmp_path, tmp_path / "out", columns=TableColumns(("body",), "tags", "|"))
    assert _sets(dataset, dataset.train) == [{"x", "y"}]
    assert list(dataset.test.texts()) == ["bye"]


def test_a_tenth_of_one_file_is_held_out_by_text(tmp_path):
    file = tmp_path / "all.csv"
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("text", "labels"), *((f"text {i % 2000}", "a") for i in range(4000))])
    first, again, other = (import_dataset(file, tmp_path / f"out{i}", seed=seed) for i, seed in enumerate((1, 1, 2)))
    held_out = set(first.test.texts())
    assert 300 < len(first.test) < 500
    assert not held_out & set(first.train.texts()), "equal texts stand on one side"
    assert first.digest == again.digest
    assert held_out != set(other.test.texts())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "body,labels\nx,y\n", r"t\.csv:1: no column 'text'; found 'body', 'labels'"),
        ("t.csv", 'text,labels\n"two\nlines",a\nx\n', r"t\.csv:4: 1 cell, but the header has 2"),
        ("t.csv", 'text,labels\nfine,a\n"open,a\n', r"t\.csv:3: malformed row"),
        ("t.csv", "text,labels\nfine,a\n ,a\n", r"t\.csv:3: empty text"),
        ("t.csv", "text,labels\n", "no train instances"),
        ("t.jsonl", '{"text": "x"}\n', r"t\.jsonl:1: no column 'labels'; found 'text'"),
        ("t.jsonl", '{"text": 5, "labels": []}\n', r"t\.jsonl:1: 'text' is int, not a string"),
        ("t.jsonl", '{"text": "x", "labels": {}}\n', r"t\.jsonl:1: {} is no label"),
        ("t.jsonl", '{"text": "x", "labels": [[]]}\n', r"t\.jsonl:1: \[\] is no label"),
        ("t.jsonl", "text\n", r"t\.jsonl:1: invalid JSON"),
    ],
)
def test_a_bad_table_is_named_by_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        import_dataset(tmp_path / name, tmp_path / "out", problems=Problems(strict=True))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_long_cell_is_read_and_the_limit_of_the_process_kept(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "train.csv").write_text("text,labels\n" + "word " * 100_000 + ",a\n")
    (tmp_path / "test.csv").write_text("text,labels\nx,a\n")
    assert len(next(import_dataset(tmp_path, tmp_path / "out").train.texts())) > 400_000
    assert csv.field_size_limit() == limit


def test_several_columns_make_one_text(tmp_path):
    rows = [{"title": "A title", "body": "and a body", "labels": ["x"]}, {"title": None, "body": "alone", "labels": []}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = import_dataset(
        tmp_path / "t.jsonl", tmp_path / "out", columns=TableColumns(("title", "body")), test_fraction=0
    )
    assert list(dataset.train.texts()) == ["A title. and a body", "alone"]


@pytest.mark.parametrize(
    ("cells", "delimiter", "labels"),
    [
        (["a;b", "c"], ";", [{"a", "b"}, {"c"}]),
        (["Smith, J.; Doe, J.", "Roe, J."], ";", [{"Smith, J.", "Doe, J."}, {"Roe, J."}]),
        (["a|b, c", "d"], "|", [{"a", "b, c"}, {"d"}]),
        (["a, b", "c"], ",", [{"a", "b"}, {"c"}]),
        (["12 7", "9"], " ", [{"12", "7"}, {"9"}]),
        (["machine learning", "art"], "", [{"machine learning"}, {"art"}]),
        (['["a;b", "c"]', "[]"], "list", [{"a;b", "c"}, set()]),
        (["['it''s', 'b']", "['c']"], "list", [{"its", "b"}, {"c"}]),
    ],
)
def test_the_delimiter_between_labels_is_found_and_said(tmp_path, cells, delimiter, labels):
    with open(tmp_path / "t.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("text", "labels"), *((f"text {i}", cell) for i, cell in enumerate(cells))])
    dataset = import_dataset(tmp_path / "t.csv", tmp_path / "out", test_fraction=0)
    assert dataset.meta["details"]["delimiter"] == delimiter
    assert _sets(dataset, dataset.train) == labels


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_of_columns_are_found(tmp_path, separator):
    (tmp_path / "t.csv").write_text(f"text{separator}labels\nHello, world{separator}a\n")
    dataset = import_dataset(tmp_path / "t.csv", tmp_path / "out", test_fraction=0)
    assert list(dataset.train.texts()) == ["Hello, world"]


@pytest.mark.parametrize(
    ("delimiter", "cells", "is_unused"),
    [(";", ["a", "b,c"], True), (";", ["a", "b;c"], False), (";", ["", " "], False), ("", ["a"], False)],
)
def test_a_delimiter_that_no_cell_has_is_recorded(tmp_path, delimiter, cells, is_unused):
    with open(tmp_path / "t.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("text", "labels"), *((f"text {i}", cell) for i, cell in enumerate(cells))])
    columns = TableColumns(delimiter=delimiter)
    dataset = import_dataset(tmp_path / "t.csv", tmp_path / "out", columns=columns, test_fraction=0)
    assert dataset.meta["details"].get("unused_delimiter", False) is is_unused


@pytest.mark.parametrize(
    ("delimiter", "hint"),
    [(";", "what separates the columns is found by itself: leave --delimiter out"), ("/", "it is found in the first")],
)
def test_the_command_warns_of_a_delimiter_that_no_cell_has(tmp_path, capsys, delimiter, hint):
    (tmp_path / "t.csv").write_text("text;labels\none;a\ntwo;b,c\n")
    assert (
        main(
            [
                "data",
                "import",
                str(tmp_path / "t.csv"),
                "--output",
                str(tmp_path / "o"),
                "--delimiter",
                delimiter,
                "--test-fraction",
                "0",
            ]
        )
        == 0
    )
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning"))
    assert f"no field of labels has the --delimiter {delimiter!r}" in warning and hint in warning


@pytest.mark.parametrize("labels", [[["a", "b"], None, []], ["a;b", None, ""], [[1, 2], [], None], [7, None, None]])
def test_parquet_is_imported(tmp_path, labels):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["one", "two", "three"]
    pq.write_table(pa.table({"text": texts, "labels": labels, "uid": [5, 6, 7]}), tmp_path / "t.parquet")
    dataset = import_dataset(tmp_path / "t.parquet", tmp_path / "out", test_fraction=0)
    assert list(dataset.train.texts()) == texts
    assert list(dataset.train.uids()) == ["5", "6", "7"]
    first = {str(label) for label in (labels[0] if isinstance(labels[0], list) else str(labels[0]).split(";"))}
    assert _sets(dataset, dataset.train) == [first, set(), set()]


def test_bad_rows_of_parquet_are_left_out(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    bad = pa.array([b"one", b"caf\xe9", b" ", None, b"five"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": bad, "labels": [["a"]] * 5}), tmp_path / "t.parquet")
    problems = Problems()
    dataset = import_dataset(tmp_path / "t.parquet", tmp_path / "out", problems=problems, test_fraction=0)
    assert list(dataset.train.texts()) == ["one", "five"]
    assert problems.counts() == {"not UTF-8": 1, "empty text": 2}
    assert problems.first().startswith(f"{tmp_path / 't.parquet'}:2: ")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all, but long enough to look like it PAR1"])
def test_a_damaged_parquet_file_is_refused(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet: not readable as Parquet"):
        import_dataset(tmp_path / "t.parquet", tmp_path / "out")


def test_a_row_that_names_a_text_behind_the_end_of_the_dictionary_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "t.parquet"
    rows = {"text": [f"text {number}" for number in range(40)], "labels": [["a"]] * 40}
    pq.write_table(pa.table(rows), file, compression="none")
    texts = pq.read_metadata(file).row_group(0).column(0)
    end = texts.dictionary_page_offset + texts.total_compressed_size
    content = bytearray(file.read_bytes())
    content[end - 8 : end] = b"\xff" * 8  # six bits a row: 63 instead of numbers up to 39
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet: not readable as Parquet \(a row names a text that its"):
        import_dataset(file, tmp_path / "out", test_fraction=0)
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_the_format_can_be_named(tmp_path):
    (tmp_path / "export.txt").write_text("text\tlabels\nHello\ta\n")
    dataset = import_dataset(tmp_path / "export.txt", tmp_path / "out", format="tsv", test_fraction=0)
    assert list(dataset.train.texts()) == ["Hello"]
    with pytest.raises(DataError, match=r"export\.txt: not in the format aalto; accepted"):
        import_dataset(tmp_path / "export.txt", tmp_path / "other", format="aalto")


def test_tables_that_are_not_read_are_named(tmp_path):
    for name in ("train.csv", "test.csv", "validation.csv"):
        (tmp_path / name).write_text("text,labels\nHello,a\n")
    assert import_dataset(tmp_path, tmp_path / "out").meta["details"]["not_read"] == ["validation.csv"]


def test_parts_of_another_split_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    for split in ("train", "test", "validation"):
        pq.write_table(pa.table({"text": ["a"], "labels": ["x"]}), tmp_path / "data" / f"{split}-00000.parquet")
    details = import_dataset(tmp_path, tmp_path / "out").meta["details"]
    assert details["not_read"] == ["validation-00000.parquet"]


def test_an_empty_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("\n\n")
    with pytest.raises(DataError, match=r"t\.csv: empty file"):
        import_dataset(tmp_path / "t.csv", tmp_path / "out")


@pytest.mark.parametrize("folder", ["", "data"])
def test_a_split_in_parts_is_read_in_order(tmp_path, folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / folder).mkdir(exist_ok=True)
    for name, texts in (("train-00001-of-00002", ["c", " "]), ("train-00000-of-00002", ["a", "b"]), ("test-0", ["d"])):
        pq.write_table(
            pa.table({"text": texts, "labels": [[1, 2]] * len(texts)}), tmp_path / folder / f"{name}.parquet"
        )
    problems = Problems()
    dataset = import_dataset(tmp_path, tmp_path / "out", problems=problems)
    assert (list(dataset.train.texts()), list(dataset.test.texts())) == (["a", "b", "c"], ["d"])
    assert list(dataset.train.uids()) == ["0", "1", "2"]
    assert "train-00001-of-00002.parquet:2: empty text" in problems.first()
    assert len(dataset.meta["sources"]) == 3


def test_rows_of_parquet_that_stand_for_too_much_are_left_out(tmp_path):
    """A text that a file holds once and names in many places takes a few bytes of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = pa.DictionaryArray.from_arrays(pa.array([0] * 64 + [1], pa.int32()), pa.array(["y" * (1 << 20), "short"]))
    labels = pa.ListArray.from_arrays(pa.array([0, 64, 65, 65], pa.int32()), names)
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1], pa.int32()), pa.array(["fine", "x" * (17 << 20)]))
    pq.write_table(
        pa.table({"text": texts, "labels": labels}), tmp_path / "t.parquet", dictionary_pagesize_limit=64 << 20
    )
    problems = Problems()
    dataset = import_dataset(tmp_path / "t.parquet", tmp_path / "out", test_fraction=0, problems=problems)
    assert problems.counts() == {"row too long": 2}
    assert list(dataset.train.texts()) == ["fine"]
