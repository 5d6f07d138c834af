"""`engine bench pipeline`: a whole step of every scheme, the memory of each phase, and what it refuses."""

import json

import pytest
import torch

from engine.bench.encoders import new_encoder
from engine.cli import main
from engine.planning.encoders import ENCODERS

SMALL = "--labels 300 --batch 4 --tokens 8 --fan-in 32 --group-size 16 --repeats 1 --device cpu".split()
SMALL += ["--encoder", "all-MiniLM-L6-v2"]


def bench(capsys, *arguments):
    """The JSON that `engine bench pipeline` prints."""
    assert main(["bench", "pipeline", *SMALL, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main(["bench", "pipeline", *SMALL, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_variant_is_measured_with_the_memory_of_its_phases(capsys):
    result = bench(capsys)
    found = {variant["name"]: variant for variant in result["variants"]}
    assert list(found) == ["ours", "g1", "elmo", "renee"]
    for variant in found.values():
        assert variant["skipped"] is None
        assert variant["ms"] > 0
        assert variant["peak_bytes"] == max(variant["phases"].values())
    assert list(found["ours"]["phases"]) == ["encoder", "grouping", "classifier", "steps", "evaluation", "checkpoint"]
    assert list(found["g1"]["phases"]) == ["encoder", "classifier", "steps", "evaluation", "checkpoint"]
    assert list(found["renee"]["phases"]) == ["model", "steps"]
    assert "groups of 16" in found["ours"]["note"]
    assert "groups of 1," in found["g1"]["note"]
    assert result["shape"]["width"] == 384


def test_settings_of_a_training_hold_here_too(capsys):
    settings = ["training.micro_batch=2", "encoder.checkpointing=every_1"]
    result = bench(capsys, "--only", "ours", "--no-checkpoint", *[part for s in settings for part in ("--set", s)])
    (ours,) = result["variants"]
    assert "micro-batch 2, activation checkpoints every 1, optimizer after backward" in ours["note"]
    assert "checkpoint" not in ours["phases"]


def test_the_table_names_the_phases(capsys):
    assert main(["bench", "pipeline", *SMALL, "--only", "ours", "--no-checkpoint"]) == 0
    out = capsys.readouterr().out
    assert "300 labels, all-MiniLM-L6-v2, 8 tokens, batch 4, fan-in 32" in out
    assert "ours resident MiB while: encoder " in out


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_the_size_of_their_models(name):
    with torch.device("meta"):
        encoder = new_encoder(name, 0)
    parameters = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert parameters == pytest.approx(ENCODERS[name].parameters / 1e6, rel=1e-3)


def test_what_cannot_be_is_refused_in_a_line(capsys):
    assert "there are all-MiniLM-L6-v2" in refused(capsys, "--encoder", "gpt-7")
    assert "unknown key 'encoder.speed'" in refused(capsys, "--set", "encoder.speed=9")
    assert "--only theirs: choose from ours" in refused(capsys, "--only", "theirs")
    assert "--tokens 0 must be at least 1" in refused(capsys, "--tokens", "0")
