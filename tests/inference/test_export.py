"""Exported models: a folder that the predictor opens, that the hub understands, that needs no torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.cli import main
from engine.inference.predictor import Predictor
from engine.kernels import reference
from engine.model.bundle import load_bundle
from random_model import make_bundle
from tiny import make_rows

SOURCE = Path(__file__).parents[2]
README = (SOURCE / "README.md").read_text()
EXAMPLE = SOURCE / "engine" / "inference" / "without_torch.py"
TEXTS = ["open the file", "sort a tree into a quick queue of mail", "nothing known here"]


def front_matter(card):
    from huggingface_hub import ModelCard

    return ModelCard(card).data


@pytest.fixture(scope="module")
def trained(tiny_flags, tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    assert main(["train", *tiny_flags, "--output", str(root)]) == 0
    (run,) = root.glob("2*")
    return run


def test_an_exported_run_predicts_the_same_in_another_place(trained, tmp_path):
    assert main(["export", str(trained), "--output", str(tmp_path / "out"), "--no-onnx"]) == 0
    found = Predictor.load(tmp_path / "out", "cpu").predict(TEXTS[:2])
    assert found == Predictor.load(trained, "cpu").predict(TEXTS[:2])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        ["README.md", "classifier.safetensors", "encoder", "labels.parquet", "metrics.json", "model.json"]
    )


def test_the_card_says_what_the_model_is(trained, tmp_path):
    flags = ["--no-onnx", "--name", "My: model", "--license", "apache-2.0"]
    assert main(["export", str(trained), "--output", str(tmp_path / "out"), *flags]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    result = json.loads((trained / "result.json").read_text())
    data = front_matter(card)
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "text-classification"
    assert data.model_name == "My: model"
    values = {metric.metric_name: metric.metric_value for metric in data.eval_results}
    assert values["P@1"] == pytest.approx(result["metrics"]["P@1"], abs=1e-5)
    assert "Test set, 100 texts" in card
    assert "600 training texts with 1,794 labels in all, 100 test texts." in card
    assert "| `made` | `here` |" in card
    assert "| `training.batch_size` | `32` |" in card
    assert "MiB at its peak" in card
    assert "120 labels" in card


def test_the_card_says_how_an_imported_dataset_came_about(tiny_flags, tmp_path):
    rows = [f"{text},{';'.join(f'label {i}' for i in ids)}\n" for text, ids in make_rows(300, 3)]
    (tmp_path / "a|b.csv").write_text("text,labels\n" + "".join(rows) + "short\n")
    data, runs = tmp_path / "data", tmp_path / "runs"
    flags = ["--test-fraction", "0.2", "--seed", "7"]
    assert main(["data", "import", str(tmp_path / "a|b.csv"), "--output", str(data), *flags]) == 0
    assert main(["train", *tiny_flags, "--data", str(data), "--epochs", "1", "--output", str(runs)]) == 0
    (run,) = runs.glob("2*")
    cards = []
    for number in range(2):
        assert main(["export", str(run), "--output", str(tmp_path / f"out{number}"), "--no-onnx"]) == 0
        cards.append((tmp_path / f"out{number}" / "README.md").read_text())
        shutil.rmtree(data, ignore_errors=True)
    assert "The test texts are 20.0% of one set, held out with seed 7. 1 row of the sources could not be" in cards[0]
    assert "| `a b.csv` | `sha256:" in cards[0]
    assert "## Data" not in cards[1], "the dataset is gone"


def test_everybody_may_read_what_is_exported(trained, tmp_path):
    assert main(["export", str(trained), "--output", str(tmp_path / "out"), "--no-onnx"]) == 0
    modes = {file.stat().st_mode for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert modes == {(tmp_path / "out" / "README.md").stat().st_mode}


def test_the_hub_takes_the_folder(random_model, tmp_path):
    from huggingface_hub import CommitOperationAdd, ModelCard

    out = tmp_path / "out"
    assert main(["export", str(random_model), "--output", str(out), "--no-onnx", "--name", 'a: "b" #c']) == 0
    files = [file for file in out.rglob("*") if file.is_file()]
    added = [CommitOperationAdd(file.relative_to(out).as_posix(), file) for file in files]
    assert {operation.path_in_repo for operation in added} >= {"README.md", "classifier.safetensors", "model.json"}
    assert not any(file.is_symlink() or file.name.startswith(".") for file in files)
    card = ModelCard.load(out / "README.md")
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert card.data.model_name == 'a: "b" #c'
    assert [result.metric_type for result in card.data.eval_results] == ["precision_at_1"]


def test_the_card_names_no_place_of_this_machine(trained, tiny_encoder, tiny_dataset, tmp_path):
    assert main(["export", str(trained), "--output", str(tmp_path / "out"), "--no-onnx"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for place in (tiny_encoder.parent, tiny_dataset.parent, trained.parent, Path.home()):
        assert str(place) not in card


def test_a_bundle_alone_has_a_card_too(random_model, tmp_path):
    assert main(["export", str(random_model), "--output", str(tmp_path / "out"), "--no-onnx"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(card).license == "unknown"
    assert "Validation set, 100 texts" in card


def test_what_is_there_is_replaced_only_when_it_is_an_export(random_model, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["export", str(random_model), "--output", str(out), "--no-onnx"]
    assert main(flags) == 0
    (out / "README.md").write_text("changed")
    assert main(flags) == 2
    assert (out / "README.md").read_text() == "changed"
    assert main([*flags, "--overwrite"]) == 0
    assert (out / "README.md").read_text() != "changed"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert main(["export", str(random_model), "--output", str(tmp_path / "mine"), "--overwrite"]) == 2
    assert main(["export", str(random_model), "--output", str(random_model), "--overwrite"]) == 2
    assert (tmp_path / "mine" / "letter.txt").exists()
    assert (random_model / "model.json").exists()
    assert main([*flags, "--license", "my own"]) == 2
    assert "is no identifier" in capsys.readouterr().err


def test_a_damaged_model_leaves_nothing_behind(random_model, tmp_path):
    shutil.copytree(random_model, tmp_path / "bad")
    (tmp_path / "bad" / "classifier.safetensors").write_bytes(b"no")
    assert main(["export", str(tmp_path / "bad"), "--output", str(tmp_path / "out"), "--no-onnx"]) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["bad"]


def test_the_example_in_the_readme_is_the_tested_one():
    assert f"```python\n{EXAMPLE.read_text()}```" in README
    assert len(EXAMPLE.read_text().splitlines()) <= 65


MODELS = {
    "fp32": {},
    "bf16": {"weight_dtype": "bf16"},
    "fp16, squared hinge": {"weight_dtype": "fp16", "loss": "squared_hinge"},
    "fp8, no head": {"weight_dtype": "fp8", "head": 0},
    "centred, intermediate, first token": {"centered": True, "intermediate": 48, "pooling": "cls"},
    "all dense": {"head": 120},
    "clusters and words": {"clusters": 4, "coarse": 2, "words": 12},
    "all dense, with words": {"head": 120, "words": 12},
    "words and pairs of them": {"words": 20, "pairs_of": TEXTS},
    "labels that read all words": {"words": 20, "pairs_of": TEXTS, "lead": 3},
    "all head labels read all words, clusters": {"words": 20, "lead": 8, "clusters": 4, "coarse": 2},
    "centred, adapter": {"centered": True, "adapter": 96},
    "clusters alone, intermediate": {"clusters": 2, "intermediate": 48},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_example_of_the_readme_gives_the_same_labels_without_torch(tiny_encoder, tmp_path, name):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = make_bundle(tmp_path / "model", tiny_encoder, 120, **MODELS[name])
    assert main(["export", str(model), "--output", str(tmp_path / "out")]) == 0
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "onnxruntime" in block]
    assert code in (tmp_path / "out" / "README.md").read_text()
    blocked = "import sys\nsys.modules['torch'] = sys.modules['engine'] = None\n"
    (tmp_path / "example.py").write_text(blocked + code)
    done = subprocess.run(
        [sys.executable, "example.py", "out", *TEXTS],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in found] == TEXTS
    exact = Predictor(load_bundle(tmp_path / "out", "cpu", torch.float32, reference), "cpu").predict(TEXTS, 5)
    for row, predictions in zip(found, exact, strict=True):
        assert [label for label, _ in row["labels"]] == [p.label for p in predictions]
        np.testing.assert_allclose([p for _, p in row["labels"]], [p.probability for p in predictions], atol=2e-4)
