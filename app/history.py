"""What a run has said so far, read from its event log as it grows, and thinned to what a page can show."""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

POINTS = 400  # of a curve on a page
WORDS = 200  # events kept to be shown in words
CACHED_RUNS = 16
TOPIC = re.compile(r"^(\w+) {2,}")  # a message of the terminal begins with what it is about, in a column of its own
NUMBERS = ("loss", "instances_per_second", "memory_bytes", "host_bytes", "learning_rate")


@dataclass
class Curve:
    """Numbers against steps."""

    steps: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))

    def add(self, step: int, value: float) -> None:
        """A run that went on from a checkpoint says its steps again: what it said of them before is dropped."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None

    def thinned(self, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values), float64, of at most `points`: means of equally many neighbours, the last as it is."""
        steps, values = np.array(self.steps, dtype=np.float64), np.array(self.values, dtype=np.float64)
        if len(steps) <= points:
            return steps, values
        cuts = np.linspace(0, len(steps) - 1, points).astype(int)
        counts = np.diff(cuts)
        thin = [np.append(np.add.reduceat(a[:-1], cuts[:-1]) / counts, a[-1]) for a in (steps, values)]
        return thin[0], thin[1]


class History:
    """The events of one run. `refresh` reads what was appended since."""

    def __init__(self, file: Path):
        self.file = file
        self.curves: dict[str, Curve] = {}
        self.words: list[tuple[float, str]] = []  # (seconds since 1970, what happened), the latest WORDS
        self.eta_seconds: float | None = None
        self.spoken_at = 0.0  # seconds since 1970, of the last step event
        self.best: tuple[int, dict[str, float]] | None = None  # step and validation metrics of the model kept
        self.size = 0  # bytes of the log that were read

    def refresh(self) -> None:
        with suppress(OSError), self.file.open("rb") as stream:
            if stream.seek(0, 2) < self.size:  # another file of the same name
                self.__init__(self.file)
            stream.seek(self.size)
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # still being written
                self.size += len(line)
                with suppress(ValueError, KeyError, TypeError):
                    self._add(json.loads(line))

    def curve(self, name: str) -> Curve:
        """Of a number in step events, or of a validation metric such as P@1. Empty if nothing was said of it."""
        return self.curves.get(name, Curve())

    @property
    def metrics(self) -> list[str]:
        """Validation metrics that were measured."""
        return [name for name in self.curves if name not in NUMBERS]

    def _add(self, event: dict) -> None:
        kind = event["type"]
        if kind == "step":
            for name in NUMBERS:
                if event.get(name) is not None:
                    self._of(name).add(event["step"], event[name])
            self.eta_seconds, self.spoken_at = event.get("eta_seconds"), event["time"]
        elif kind == "message" and event.get("text", "").startswith("resuming"):
            self.eta_seconds = None  # that of the session before
        elif kind == "eval":
            for name, value in event["metrics"].items():
                if name.startswith(("P@", "PSP@")) and "/" not in name and value is not None:
                    self._of(name).add(event["step"], value)
            if event.get("best"):
                self.best = event["step"], event["metrics"]
        text = _words(event)
        if text:
            self.words.append((event["time"], text))
            del self.words[:-WORDS]

    def _of(self, name: str) -> Curve:
        return self.curves.setdefault(name, Curve())


class Histories:
    """The histories that were looked at lately, one for each run directory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Path, History] = OrderedDict()

    def of(self, run: Path) -> History:
        """The history of a run directory, up to date."""
        with self._lock:
            history = self._found.setdefault(run, History(run / "events.jsonl"))
            self._found.move_to_end(run)
            while len(self._found) > CACHED_RUNS:
                self._found.popitem(last=False)
            history.refresh()
            return history


def _words(event: dict) -> str:
    """What happened, for people; nothing for what the curves show."""
    kind = event["type"]
    if kind == "message":
        return TOPIC.sub(r"\1: ", event["text"])
    if kind == "checkpoint":
        return f"saved everything at step {event['step']:,} in {event['seconds']:.1f} s"
    if kind == "eval":
        metrics = event["metrics"]
        found = [f"{name} {100 * metrics[name]:.1f} %" for name in ("P@1", "P@3", "P@5") if name in metrics]
        best = ", as good as the best before" if event.get("tie") else ", the best so far" if event.get("best") else ""
        return f"validation after epoch {event['epoch'] + 1}: {', '.join(found)}{best}" if found else ""
    return ""
