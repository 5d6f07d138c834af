"""The models that can be asked, and those of them that are in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.html import percent
from engine.errors import ConfigError, DataError
from engine.runs import ACTIVE_STATES, RunDirectory, RunSummary, find_run

if TYPE_CHECKING:
    from engine.inference.predictor import Predictor

MODELS_IN_MEMORY = 2


@dataclass(frozen=True)
class Answer:
    """A label, with the probability that the text has it. train_frequency: training texts that had it."""

    label: str
    label_id: int
    probability: float
    train_frequency: int


class Models:
    """The models of the runs in `root` that were asked lately, in memory; loaded again when their files change."""

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._loaded: OrderedDict[Path, tuple[int, Predictor]] = OrderedDict()

    def predict(self, run_id: str, text: str, k: int) -> list[Answer]:
        """The k likeliest labels by the model of a finished run. Raises an EngineError that says why there is none."""
        path = self.run(run_id).model
        # A predictor works for one thread at a time.
        with self._lock:
            try:
                predictor = self._load(path)
                found = predictor.predict([text], k=k)[0]
                return [
                    Answer(p.label, p.label_id, p.probability, predictor.train_frequency(p.label_id)) for p in found
                ]
            except OSError as error:
                raise DataError(f"the model of {run_id} cannot be read ({error}); copy it again, or train") from error

    def warm(self, run_id: str) -> None:
        """Loads a model before it is asked. Raises as `predict` does."""
        path = self.run(run_id).model
        with self._lock, suppress(OSError):
            self._load(path)

    def ready(self, run_id: str | None) -> bool:
        """Whether the model of that run is in memory."""
        return any(path.parent.name == run_id for path in list(self._loaded))

    def run(self, run_id: str | None) -> RunDirectory:
        """The finished run of that id, which has a model. Raises ConfigError."""
        if not run_id:
            raise ConfigError("choose a run first")
        try:
            run = find_run(self.root, run_id)
        except ConfigError:
            raise ConfigError("this run is not there any more; choose another") from None
        state = run.state()
        if state in ACTIVE_STATES:
            raise ConfigError(f"{run.id} is still {state}; its model can be asked when it has finished")
        if not (run.model / "model.json").is_file():
            raise ConfigError(f"{run.id} has no model: its folder model/ is missing or incomplete")
        return run

    def _load(self, path: Path) -> Predictor:
        from engine.inference.predictor import Predictor

        version = (path / "model.json").stat().st_mtime_ns
        if path not in self._loaded or self._loaded[path][0] != version:
            self._loaded.pop(path, None)
            while len(self._loaded) >= MODELS_IN_MEMORY:
                self._loaded.popitem(last=False)
            # The GPU belongs to trainings: their memory was planned as if nobody else were there.
            self._loaded[path] = version, Predictor.load(path, device="cpu")
        self._loaded.move_to_end(path)
        return self._loaded[path][1]


def choices(runs: Iterable[RunSummary]) -> list[tuple[str, str]]:
    """(text, id) of those runs whose model can be asked."""
    found = []
    for run in runs:
        if run.has_model and not run.active:
            precision = percent(run.metrics.get("P@1"))
            found.append((f"{run.id} ({run.state}{precision and f', P@1 {precision}'})", run.id))
    return found
