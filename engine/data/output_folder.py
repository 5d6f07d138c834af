"""A folder that appears complete or not at all: made beside its place, renamed at the end, swept after a crash."""

import os
import re
import secrets
import shutil
import time
from pathlib import Path

from engine.data.manifest import MANIFEST
from engine.data.problems import REPORT
from engine.errors import ConfigError

FORGOTTEN = 3600  # seconds without a write, after which nobody is at work on another name
MADE = "|".join(map(re.escape, (MANIFEST, REPORT)))


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
    """Removes what processes that are gone left beside `path`, and puts back what one of them was replacing.

    What another name was being made by is removed too when nothing was written to it for an hour: the process may be
    one of another machine that has the same folder.
    """
    pattern = re.compile(r"(.+)\.(tmp|old)-(\d+)-[0-9a-f]{8}", re.DOTALL)
    found = [pattern.fullmatch(entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    for match in filter(None, found):
        folder = path.with_name(match[0])
        own, role = match[1] == path.name, match[2]
        if folder.is_symlink() or _is_at_work(int(match[3]), folder):
            continue
        if own and role == "old" and not path.exists():
            os.replace(folder, path)
        elif own or (role == "tmp" and _is_half_made(folder) and time.time() - _last_write(folder) > FORGOTTEN):
            shutil.rmtree(folder, ignore_errors=True)


def _is_half_made(folder: Path) -> bool:
    """Whether the folder holds the files of a dataset and nothing else."""
    return all(re.fullmatch(r"(train|test|labels)(_\w+)?\.(parquet|npy)|" + MADE, file.name) for file in _files(folder))


def _last_write(folder: Path) -> float:
    """When something in the folder was written last, in seconds since 1970."""
    return max(file.stat().st_mtime for file in [folder, *_files(folder)])


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


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
