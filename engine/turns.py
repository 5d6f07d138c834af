"""Who may train: one process a run, and for those who ask for it, one training at a time in a folder of runs.

Whoever trains holds `<folder>/.training.lock`. Locks belong to the process, not to the file: the system takes them back
when the process ends, however it ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Self

from engine.runs import WORKING_STATES, RunDirectory, run_paths

TURN_FILE = ".training.lock"
RUN_FILE = ".lock"
# Those who wait hold the lock for moments, to look whether an older run waits too.
PATIENCE_SECONDS = 0.5
WAIT_SECONDS = 1.0  # between two words of those who wait


class ProcessLock:
    """A file that one process at a time holds. On leaving the context it is given back."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(path)
        self.problem: str | None = None
        """Why no lock can be had in that folder, in a few words."""

    def take(self, seconds: float = 0.0) -> bool:
        """Whether this process holds it now; tries for so long. False where locks do not work: see `problem`."""
        from filelock import SoftFileLock, Timeout

        try:
            with warnings.catch_warnings(action="ignore"):  # of the substitute, which is not taken
                self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        except (NotImplementedError, OSError) as error:
            self.problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return False
        if isinstance(self._lock, SoftFileLock):  # a substitute that would outlive its process
            self._lock.release()
            self.problem = "its file system has no locks"
            return False
        return True

    def take_when_free(self, waiting: Callable[[], None]) -> None:
        """Takes it as soon as no other process holds it; waiting is called meanwhile and may raise. Without it where
        locks do not work: see `problem`."""
        while not self.take(WAIT_SECONDS) and self.problem is None:
            waiting()

    def give_back(self) -> None:
        """Does nothing if it is not held."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()


class Turn(ProcessLock):
    """The turn of `run` among the trainings in its folder."""

    def __init__(self, run: RunDirectory) -> None:
        path = run.path.resolve()
        self.root, self.id = path.parent, path.name
        self._ahead: str | None = None
        super().__init__(self.root / TURN_FILE)

    def take_as_next(self) -> bool:
        """Takes the turn unless somebody trains, or an older run waits for it too."""
        if not self.take():
            return False
        if older := self._first(("queued",), before=self.id):
            self.give_back()
            self._ahead = older
            return False
        return True

    def ahead(self) -> str:
        """The run that trains, or that is next, in words that stand behind "waiting for"."""
        # Looking at one run is cheap, looking at all of them every second is not.
        if self._ahead is None or RunDirectory(self.root / self._ahead).state() not in WORKING_STATES:
            self._ahead = self._first(WORKING_STATES) or self._first(("queued",), before=self.id)
        return self._ahead or "another training"

    def _first(self, states: tuple[str, ...], before: str | None = None) -> str | None:
        """The oldest other run in one of these states, of those older than the id `before`."""
        names = sorted(path.name for path in run_paths(self.root))
        others = (name for name in names if name != self.id and (before is None or name < before))
        return next((name for name in others if RunDirectory(self.root / name).state() in states), None)
