"""Checkpoints that a crash, a power cut or a full disk cannot spoil.

A checkpoint is written to `step_<n>.tmp/`, synced, given its manifest (sizes and sha256) last and renamed;
only then are older ones pruned. What is not complete is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import DataError, EnvironmentProblem
from engine.files import sync
from engine.tensorfile import save_tensors

MANIFEST = "manifest.json"
SPARE_BYTES = 64 * 2**20  # free space to leave on the disk
EARLIER = {torch.uint16: torch.int16}  # what held ids of columns before


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int) -> Path:
    """Writes `folder/step_<step>/` with one safetensors file per entry of `tensors` and `state.json`.

    Keeps the newest `keep` checkpoints. Raises EnvironmentProblem, with the older checkpoints untouched, when
    the disk does not take it.
    """
    target = folder / f"step_{step}"
    fresh = folder / f"step_{step}.tmp"
    need = sum(t.numel() * t.element_size() for part in tensors.values() for t in part.values()) + SPARE_BYTES
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < need:
            raise OSError(f"{free / 2**20:,.0f} MiB are free, {need / 2**20:,.0f} MiB are needed")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        for name, part in tensors.items():
            save_tensors(part, fresh / f"{name}.safetensors")
        (fresh / "state.json").write_text(json.dumps(state))
        manifest = {path.name: _describe(path) for path in sorted(fresh.iterdir())}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*fresh.iterdir(), fresh]:
            sync(path)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(fresh, target)
        sync(folder)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise EnvironmentProblem(
            f"checkpoint {target} was not written: {error}; free some space. Earlier checkpoints are intact"
        ) from error
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose files are as its manifest says, or None. Sweeps what a crash left half-made."""
    for path in folder.glob("*.tmp"):
        shutil.rmtree(path)
    for path in reversed(_steps(folder)):
        if _is_intact(path):
            return path
    return None


def load_state(checkpoint: Path) -> dict:
    """state.json of a checkpoint."""
    return json.loads((checkpoint / "state.json").read_text())


def has_part(checkpoint: Path, name: str) -> bool:
    """Whether a checkpoint has a part of that name: those of an earlier version may lack some."""
    return (checkpoint / f"{name}.safetensors").is_file()


def load_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """One part of a checkpoint, on the CPU."""
    from safetensors.torch import load_file

    return load_file(checkpoint / f"{name}.safetensors")


def tensor_shape(checkpoint: Path, name: str, key: str) -> tuple[int, ...] | None:
    """Shape of one tensor of a part, without reading it; None if the part has none of that name."""
    from safetensors import safe_open

    with safe_open(checkpoint / f"{name}.safetensors", "pt") as file:
        return tuple(file.get_slice(key).get_shape()) if key in file.keys() else None  # noqa: SIM118


def load_into(checkpoint: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """Copies one part of a checkpoint into existing tensors, one at a time. Raises DataError for another shape."""
    from safetensors import safe_open

    with safe_open(checkpoint / f"{name}.safetensors", "pt") as file:
        if set(file.keys()) != set(tensors):
            raise DataError(f"{checkpoint}: {name} holds other tensors than this run makes")
        for key, tensor in tensors.items():
            saved = file.get_tensor(key)
            if saved.shape != tensor.shape or saved.dtype not in (tensor.dtype, EARLIER.get(tensor.dtype)):
                raise DataError(f"{checkpoint}: {name}.{key} is {saved.dtype} {tuple(saved.shape)}, not the run's")
            tensor.copy_(saved)


def _steps(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    found = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _is_intact(path: Path) -> bool:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return all(_describe(path / name) == described for name, described in manifest.items())
    except (OSError, ValueError):
        return False


def _describe(path: Path) -> dict:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
