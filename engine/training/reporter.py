"""What a run says while it works: one line or bar on the terminal, events and status in its directory.

Also the one place where a request to stop is noticed: SIGINT, SIGTERM, SIGHUP, or the run's `stop` file.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.errors import StopRequested
from engine.progress import Terminal, bar
from engine.runs import RunDirectory

STOP_FILE_SECONDS = 1.0  # the stop file is looked for no more often


class Reporter:
    """Speaks for one run. `state`, `step` and `total` are what status.json says."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        status = run.read_status()
        self.state, self.step, self.total = status["state"], status.get("step") or 0, status.get("total") or 0
        self._stopping = False
        self._looked = 0.0

    def say(self, text: str, event: bool = True) -> None:
        """One line for people: terminal, log and event log."""
        from tqdm import tqdm

        tqdm.write(text, file=Terminal())
        self.run.log(text)
        if event:
            self.run.event("message", text=text)

    def enter(self, state: str, step: int = 0, total: int = 0, message: str = "") -> None:
        """The run is now in `state`."""
        self.state, self.step, self.total = state, step, total
        self.run.status(state, step, total, message)

    @contextmanager
    def stage(self, title: str, unit: str, stoppable: bool = True) -> Iterator[Callable[[int, int], None]]:
        """A bar with rate and ETA. Yields update(done, total), which raises StopRequested when that is asked for."""
        with bar(title, unit) as shown:

            def update(done: int, total: int) -> None:
                shown.total = total
                shown.update(done - shown.n)
                self.run.heartbeat(message=f"{title}: {done:,} of {total:,} {unit}")
                if stoppable and self.stopping():
                    raise StopRequested(f"stopped while {title}", f"engine train --resume {self.run.path}")

            yield update

    def stopping(self) -> bool:
        """Whether the run was asked to stop."""
        if not self._stopping and time.monotonic() - self._looked > STOP_FILE_SECONDS:
            self._looked = time.monotonic()
            self._stopping = self.run.stop_requested()
        return self._stopping

    @contextmanager
    def stop_signals(self) -> Iterator[None]:
        """Turns the first SIGINT, SIGTERM or SIGHUP into a request to stop; a second one ends the process at once."""

        def ask(number: int, frame: object) -> None:
            self._stopping = True
            signal.signal(number, previous[number])
            doing = "leaving the queue" if self.state == "queued" else "stopping after this step, saving"
            Terminal().write(f"\n{doing} (once more to end at once)\n")

        previous = {}
        try:
            # SIGHUP: the terminal was closed. Windows has none.
            for number in filter(None, (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))):
                previous[number] = signal.signal(number, ask)
        except ValueError:
            pass  # not the main thread: the stop file still works
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
