"""What `engine data inspect` finds out."""

import json
import sys

import numpy as np
import pytest

from engine.cli import main
from engine.data.inspection import _curve, histogram, inspect
from engine.data.inspection_report import draw, format_report, save_plots
from engine.data.propensity import inverse_propensity
from engine.errors import EnvironmentProblem

TRAIN = [("one", [0, 1]), ("two", [0]), ("two", [0]), ("three\x1b[2J" + "x" * 500, []), ("four", [2])]
TEST = [("two", [0]), ("new", [5, 6]), ("new", [1])]


@pytest.fixture
def dataset(make_dataset):
    return make_dataset(TRAIN, TEST)


def test_counts_of_the_splits(dataset):
    report = inspect(dataset)
    train, test = report["splits"]["train"], report["splits"]["test"]
    assert (train["texts"], train["repeated_texts"], train["without_labels"], train["positives"]) == (5, 1, 1, 5)
    assert (test["texts"], test["repeated_texts"], test["without_labels"], test["positives"]) == (3, 1, 0, 4)
    assert (train["characters"]["lowest"], train["characters"]["highest"]) == (3, 509)
    assert train["labels_per_text"]["mean"] == 1.0
    assert report["labels"] == 10


def test_what_may_be_wrong(dataset):
    report = inspect(dataset)
    assert report["overlap"] == 1, "of the test texts one is a training text"
    assert report["only_in_test"] == {"labels": 2, "examples": ["label 5", "label 6"]}
    assert report["nowhere"] == 5
    assert (report["frequency"]["never"], report["frequency"]["once"], report["frequency"]["highest"]) == (7, 2, 3)
    assert report["frequency"]["most_frequent"][0] == ["label 0", 3]


def test_propensities_are_those_of_the_metrics(dataset):
    span = inspect(dataset, a=0.6, b=2.6)["propensity"]
    lowest, highest = 1 / inverse_propensity(np.array([1, 3]), 5, 0.6, 2.6)
    assert (span["lowest"], span["highest"]) == pytest.approx((lowest, highest))


def test_samples_show_the_first_and_the_last_row(dataset):
    samples = inspect(dataset, samples=2)["samples"]
    assert [(sample["split"], sample["uid"]) for sample in samples] == [
        ("train", "train-0"), ("train", "train-4"), ("test", "test-0"), ("test", "test-2"),
    ]  # fmt: skip
    assert samples[0]["labels"] == ["label 0", "label 1"]
    assert inspect(dataset, samples=0)["samples"] == []


def test_a_histogram_counts_every_value_once():
    assert histogram(np.array([0, 1, 1, 2, 3, 4, 7, 8])) == [[0, 0, 1], [1, 1, 2], [2, 3, 2], [4, 7, 2], [8, 15, 1]]
    assert histogram(np.array([], dtype=np.int64)) == []


def test_the_frequency_curve_is_short_and_holds_both_ends(make_dataset):
    assert inspect(make_dataset(TRAIN))["frequency"]["curve"] == [[1, 3], [2, 1], [3, 1]]
    falling = 20_000 // np.arange(1, 5_001)
    curve = _curve(np.random.default_rng(0).permutation(np.append(falling, np.zeros(50, np.int64))))
    assert (curve[0], curve[-1]) == ([1, 20_000], [5_000, 4])
    assert len(curve) <= 300 and all(frequency == falling[rank - 1] for rank, frequency in curve)
    assert _curve(np.zeros(3, np.int64)) == []


def test_the_report_for_people(dataset):
    text = format_report(inspect(dataset, samples=5))
    for expected in (
        "made: 10 labels",
        "labels seen once in training: 2 (20.0%)",
        "test texts that are training texts too: 1 (33.3%)",
        "labels only in the test set: 2 (20.0%), such as label 5, label 6",
        "labels that no text has: 5 (50.0%)",
        "train train-0: one",
        "-> label 0; label 1",
        "-> no label",
    ):
        assert expected in text
    assert "\x1b" not in text, "a text cannot steer the terminal"
    assert max(map(len, text.splitlines())) <= 110


def test_a_dataset_without_a_test_split(make_dataset):
    assert "no test split" in format_report(inspect(make_dataset([("a", [])])))


def test_the_command_prints_and_writes_the_same_report(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["data", "inspect", str(dataset.path), "--json", "--output", str(tmp_path / "look")]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report == json.loads((tmp_path / "look" / "inspection.json").read_text())
    assert (tmp_path / "look" / "inspection.txt").read_text() == format_report(report) + "\n"
    assert "pip install 'fanin[plots]'" in captured.err
    assert main(["data", "inspect", str(dataset.path), "--propensity", "0.6,2.6"]) == 0
    assert "A = 0.6, B = 2.6" in capsys.readouterr().out


def test_plots_without_matplotlib_say_how_to_get_it(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentProblem, match="plots need matplotlib"):
        save_plots(inspect(dataset), tmp_path)


def test_plots_are_drawn(dataset, tmp_path):
    pytest.importorskip("matplotlib")
    files = save_plots(inspect(dataset), tmp_path)
    assert [file.name for file in files] == ["label-frequency.png", "text-characters.png", "text-labels-per-text.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_plots_begin_with_the_first_bin_that_is_not_empty():
    pytest.importorskip("matplotlib")
    parts = {"train": histogram(np.array([4, 5, 9, 9, 40])), "test": histogram(np.array([8]))}
    (axes,) = draw("made", "characters", "texts", parts).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4-7", "8-15", "16-31", "32-63"]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["train", "test"]
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [[2, 2, 0, 1], [0, 1]]
    left, right = axes.get_xlim()
    assert left < axes.containers[0][0].get_x() and right - left < 5, "no room for the bins in front"


def test_a_name_with_dollars_is_no_formula(dataset, tmp_path):
    pytest.importorskip("matplotlib")
    assert len(save_plots(inspect(dataset) | {"name": r"from $\frac$ to $^"}, tmp_path)) == 3
