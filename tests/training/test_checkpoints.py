"""Checkpoints are whole or not there: damage, half-made folders, a disk that takes no more."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.errors import DataError, EnvironmentProblem
from engine.training import checkpoints

TENSORS = {"classifier": {"weight": torch.arange(12.0).view(3, 4), "index": torch.arange(3, dtype=torch.int16)}}


def test_what_is_saved_is_loaded_and_old_ones_are_pruned(tmp_path):
    for step in (1, 2, 10):
        checkpoints.save(tmp_path, step, TENSORS, {"step": step}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_10", "step_2"]
    newest = checkpoints.latest(tmp_path)
    assert checkpoints.load_state(newest) == {"step": 10}
    target = {"weight": torch.zeros(3, 4), "index": torch.zeros(3, dtype=torch.int16)}
    checkpoints.load_into(newest, "classifier", target)
    assert torch.equal(target["weight"], TENSORS["classifier"]["weight"])


def test_ids_of_columns_that_were_int16_are_loaded_and_other_types_refused(tmp_path):
    made = checkpoints.save(tmp_path, 1, TENSORS, {}, keep=1)
    target = {"weight": torch.zeros(3, 4), "index": torch.zeros(3, dtype=torch.uint16)}
    checkpoints.load_into(made, "classifier", target)
    assert target["index"].tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"index is torch\.int16"):
        checkpoints.load_into(made, "classifier", target | {"index": torch.zeros(3, dtype=torch.int32)})


@pytest.mark.parametrize("damage", ["truncated", "changed", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    checkpoints.save(tmp_path, 1, TENSORS, {}, keep=2)
    broken = checkpoints.save(tmp_path, 2, TENSORS, {}, keep=2)
    file = broken / "classifier.safetensors"
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-8])
    elif damage == "changed":
        file.write_bytes(content[:-1] + b"\x01")
    else:
        (broken / "manifest.json").unlink()
    assert checkpoints.latest(tmp_path).name == "step_1"


def test_a_half_made_checkpoint_is_swept(tmp_path):
    checkpoints.save(tmp_path, 1, TENSORS, {}, keep=2)
    (tmp_path / "step_2.tmp").mkdir()
    assert checkpoints.latest(tmp_path).name == "step_1"
    assert not (tmp_path / "step_2.tmp").exists()


def test_too_little_free_space_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 1, TENSORS, {}, keep=2)
    monkeypatch.setattr(checkpoints, "SPARE_BYTES", 2**62)
    with pytest.raises(EnvironmentProblem, match="free some space"):
        checkpoints.save(tmp_path, 2, TENSORS, {}, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]


WRITE = """
import sys, torch
from pathlib import Path
from engine.training import checkpoints
from engine.errors import DataError, EnvironmentProblem
try:
    checkpoints.save(Path(sys.argv[1]), 2, {"classifier": {"weight": torch.zeros(1 << 20)}}, {}, keep=2)
except EnvironmentProblem as error:
    print(error)
"""


def test_a_disk_that_fills_while_writing_leaves_the_previous_checkpoint(tmp_path):
    """A limit on file size makes the write itself fail, as a full disk does."""
    checkpoints.save(tmp_path, 1, TENSORS, {"step": 1}, keep=2)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(tmp_path)],
        cwd=Path(__file__).parents[2], preexec_fn=limit, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "was not written" in done.stdout
    assert "Earlier checkpoints are intact" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]
    assert checkpoints.load_state(checkpoints.latest(tmp_path)) == {"step": 1}
    assert json.loads((tmp_path / "step_1" / "state.json").read_text()) == {"step": 1}
