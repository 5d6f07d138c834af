"""The runs in a folder, looked at often: files are read again only where something changed or a run is active."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from engine.runs import RunSummary, list_runs
from engine.training.new_run import UNSTARTED

STARTING_SECONDS = 20.0
FRESH_SECONDS = 1.0  # pages that ask within this time share one look


class RunList:
    """Newest first, as `engine.runs.list_runs`; thread-safe."""

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._runs: list[RunSummary] = []
        self._signature: tuple | None = None
        self._looked = 0.0

    def __call__(self) -> list[RunSummary]:
        with self._lock:
            now = time.monotonic()
            if self._signature is None or now - self._looked > FRESH_SECONDS:
                signature = self._sign()
                # Whether an active run lives is no matter of its files.
                if signature != self._signature or any(run.active for run in self._runs):
                    self._runs, self._signature = [_begun(run) for run in list_runs(self.root)], signature
                self._looked = now
            return self._runs

    def find(self, id: str | None) -> RunSummary | None:
        """The run of that id, as it is now."""
        return next((run for run in self() if run.id == id), None)

    def forget(self) -> None:
        """The next look is a fresh one: this process changed something."""
        self._signature = None

    def _sign(self) -> tuple:
        try:
            folders = sorted(entry.path for entry in os.scandir(self.root) if entry.is_dir())
        except OSError:
            return ()
        # A run that ends writes its status last; the files of one that is active are read anyway.
        return tuple((path, changed_at(f"{path}/status.json")) for path in folders)


def _begun(run: RunSummary) -> RunSummary:
    """A run that was just made is being started, as its process will say in some seconds."""
    if run.message != UNSTARTED or not 0 <= time.time() - run.started < STARTING_SECONDS:
        return run
    return replace(run, state="preparing", message="starting")


def changed_at(file: str | Path) -> int:
    """Nanoseconds since the epoch; 0 while there is no such file."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return 0
