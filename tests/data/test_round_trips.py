"""Whatever texts and labels the files of a layout hold, the dataset holds the same."""

import codecs
import csv
import gzip
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.data.importers import import_dataset
from engine.data.problems import Problems
from engine.data.table_readers import TableColumns
from engine.errors import DataError

CHARACTERS = st.characters(exclude_categories=["Cs"])
HARD = st.text(st.sampled_from("\"',;|\t\r\n\\\0 [](){}\ufeff\u2028\x85\x1c\xa0é漢😀abc"), max_size=20)
TEXTS = (st.text(CHARACTERS, max_size=30) | HARD).map(str.strip).filter(bool)
NAMES = TEXTS | st.integers(-(10**6), 10**6).map(str)
# In a field, a delimiter cannot be part of a name.
SIMPLE_NAMES = NAMES.map(lambda name: name.replace(";", "_"))


def rows_of(names):
    return st.lists(st.tuples(TEXTS, st.lists(names, max_size=6)), min_size=1, max_size=12)


PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def imported(file, columns=None):
    """(text, labels) of every row; nothing may be a problem."""
    output = file.parent / "out"
    dataset = import_dataset(
        file, output, columns=columns, test_fraction=0, overwrite=True, problems=Problems(strict=True)
    )
    names = dataset.label_names()
    labels = [{names[i] for i in dataset.train.labels.row(row)} for row in range(len(dataset.train))]
    return list(zip(dataset.train.texts(), labels, strict=True))


def expected(rows):
    return [(text, set(labels)) for text, labels in rows]


@PROPERTY
@given(rows=rows_of(SIMPLE_NAMES), mark=st.booleans(), end=st.sampled_from(["\n", "\r\n"]), packed=st.booleans())
def test_csv(tmp_path, rows, mark, end, packed):
    file = tmp_path / ("t.csv.gz" if packed else "t.csv")
    with (gzip.open if packed else open)(file, "wb") as raw, codecs.getwriter("utf-8")(raw) as stream:
        stream.write("\ufeff" if mark else "")
        table = csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL)
        table.writerow(["labels", "text"])
        table.writerows((";".join(labels), text) for text, labels in rows)
    assert imported(file, TableColumns(delimiter=";")) == expected(rows)


@PROPERTY
@given(rows=rows_of(NAMES), mark=st.booleans(), end=st.sampled_from(["\n", "\r\n"]), escaped=st.booleans())
def test_json_lines(tmp_path, rows, mark, end, escaped):
    lines = [json.dumps({"text": text, "labels": labels}, ensure_ascii=escaped) for text, labels in rows]
    content = end.join(lines).encode()
    (tmp_path / "t.jsonl").write_bytes(codecs.BOM_UTF8 * mark + content)
    assert imported(tmp_path / "t.jsonl") == expected(rows)


@PROPERTY
@given(rows=rows_of(NAMES))
def test_lists_in_the_fields_of_csv(tmp_path, rows):
    with open(tmp_path / "t.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "labels"), *((text, json.dumps(labels)) for text, labels in rows)])
    assert imported(tmp_path / "t.csv") == expected(rows)


@PROPERTY
@given(rows=rows_of(NAMES))
def test_parquet(tmp_path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"text": [text for text, _ in rows], "labels": [labels for _, labels in rows]}
    schema = pa.schema([("text", pa.large_string()), ("labels", pa.list_(pa.string()))])
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "t.parquet")
    assert imported(tmp_path / "t.parquet") == expected(rows)


@PROPERTY
@given(title=TEXTS, body=st.none() | TEXTS, labels=st.none() | st.integers(0, 9) | st.lists(st.integers() | NAMES))
def test_mixed_types(tmp_path, title, body, labels):
    (tmp_path / "t.jsonl").write_text(json.dumps({"title": title, "body": body, "labels": labels}))
    ((text, names),) = imported(tmp_path / "t.jsonl", TableColumns(("title", "body")))
    assert text.startswith(title) and text.endswith(body or "")
    wanted = labels if isinstance(labels, list) else [] if labels is None else [labels]
    assert names == {str(label) for label in wanted}


