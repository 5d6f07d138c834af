"""A bundle is replaced in one go, also when the machine dies in between."""

import shutil

import pytest

from engine.cli import main
from engine.inference.predictor import Predictor, model_folder
from engine.model.bundle import recover_bundle


@pytest.fixture(scope="module")
def run(tiny_flags, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundle")
    assert main(["train", *tiny_flags, "--output", str(root), "--max-steps", "20"]) == 0
    return next(root.glob("2*"))


def test_a_replacement_that_died_between_its_renames_is_undone(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "model").rename(copy / "model.old")
    assert model_folder(copy) == copy / "model.old"
    recover_bundle(copy / "model")
    assert model_folder(copy) == copy / "model"
    assert len(Predictor.load(copy).predict(["open the file"])[0]) == 5


def test_a_half_written_bundle_is_never_read(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "model.tmp").mkdir()
    assert model_folder(copy) == copy / "model"


def test_nothing_is_pickled(run):
    kinds = {path.suffix for path in (run / "model").rglob("*") if path.is_file()}
    kinds |= {path.suffix for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".parquet", ".txt"}
