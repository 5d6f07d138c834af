"""Files that a browser sent, on their way to an importer: their names, their place, and what they hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.data.tables import kind_of
from engine.errors import ConfigError, DataError

MOST_FILES = 40
LOOK_SECONDS = 60


def look(files: Sequence[str]) -> dict[str, Any]:
    """What an importer would find in the uploaded files: see `engine.data.columns.look_at`. Raises an EngineError.

    Another process looks: what is in there may be anything.
    """
    with _together(files, (os.symlink, os.link, shutil.copyfile)) as source:
        command = [sys.executable, "-m", "engine", "data", "columns", str(source), "--json"]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=LOOK_SECONDS, stdin=subprocess.DEVNULL, encoding="utf-8",
                errors="replace",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DataError("the first rows took longer than a minute to read; import on the command line") from None
        if done.returncode == 0:
            return json.loads(done.stdout)
        words = (done.stderr.strip().splitlines() or ["these files cannot be read"])[-1]
        raise DataError(plain(words, source if source.is_dir() else source.parent))


def put(files: Sequence[str], folder: Path) -> Path:
    """Puts the uploaded files into `folder`; returns what an importer has to be given. Raises ConfigError."""
    return _put(files, folder, (os.link, shutil.copyfile))


def plain(words: str, folder: Path) -> str:
    """What an importer says of files in `folder`, which their owner does not know, without it."""
    words = re.sub(r"^engine( [a-z]+)*: (error: )?", "", words)
    return words.replace(f"{folder}{os.sep}", "").replace(f"{folder}: ", "")


def names(files: Sequence[str]) -> list[str]:
    """Names under which the files are imported; a train and a test table get those that the importer knows.

    Raises ConfigError when there are none or too many, or two of one name.
    """
    if not files:
        raise ConfigError("choose a file first")
    if len(files) > MOST_FILES:
        raise ConfigError(f"{len(files)} files are too many to upload: import the folder on the command line")
    found = [re.sub(r"[^\w.-]", "_", Path(file).name).lstrip(".") or "file" for file in files]
    if len(found) == 2 and all(kind_of(Path(name)) for name in found):
        sides = [_side(name) for name in found]
        if sorted(filter(None, sides)) != ["test", "train"]:
            raise ConfigError("of two tables, one has to have train in its name and the other one test")
        found = [side + name[name.index(".") :] for side, name in zip(sides, map(_ending, found), strict=True)]
    if len(set(found)) < len(found):
        raise ConfigError("two of the files have the same name; rename one")
    return found


def _ending(name: str) -> str:
    """A name of which only the ending counts: `a.b.csv.gz` -> `x.csv.gz`."""
    parts = name.split(".")
    return ".".join(["x", *parts[-2 if parts[-1] == "gz" else -1 :]])


def _side(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    if {"train", "training", "trn"} & set(words):
        return "train"
    return "test" if {"test", "testing", "tst", "dev", "valid", "validation"} & set(words) else None


@contextmanager
def _together(files: Sequence[str], ways: Sequence[Callable]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield _put(files, Path(folder), ways)


def _put(files: Sequence[str], folder: Path, ways: Sequence[Callable]) -> Path:
    """ways: to make a file appear under a second name, the first that works is taken."""
    placed = [folder / name for name in names(files)]
    for file, target in zip(files, placed, strict=True):
        for way in ways:
            try:
                way(file, target)
                break
            except OSError as error:
                problem = error.strerror or str(error)
        else:
            raise ConfigError(f"{target.name} cannot be stored here ({problem}); free some space, or upload it again")
    return placed[0] if len(placed) == 1 and kind_of(placed[0]) else folder
