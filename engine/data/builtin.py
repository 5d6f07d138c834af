"""Datasets by name: a directory, or a built-in corpus that is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.data.python_api import ensure_python_api
from engine.data.store import Dataset

BUILT_IN = {"python-api": "installed", "python-stdlib": "stdlib"}
FOLDER = Path("datasets")  # of the built-in corpora, in the working folder


def folder_of(name: str) -> Path:
    """Where the dataset `name` lies."""
    return FOLDER / name if name in BUILT_IN else Path(name)


def open_named(name: str, progress: Callable[[int, int], None]) -> Dataset:
    """The dataset, verified; a built-in corpus is made or renewed first. progress: (files read, files in all)."""
    if name in BUILT_IN:
        return ensure_python_api(folder_of(name), BUILT_IN[name], progress=progress)
    return Dataset.open(folder_of(name), verify=True)
