"""Reciprocal filters are imported with the rows they belong to."""

import json

import pytest

from engine.cli import main
from engine.data.importers import import_dataset
from engine.data.problems import Problems
from engine.data.store import Dataset
from engine.errors import DataError


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    titles = {"trn": ["one", "", "three", "four"], "tst": ["five", "six"]}
    for part, names in titles.items():
        rows = [{"uid": f"{part}{i}", "title": name, "target_ind": [i]} for i, name in enumerate(names)]
        (folder / f"{part}.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "lbl.json").write_text("\n".join(json.dumps({"uid": f"l{i}", "title": f"label {i}"}) for i in range(5)))
    (folder / "filter_labels_train.txt").write_text("2 4\n0 1\n1 3\n2 0\n2 4\n")
    (folder / "filter_labels_test.txt").write_text("1 2\n")
    return folder


def _filter(split) -> list[list[int]]:
    return [split.filter.row(i).tolist() for i in range(len(split))]


def test_pairs_follow_their_rows_when_others_are_left_out(source, tmp_path):
    import_dataset(source, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out", verify=True)
    assert list(dataset.train.texts()) == ["one", "three", "four"]
    assert _filter(dataset.train) == [[1], [0, 4], []]
    assert _filter(dataset.test) == [[], [2]]
    assert dataset.meta["details"]["filter_pairs"] == {"train": 3, "test": 1}
    assert dataset.meta["details"]["unused_filter_pairs"] == 1, "of the row without a text"


def test_pairs_follow_texts_into_a_held_out_test_set(source, tmp_path):
    rows = [{"uid": str(i), "title": f"text {i}", "target_ind": [i % 5]} for i in range(200)]
    (source / "trn.json").write_text("\n".join(map(json.dumps, rows)))
    (source / "tst.json").unlink()
    (source / "filter_labels_train.txt").write_text("".join(f"{i} {i % 5}\n" for i in range(200)))
    dataset = import_dataset(source, tmp_path / "out", test_fraction=0.5)
    for split in (dataset.train, dataset.test):
        assert _filter(split) == [[int(uid) % 5] for uid in split.uids()]


@pytest.mark.parametrize("held_out", [False, True])
def test_pairs_of_rows_that_are_not_there_are_counted_and_told(source, tmp_path, capsys, held_out):
    (source / "trn.json").write_text(
        "".join(json.dumps({"uid": str(i), "title": f"text {i}", "target_ind": []}) + "\n" for i in range(20))
    )
    (source / "filter_labels_train.txt").write_text("".join(f"{row} 1\n" for row in (*range(20), 20, 99)))
    if held_out:
        (source / "tst.json").unlink()
    assert main(["data", "import", str(source), "--output", str(tmp_path / "out"), "--test-fraction", "0.4"]) == 0
    printed = capsys.readouterr().out
    assert "reciprocal filters of rows that were left out, or are not there: 2 pairs\n" in printed
    assert sum(Dataset.open(tmp_path / "out").meta["details"]["filter_pairs"].values()) == 20 + (not held_out)


def test_renees_names_of_the_files_are_known(tmp_path):
    """And its label texts."""
    lines = {"X": "one\ntwo\n", "X_Y": "2 3\n0:1\n2:1\n", "filter_labels": "1 0\n"}
    for part, name in ((part, name) for part in ("trn", "tst") for name in lines):
        (tmp_path / f"{part}_{name}.txt").write_text(lines[name])
    (tmp_path / "Y.txt").write_text("nought\n\npair\n")
    dataset = import_dataset(tmp_path, tmp_path / "out")
    assert _filter(dataset.train) == _filter(dataset.test) == [[], [0]]
    assert dataset.label_texts() == ["nought", None, "pair"]


def test_a_dataset_without_filters_has_none(source, tmp_path):
    (source / "filter_labels_test.txt").unlink()
    assert import_dataset(source, tmp_path / "out").test.filter is None


@pytest.mark.parametrize(
    ("pair", "message"),
    [("0 5", r"label id 5 is outside 0\.\.4"), ("0", "no pair"), ("a b", "no pair"), ("-1 2", "no pair")],
)
def test_a_wrong_pair_is_a_problem(source, tmp_path, pair, message):
    (source / "trn.json").write_text('{"uid": "a", "title": "one", "target_ind": []}\n')
    (source / "filter_labels_train.txt").write_text(f"0 1\n{pair}\n")
    problems = Problems()
    assert _filter(import_dataset(source, tmp_path / "out", problems=problems).train) == [[1]]
    assert sum(problems.counts().values()) == 1
    with pytest.raises(DataError, match=rf"filter_labels_train\.txt:2: .*{message}"):
        import_dataset(source, tmp_path / "other", problems=Problems(strict=True))
