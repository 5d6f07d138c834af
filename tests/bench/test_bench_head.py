"""`engine bench head`: what it prints and writes, what it skips, and what it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.bench.head import UNGROUPED_LABELS, VARIANTS, HeadOptions, Setting, step_floor_bytes
from engine.bench.measure import MEMORY, format_measurements, measure
from engine.bench.shapes import SHAPES, Shape
from engine.cli import main
from engine.kernels import reference
from engine.model.classifier import Classifier, ClassifierShape
from engine.planning.encoders import ENCODERS

SMALL = "--labels 500 --width 32 --batch 6 --fan-in 16 --group-size 8 --repeats 2 --device cpu".split()


def bench(capsys, *arguments):
    """The JSON that `engine bench head` prints, and its progress."""
    assert main(["bench", "head", *SMALL, "--json", *arguments]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def refused(capsys, *arguments, code=2):
    assert main(["bench", "head", *SMALL, *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    return line


def test_every_variant_is_measured(capsys):
    result, progress = bench(capsys)
    assert [variant["name"] for variant in result["variants"]] == ["ours", "g1", "elmo", "renee"]
    for variant in result["variants"]:
        assert variant["skipped"] is None
        assert variant["labels"] == 500
        assert variant["repeats"] == 2
        assert 0 < variant["ms_min"] <= variant["ms"]
        assert variant["peak_bytes"] > variant["floor_bytes"] > 0
        assert variant["bytes_per_second"] == pytest.approx(variant["floor_bytes"] / variant["ms"] * 1e3)
        assert f"{variant['name']}: 500 labels" in progress
    assert result["machine"]["torch"] == torch.__version__
    assert result["machine"]["gpu"] is None
    assert result["memory"] == MEMORY["cpu"]
    assert result["command"].startswith("engine bench head --labels 500")
    assert result["shape"] == {
        "name": "amazon-670k, changed", "labels": 500, "encoder": "bert-base-uncased", "width": 32, "tokens": 128,
        "batch": 6, "fan_in": 16, "group_size": 8, "head_fraction": 0.0,
    }  # fmt: skip
    assert result["options"]["dtype"] == "fp32"
    assert result["options"]["backend"].startswith("torch")


def test_the_bytes_a_step_has_to_move(capsys):
    result, _ = bench(capsys)
    floor = {variant["name"]: variant["floor_bytes"] for variant in result["variants"]}
    groups = 63  # of 8 labels
    each_way = 500 * 16 * 4 + 500 * 4 + 500 * 4  # weights, bias, second moment
    assert floor["ours"] == 2 * each_way + groups * 16 * 2
    assert floor["g1"] == 2 * each_way + 500 * 16 * 2
    assert floor["elmo"] == 2 * 500 * 32 * 2
    assert floor["renee"] == 2 * 500 * 32 * 12


def test_dense_head_labels_count_with_all_their_features():
    shape = ClassifierShape(100, 10, 32, 16, 8, "sgd", "bf16")
    classifier = Classifier.new(shape, reference, "cpu", 0)
    assert step_floor_bytes(classifier) == 2 * (10 * 32 * 2 + 90 * 16 * 2 + 100 * 4) + 12 * 16 * 2


@pytest.mark.parametrize(
    "choice",
    [
        ["--dtype", "bf16", "--optimizer", "sgd"],
        ["--dtype", "fp8", "--loss", "squared_hinge"],
        ["--dtype", "fp16", "--deterministic"],
        ["--backend", "torch", "--head-fraction", "0.1"],
    ],
    ids=" ".join,
)
def test_options_of_the_sparse_variants(capsys, choice):
    result, _ = bench(capsys, "--only", "g1,ours", *choice)
    assert [variant["name"] for variant in result["variants"]] == ["g1", "ours"]
    assert all(variant["ms"] > 0 for variant in result["variants"])
    assert not torch.are_deterministic_algorithms_enabled()
    if choice[0] == "--dtype":
        assert choice[1] in result["variants"][1]["note"]
    else:
        assert "50 dense labels" in result["variants"][1]["note"]


def test_one_label_a_group_is_cut_and_says_so(capsys):
    result, _ = bench(capsys, "--only", "g1", "--labels", str(UNGROUPED_LABELS + 1), "--repeats", "1")
    (variant,) = result["variants"]
    assert variant["labels"] == UNGROUPED_LABELS
    assert f"labels cut from {UNGROUPED_LABELS + 1:,}" in variant["note"]


def test_what_does_not_fit_is_skipped_with_the_bytes_it_needs(capsys):
    result, _ = bench(capsys, "--only", "elmo,renee", "--labels", "100000000000", "--width", "32")
    for variant in result["variants"]:
        assert variant["ms"] is None
        assert "GiB are free" in variant["skipped"]
    assert f"{20 * 32 * 10**11 + 10 * 6 * 10**11} bytes" in result["variants"][1]["skipped"]
    assert main(["bench", "head", *SMALL, "--only", "renee", "--labels", "100000000000"]) == 0
    assert "renee skipped: needs about" in capsys.readouterr().out


def test_a_step_that_runs_out_of_memory_is_skipped():
    def build():
        raise torch.OutOfMemoryError("no")

    measured = measure("one", 5, "a note", 2**30, build, torch.device("cpu"), 1)
    assert measured.ms is None
    assert "ran out of memory" in measured.skipped
    assert measured.to_json()["bytes_per_second"] is None


def test_the_table_and_the_file(capsys, tmp_path):
    file = tmp_path / "head.json"
    assert main(["bench", "head", *SMALL, "--output", str(file)]) == 0
    out = capsys.readouterr().out
    stored = json.loads(file.read_text())
    for name in ("ours", "g1", "elmo", "renee"):
        assert f"\n{name} " in out
    for heading in (stored["command"], "floor MiB", "resident MiB", f"torch {torch.__version__}"):
        assert heading in out
    assert [variant["name"] for variant in stored["variants"]] == ["ours", "g1", "elmo", "renee"]


def test_what_cannot_be_is_refused_before_anything_is_measured(capsys, tmp_path):
    assert "amazon-670k, amazon-3m, paper2keywords-8.6m, 100m" in refused(capsys, "--shape", "amazon")
    assert "--fan-in 33 exceeds the 32 features" in refused(capsys, "--fan-in", "33")
    assert "--labels 0 must be at least 1" in refused(capsys, "--labels", "0")
    assert "--head-fraction 2 must be between" in refused(capsys, "--head-fraction", "2")
    assert "--repeats 0 must be at least 1" in refused(capsys, "--repeats", "0")
    assert "choose from ours, g1, elmo, renee" in refused(capsys, "--only", "ours,theirs")
    assert "make it first" in refused(capsys, "--output", str(tmp_path / "no" / "head.json"))
    assert "is a folder" in refused(capsys, "--output", str(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_or_backend_is_named(capsys):
    assert "no CUDA" in refused(capsys, "--device", "cuda", code=5)
    assert "need a CUDA device" in refused(capsys, "--backend", "triton", code=5)


def test_features_are_of_the_trainers_length_and_positives_distinct():
    shape = Shape("own", 7, "bert-base-uncased", 32, 128, 6, 16, 8)
    x_BD, positives = Setting(shape, HeadOptions(), torch.device("cpu")).batch(7)
    assert torch.allclose(x_BD.norm(dim=1), torch.full((6,), 32**0.5))
    assert len(set(zip(positives.label.tolist(), positives.instance.tolist(), strict=True))) == 5 * 6


def test_named_shapes_read_their_encoders_features():
    for shape in SHAPES.values():
        assert ENCODERS[shape.encoder].hidden == shape.width
        assert shape.tokens <= ENCODERS[shape.encoder].positions


def test_the_readme_shows_what_is_printed():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert format_measurements([], "cpu") in readme
    shape = replace(SHAPES["amazon-670k"], labels=50_000)
    for name, variant in VARIANTS.items():
        note = variant(Setting(shape, HeadOptions(dtype="fp32"), torch.device("cpu"))).note
        assert re.search(rf"^{name} +50,000 .*  {re.escape(note)}$", readme, re.MULTILINE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_variant_runs_on_a_gpu(capsys):
    result, _ = bench(capsys, "--device", "cuda", "--labels", "20000")
    assert result["options"]["backend"].startswith("triton")
    assert all(variant["ms"] > 0 for variant in result["variants"])
    assert result["memory"] == MEMORY["cuda"]
