"""A folder that appears complete or not at all: made beside its place, renamed at the end, swept after a crash."""

import os
import re
import secrets
import shutil
from pathlib import Path

from engine.data.manifest import MANIFEST
from engine.errors import ConfigError


def check_target(path: Path, overwrite: bool) -> None:
    """Raises ConfigError unless a dataset may be put at `path`. Only a dataset is ever replaced."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise ConfigError(f"{path}: exists and is not a dataset; choose another output")
    if not overwrite:
        raise ConfigError(f"{path}: there is a dataset already; choose another output or ask to overwrite it")


def sibling(path: Path, role: str) -> Path:
    """A new name beside `path` that says whose it is. role: "tmp" for what is being made, "old" for the replaced."""
    return path.with_name(f"{path.name}.{role}-{os.getpid()}-{secrets.token_hex(4)}")


def sweep(path: Path) -> None:
    """Removes what processes that are gone left beside `path`, and puts back what one of them was replacing."""
    pattern = re.compile(re.escape(path.name) + r"\.(tmp|old)-(\d+)-[0-9a-f]{8}")
    found = [pattern.fullmatch(entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    for match in filter(None, found):
        if _is_at_work(int(match[2]), path.with_name(match[0])):
            continue
        if match[1] == "old" and not path.exists():
            os.replace(path.with_name(match[0]), path)
        else:
            shutil.rmtree(path.with_name(match[0]), ignore_errors=True)


def _is_at_work(process: int, folder: Path) -> bool:
    """Whether the process that made `folder` still runs; another that has its number now was born after the folder."""
    import psutil

    try:
        return psutil.Process(process).create_time() <= folder.stat().st_mtime + 1
    except (psutil.Error, OSError):
        return False


def move_into_place(tmp: Path, path: Path) -> None:
    """Renames `tmp` to `path`, and removes the dataset that was there only after that."""
    if path.exists():
        old = sibling(path, "old")
        os.utime(path)  # see _is_at_work
        os.replace(path, old)
        try:
            os.replace(tmp, path)
        except OSError:
            os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(tmp, path)
