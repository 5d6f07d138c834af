"""One folder that leaves this machine: the model bundle, its card, and its encoder in ONNX."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from engine.data.builtin import folder_of
from engine.data.manifest import read_manifest
from engine.errors import ConfigError, DataError
from engine.files import sync
from engine.inference.card import model_card
from engine.inference.onnx_features import export_features
from engine.inference.predictor import model_folder
from engine.kernels import reference
from engine.model.bundle import BundleInfo, load_bundle

RUN_FILES = ("config.json", "result.json")
BUNDLE_FILES = ("model.json", "classifier.safetensors", "labels.parquet", "metrics.json")


def export_model(source: Path, output: Path, name: str | None, licence: str, onnx: bool, overwrite: bool) -> None:
    """Makes the folder `output` of `source`, a run or a bundle; `Predictor.load` opens it.

    Complete or not there: it is made beside `output` and renamed. name: title of the card · licence: identifier as the
    hub knows it. Raises ConfigError when `output` is there and is not to be replaced, or is no export; DataError for a
    damaged model; EnvironmentProblem when the encoder cannot be written in ONNX.
    """
    folder = model_folder(source)
    if output.exists():
        if not overwrite:
            raise ConfigError(f"{output} exists; name another --output, or replace it with --overwrite")
        if not (output / "model.json").is_file() or output.resolve() in (folder.resolve(), source.resolve()):
            raise ConfigError(f"{output} is not an exported model; name another --output")
    fresh = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    fresh.mkdir(parents=True)
    try:
        bundle = load_bundle(folder, "cpu", torch.float32, reference)
        for file in BUNDLE_FILES:
            shutil.copyfile(folder / file, fresh / file)
        # Contents alone: safetensors lets nobody but the owner read what it writes.
        shutil.copytree(folder / "encoder", fresh / "encoder", copy_function=shutil.copyfile)
        if onnx:
            export_features(bundle.model, fresh / "features.onnx")
        run: dict[str, Any] = {file: _read(source / file) for file in RUN_FILES if (source / file).is_file()}
        metrics = run.get("result.json", {}).get("metrics") or _read(folder / "metrics.json")
        size = (folder / "classifier.safetensors").stat().st_size
        title = name or (f"{bundle.info.dataset} labels")
        card = model_card(title, bundle.info, run, _dataset(run, bundle.info), metrics, size, licence, onnx)
        (fresh / "README.md").write_text(card, encoding="utf-8")
        for written in [*fresh.rglob("*"), fresh]:
            sync(written)
        if output.exists():
            shutil.rmtree(output)
        os.replace(fresh, output)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _dataset(run: dict[str, Any], info: BundleInfo) -> dict[str, Any] | None:
    """dataset.json of what the run was trained on, if that is still where it was."""
    place = run.get("config.json", {}).get("config", {}).get("data.path")
    try:
        found, _ = read_manifest(folder_of(place)) if place else ({}, "")
    except DataError:
        return None
    return found if (found.get("name"), found.get("n_labels")) == (info.dataset, info.shape.labels) else None


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
