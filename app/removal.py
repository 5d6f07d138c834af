"""Deletes datasets."""

from __future__ import annotations

import shutil
from pathlib import Path

from app.workspace import Workspace
from engine.data.builtin import BUILT_IN
from engine.data.manifest import MANIFEST
from engine.errors import ConfigError, DataError
from engine.runs import RunDirectory, list_runs


def check_removable(workspace: Workspace, id: str) -> Path:
    """The folder of the dataset. Raises ConfigError when it is not to be deleted."""
    if id in BUILT_IN:
        raise ConfigError("the built-in corpus stays: it is small, and trainings make it again")
    path = workspace.dataset_path(id)
    for run in list_runs(workspace.runs):
        if run.active and _trains_on(run.path) == path.resolve():
            raise ConfigError(f"{run.id} is {run.state} with this dataset; stop it first")
    return path


def remove_dataset(workspace: Workspace, id: str) -> None:
    """Deletes the dataset of that id for good. Raises ConfigError when it is not to be deleted, or cannot be."""
    path = check_removable(workspace, id)
    try:
        if path.is_symlink():
            path.unlink()
            return
        (path / MANIFEST).unlink()  # from here on it is no dataset, whatever comes between
        shutil.rmtree(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be deleted ({error.strerror or error}); delete the folder yourself") from None


def _trains_on(run: Path) -> Path | None:
    try:
        return Path(RunDirectory(run).read_json("config.json")["config"]["data.path"]).resolve()
    except (OSError, DataError, KeyError, TypeError):
        return None
