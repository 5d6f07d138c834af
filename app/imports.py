"""Makes datasets from uploaded files, and the built-in corpora: one after the other, each a job."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app import uploads
from app.jobs import Job, Jobs
from app.workspace import TITLES, Workspace
from engine.data.builtin import BUILT_IN, folder_of
from engine.data.output_folder import check_target
from engine.errors import ConfigError, EngineError

KIND = "import"
LONGEST_NAME = 60
FOUND = "found"  # the delimiter that the importer finds itself
WHOLE = "whole"  # no delimiter: a field is one label
NO_TEXT = "choose the column that holds the texts"
NO_LABELS = "choose the column that holds the labels"
# A bar of `engine.progress` in a log: `importing:  45%|####5     | 12/27 [00:10<00:12, 1.2 bytes/s]`
BAR = re.compile(r"(\d+)%\|.*\| .* \[[\d:]+<([\d:?]+)")


@dataclass(frozen=True)
class Choices:
    """What a person chose. text, labels: columns of a table, empty for other files · delimiter: FOUND, WHOLE or what
    stands between two labels · test_fraction: None where the files have a test set.
    """

    text: tuple[str, ...] = ()
    labels: str | None = None
    delimiter: str = FOUND
    test_fraction: float | None = 0.1
    seed: int = 0
    strict: bool = False

    def arguments(self, source: str | Path, output: Path, name: str) -> list[str]:
        """Of `engine`, for the import."""
        found = ["data", "import", str(source), "--output", str(output), "--name", name]
        if self.text:
            found.append(f"--text-column={','.join(self.text)}")
            if self.labels:
                found.append(f"--labels-column={self.labels}")
            if self.delimiter != FOUND:
                found.append(f"--delimiter={'' if self.delimiter == WHOLE else self.delimiter}")
        if self.test_fraction is not None:
            found += ["--test-fraction", f"{self.test_fraction:g}", "--seed", str(self.seed)]
        return found + ["--strict"] * self.strict


class Imports:
    """The imports of a workspace. Thread-safe."""

    def __init__(self, workspace: Workspace, jobs: Jobs):
        self.workspace = workspace
        self.jobs = jobs
        self._lock = threading.Lock()

    def list(self) -> list[Job]:
        """Newest first; those that have ended no longer hold their files."""
        found = self.jobs.list(KIND)
        for job in found:
            if job.state != "running" and job.files.is_dir():
                shutil.rmtree(job.files, ignore_errors=True)
        return found

    def check_name(self, name: str) -> str:
        """The name, without white space around it. Raises ConfigError when no dataset can be called so."""
        name = name.strip()
        if not name:
            raise ConfigError("give the dataset a name")
        if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", name) or len(name) > LONGEST_NAME:
            raise ConfigError(
                f"a name has at most {LONGEST_NAME} letters a to z, digits, and between them dots, hyphens, underscores"
            )
        try:
            taken = {path.name.lower() for path in self.workspace.datasets.iterdir()}
        except FileNotFoundError:
            taken = set()
        if name.lower() in {*taken, *BUILT_IN}:
            raise ConfigError("a dataset of this name is there already; choose another name")
        check_target(self.workspace.datasets / name, overwrite=False)
        return name

    def start(self, files: Sequence[str], name: str, choices: Choices) -> Job:
        """Imports uploaded files as the dataset `name`. Raises an EngineError when that cannot start."""
        with self._lock:
            self._check_free()
            name = self.check_name(name)
            folder = self.jobs.prepare(KIND)
            try:
                source = uploads.put(files, folder / "files")
            except EngineError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            arguments = choices.arguments(source, self.workspace.datasets / name, name)
            return self.jobs.start(folder, f"importing {name}", arguments, dataset=name)

    def start_built_in(self, id: str) -> Job:
        """Makes a built-in corpus. Raises ConfigError while an import runs."""
        with self._lock:
            self._check_free()
            arguments = ["data", "demo", "--output", str(folder_of(id)), "--scope", BUILT_IN[id]]
            title = f"making the {TITLES[id].partition(':')[0]}"
            return self.jobs.start(self.jobs.prepare(KIND), title, arguments, dataset=id)

    def _check_free(self) -> None:
        if any(job.state == "running" for job in self.list()):
            raise ConfigError("another import is running; wait for it, or cancel it")


def share(words: str) -> tuple[float, float | None] | None:
    """(share done, seconds left if known) of what a progress bar says; None for other words."""
    found = BAR.search(words)
    if not found:
        return None
    parts = found[2].split(":")
    left = None if "?" in found[2] else sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))
    return int(found[1]) / 100, left


def cancelled(job: Job) -> bool:
    return job.state == "failed" and job.words == "interrupted"


def outcome(job: Job) -> str:
    """What became of an import, in words."""
    if cancelled(job):
        return "cancelled; nothing was kept"
    if job.state == "failed":
        return uploads.plain(job.words, job.files)
    made = re.search(r": ([\d,]+ training texts?.*)$", job.output(), re.MULTILINE)
    left_out = re.search(r"^rows left out: ([\d,]*\d)", job.output(), re.MULTILINE)
    rows = left_out and ("1 row was" if left_out[1] == "1" else f"{left_out[1]} rows were")
    return (made[1] if made else "done") + (f"; {rows} left out" if rows else "")