@PROPERTY
@example(content=b"\r\x00").via("a lone carriage return in the header")
@example(content=b'text,labels,"a"b\nx,y,z').via("a quoted name that goes on after its quote")
@example(content=b"text,labels," + b"x" * 200_000).via("a name longer than the parser's own limit")
@given(content=st.binary(max_size=300) | HARD.map(lambda text: b"text,labels\n" + text.encode()))
def test_any_bytes_are_imported_or_refused_in_one_line(tmp_path, content):
    for name in ("t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.csv.gz", "t.jsonl.gz"):
        (tmp_path / name).write_bytes(content)
        said = ""
        try:
            import_dataset(tmp_path / name, tmp_path / "out", test_fraction=0, overwrite=True)
        except DataError as error:
            said = str(error)
        assert "\n" not in said
        assert {entry.name for entry in tmp_path.iterdir()} <= {name, "out"}, "nothing is written elsewhere"
        (tmp_path / name).unlink()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_long_texts_and_many_labels(tmp_path, kind):
    text, labels = "word " * 20_000 + "end", [f"label {number}" for number in range(10_000)]
    file = tmp_path / f"t.{kind}"
    with open(file, "w", newline="") as stream:
        if kind == "csv":
            csv.writer(stream).writerows([("text", "labels"), (text, ";".join(labels))])
        else:
            stream.write(json.dumps({"text": text, "labels": labels}))
    assert imported(file) == [(text, set(labels))]


LINES = TEXTS.map(lambda text: " ".join(text.split("\n"))).map(str.strip).filter(bool)  # of files with a text a line
WORDS = NAMES.map(lambda name: "_".join(name.split())).filter(bool)  # of files with spaces between labels


@PROPERTY
@given(rows=rows_of(st.integers(0, 5)), names=st.lists(TEXTS, min_size=6, max_size=6), mark=st.booleans())
def test_the_repository_layout(tmp_path, rows, names, mark):
    split = len(rows) // 2 + 1
    for part, some in (("trn", rows[:split]), ("tst", rows[split:] or rows[:1])):
        lines = [
            {"uid": number, "title": text, "target_ind": ids, "target_rel": [1.0] * len(ids)}
            for number, (text, ids) in enumerate(some)
        ]
        content = "".join(json.dumps(line, ensure_ascii=number % 2 > 0) + "\r\n" for number, line in enumerate(lines))
        (tmp_path / f"{part}.json").write_bytes(codecs.BOM_UTF8 * mark + content.encode())
    (tmp_path / "lbl.json").write_text("".join(json.dumps({"uid": 0, "title": name}) + "\n" for name in names))
    assert imported(tmp_path) == expected((text, [names[i] for i in ids]) for text, ids in rows[:split])


def write_lines(file, lines, end="\n", mark=False, packed=False):
    """mark: whether there is a byte order mark, which is there too where the first line looks as if."""
    content = "".join(line + end for line in lines)
    written = (codecs.BOM_UTF8 if mark or content.startswith("\ufeff") else b"") + content.encode()
    for old in file.parent.glob(f"{file.name}*"):
        old.unlink()
    file.with_name(file.name + ".gz" * packed).write_bytes(gzip.compress(written) if packed else written)


@PROPERTY
@given(
    rows=st.lists(st.tuples(LINES, st.lists(WORDS, max_size=6)), min_size=1, max_size=12),
    mark=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    packed=st.booleans(),
)
def test_a_text_a_line_with_names_of_labels(tmp_path, rows, mark, end, packed):
    write_lines(tmp_path / "train_raw_texts.txt", [text for text, _ in rows], end, mark, packed)
    write_lines(tmp_path / "train_labels.txt", [" ".join(labels) for _, labels in rows], end, mark, packed)
    assert imported(tmp_path) == expected(rows)


@PROPERTY
@given(
    rows=st.lists(st.tuples(LINES, st.lists(st.integers(0, 5), max_size=6)), min_size=1, max_size=12),
    names=st.lists(LINES, min_size=6, max_size=6),
    mark=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    matrix=st.booleans(),
)
def test_a_text_a_line_with_numbers_of_labels(tmp_path, rows, names, mark, end, matrix):
    folder = tmp_path / ("pecos" if matrix else "sparse")
    folder.mkdir(exist_ok=True)
    texts, named = ("X.trn.txt", "output-items.txt") if matrix else ("trn_X.txt", "lbl_X.txt")
    write_lines(folder / texts, [text for text, _ in rows], end, mark)
    write_lines(folder / named, names, end, mark)
    if matrix:
        ids = np.array([i for _, labels in rows for i in labels], np.int32)
        parts = {"indptr": np.cumsum([0, *(len(labels) for _, labels in rows)]), "data": np.ones(len(ids))}
        shape, kind = np.array([len(rows), 6]), np.array(b"csr")
        np.savez(folder / "Y.trn.npz", indices=ids, shape=shape, format=kind, **parts)
    else:
        pairs = [" ".join(f"{i}:1.0" for i in labels) for _, labels in rows]
        write_lines(folder / "trn_X_Y.txt", [f"{len(rows)} 6", *pairs], end, mark)
    assert imported(folder) == expected((text, [names[i] for i in labels]) for text, labels in rows)
