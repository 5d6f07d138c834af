"""Where labels are texts like the instances, a text is not given itself."""

import json

import numpy as np
import pytest

from engine.cli import main
from engine.data import label_texts
from engine.data.importers import import_dataset
from engine.data.joined import MergedSets
from engine.data.label_sets import LabelSets
from engine.data.label_texts import are_trained_on
from engine.data.store import Dataset

TEXTS = [f"verse {number}  of\tthe book" for number in range(40)]


def write(folder, true=0, others=0, name="Ge{}", content="verse {} of the book"):
    """A corpus of 40 texts, 30 of them for training, whose labels are the texts themselves.

    true: how many training texts have their own label · others: training texts that are no label."""
    folder.mkdir()

    def row(number: int, text: str, labels: list[int]) -> str:
        return json.dumps({"uid": str(number), "title": "", "content": text, "target_ind": labels})

    rows = [row(n, TEXTS[n], sorted({(n + 1) % 40} | ({n} if n < true else set()))) for n in range(40)]
    rows[30:30] = [row(100 + n, f"something else {n}", [n % 40]) for n in range(others)]
    (folder / "trn.json").write_text("\n".join(rows[: 30 + others]))
    (folder / "tst.json").write_text("\n".join(rows[30 + others :]))
    labels = [{"uid": str(n), "title": name.format(n), "content": content.format(n)} for n in range(40)]
    (folder / "lbl.json").write_text("\n".join(map(json.dumps, labels)))
    return folder


def pairs(split) -> list[list[int]]:
    return [split.filter.row(i).tolist() for i in range(len(split))]


@pytest.mark.parametrize(
    ("name", "content"), [("Ge{}", "verse {} of the book"), ("verse {} of the book", ""), ("", "verse {} of the book")]
)
def test_a_text_and_the_label_with_the_same_text_are_a_pair(tmp_path, name, content):
    import_dataset(write(tmp_path / "in", name=name, content=content), tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out", verify=True)
    assert pairs(dataset.train) == [[n] for n in range(30)]
    assert pairs(dataset.test) == [[n] for n in range(30, 40)]
    assert dataset.meta["details"]["own_labels"] == {"train": 30, "test": 10}
    assert are_trained_on(dataset, "auto")
    assert not are_trained_on(dataset, False)


@pytest.mark.parametrize(
    ("numbers", "found"), [({"true": 1}, True), ({"true": 3}, False), ({"others": 250}, True), ({"others": 300}, False)]
)
def test_they_count_if_they_are_many_and_hardly_ever_true(tmp_path, numbers, found, monkeypatch):
    monkeypatch.setattr(label_texts, "MOST_ADDED", 0.0)  # else a few are trained on either way
    dataset = import_dataset(write(tmp_path / "in", **numbers), tmp_path / "out")
    assert (dataset.train.filter is not None) == found
    assert ("own_labels" in dataset.meta["details"]) == found
    assert are_trained_on(dataset, "auto") == found


def test_labels_without_texts_are_not_looked_at(tmp_path):
    (tmp_path / "in.csv").write_text("text,labels\n" + "".join(f"a{n},a{n + 1}\n" for n in range(50)))
    assert import_dataset(tmp_path / "in.csv", tmp_path / "out").train.filter is None


def test_given_filters_are_taken_as_they_are(tmp_path):
    source = write(tmp_path / "in")
    (source / "filter_labels_test.txt").write_text("0 7\n")
    dataset = import_dataset(source, tmp_path / "out")
    assert dataset.train.filter is None
    assert pairs(dataset.test)[0] == [7]


def test_the_command_says_so_and_can_leave_it(tmp_path, capsys):
    source = write(tmp_path / "in")
    assert main(["data", "import", str(source), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "no text is given itself (30 pairs of train, 10 pairs of test; --keep-own-labels allows it)" in said
    assert main(["data", "import", str(source), "--output", str(tmp_path / "kept"), "--keep-own-labels"]) == 0
    assert "given itself" not in capsys.readouterr().out
    assert Dataset.open(tmp_path / "kept").train.filter is None


def test_merged_sets_have_the_labels_of_both_once():
    first = LabelSets(np.array([0, 2, 2, 5]), np.array([1, 4, 0, 2, 9], dtype=np.int32))
    second = LabelSets(np.array([0, 1, 2, 4]), np.array([4, 7, 2, 3], dtype=np.int32))
    merged = MergedSets(first, second)
    expected = [[1, 4], [7], [0, 2, 3, 9]]
    assert len(merged) == 3
    assert merged.sizes().tolist() == [2, 1, 4]
    chosen = merged.select(np.array([2, 0, 2]))
    assert [chosen.row(i).tolist() for i in range(3)] == [expected[2], expected[0], expected[2]]
    assert chosen.ids.dtype == np.int32
