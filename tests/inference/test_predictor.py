"""Predictions in order and in bounded memory, wherever the model lies."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.cli import main
from engine.errors import DataError
from engine.inference.predictor import Prediction, Predictor, probability


@pytest.fixture(scope="module")
def model(tiny_flags, tmp_path_factory):
    root = tmp_path_factory.mktemp("predictor")
    assert main(["train", *tiny_flags, "--output", str(root), "--epochs", "10"]) == 0
    (run,) = root.glob("2*")
    return run / "model"


def test_long_streams_keep_their_order(model):
    predictor = Predictor.load(model)
    texts = [("open file " * (i % 7 + 1)) + ["tree", "mail", "date"][i % 3] for i in range(2500)]
    streamed = list(predictor.stream(iter(texts), k=3))
    assert len(streamed) == 2500
    for i in (0, 1, 1023, 1024, 2499):
        (alone,) = predictor.predict([texts[i]], k=3)
        assert [p.label_id for p in alone] == [p.label_id for p in streamed[i]]
        assert [p.probability for p in alone] == pytest.approx([p.probability for p in streamed[i]], abs=0.01)


def test_a_prediction_names_its_label(model):
    (row,) = Predictor.load(model).predict(["open the file"], k=500)
    assert len(row) == 120  # as many as there are labels
    assert isinstance(row[0], Prediction)
    assert row[0].label == f"label-{row[0].label_id}"
    assert sorted(p.label_id for p in row) == list(range(120))


def test_empty_texts_are_refused(model):
    with pytest.raises(DataError, match="text 2 is empty"):
        Predictor.load(model).predict(["open the file", "  "])


def test_a_copied_bundle_needs_nothing_else(model, tmp_path):
    expected = Predictor.load(model).predict(["sort a tree"])
    copy = tmp_path / "elsewhere"
    shutil.copytree(model, copy)
    assert Predictor.load(copy).predict(["sort a tree"]) == expected


@pytest.mark.parametrize("name", ["classifier.safetensors", "model.json"])
def test_a_damaged_bundle_is_named(model, tmp_path, name):
    copy = tmp_path / "damaged"
    shutil.copytree(model, copy)
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=name):
        Predictor.load(copy)


def test_probabilities_of_both_losses():
    logits = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0])
    torch.testing.assert_close(probability(logits, "bce"), logits.sigmoid())
    torch.testing.assert_close(probability(logits, "squared_hinge"), torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0]))


COUNT = """
import resource, sys
from engine.inference.predictor import Predictor
predictor = Predictor.load(sys.argv[1])
texts = ("open the file into a tree" for _ in range(int(sys.argv[2])))
print(sum(1 for _ in predictor.stream(texts)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_many_texts_need_no_more_memory_than_few(model):
    def peak(count):
        done = subprocess.run(
            [sys.executable, "-c", COUNT, str(model), str(count)],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
        )  # fmt: skip
        number, kibibytes = map(int, done.stdout.split())
        assert number == count
        return kibibytes

    assert peak(30_000) < peak(2_000) + 30_000
