"""The page that asks the model of a finished run for the labels of a text."""

from __future__ import annotations

import html
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.pages.runs import percent
from app.shared import Shared
from engine.errors import ConfigError, DataError, EngineError
from engine.runs import list_runs

if TYPE_CHECKING:
    from engine.inference.predictor import Prediction, Predictor

MOST_LABELS = 50
LONGEST_TEXT = 20_000
MODELS_IN_MEMORY = 2


class Models:
    """The models of the runs in `root` that were asked lately, in memory; loaded again when their files change."""

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._loaded: OrderedDict[Path, tuple[int, Predictor]] = OrderedDict()

    def predict(self, run_id: str, text: str, k: int) -> list[Prediction]:
        """The k likeliest labels by the model of a finished run. Raises an EngineError that says why there is none."""
        path = self._path(run_id)
        # A predictor works for one thread at a time.
        with self._lock:
            try:
                return self._load(path).predict([text], k=k)[0]
            except OSError as error:
                raise DataError(f"the model of {run_id} cannot be read ({error}); copy it again, or train") from error

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

    def _path(self, run_id: str) -> Path:
        run = next((run for run in list_runs(self.root) if run.id == run_id), None)
        if run is None:
            raise ConfigError("this run is not there any more; choose another")
        if run.active:
            raise ConfigError(f"{run.id} is still {run.state}; its model can be asked when it has finished")
        if not run.has_model:
            raise ConfigError(f"{run.id} has no model: its folder model/ is missing or incomplete")
        return run.path / "model"


def ask(models: Models, run_id: str | None, text: str, k: float) -> dict[str, float]:
    """Label -> probability of the k likeliest labels, the likeliest first. Raises EngineError."""
    if not run_id:
        raise ConfigError("choose a run first")
    if not text.strip():
        raise ConfigError("type a text first")
    k = max(1, min(int(k), MOST_LABELS))
    found: dict[str, float] = {}
    for prediction in models.predict(run_id, text[:LONGEST_TEXT], k):
        name = prediction.label if prediction.label not in found else f"{prediction.label} (no. {prediction.label_id})"
        found[name] = prediction.probability
    return found


def choices(root: Path) -> list[tuple[str, str]]:
    """(text, id) of the runs whose model can be asked, newest first."""
    found = []
    for run in list_runs(root):
        if run.has_model and not run.active:
            precision = percent(run.metrics.get("P@1"))
            found.append((f"{run.id} ({run.state}{precision and f', P@1 {precision}'})", run.id))
    return found


def build(shared: Shared) -> None:
    """Lays the page out inside the current Blocks; `ticks` are the events that refresh the list of models."""
    root, ticks = shared.workspace.runs, shared.ticks
    models = Models(root)
    none = note("no finished run has a model yet; the page Runs shows what there is")
    hint = note("the labels of your text appear here")
    with gr.Row():
        with gr.Column():
            run = gr.Dropdown([], label="Model of the run", interactive=True, filterable=False)
            text = gr.Textbox(
                label="Text to label",
                placeholder="For example: open a file in append mode",
                lines=5,
                max_lines=15,
                max_length=LONGEST_TEXT,
            )
            k = gr.Slider(1, MOST_LABELS, value=5, step=1, label="How many labels to show")
            button = gr.Button("Show labels", variant="primary")
        with gr.Column():
            answer = gr.HTML(hint)
            labels = gr.Label(
                label="Likeliest labels and their probabilities", show_heading=False, visible=False, elem_id="labels"
            )
    shown = gr.State()

    def refresh(before: list | None, chosen: str | None) -> tuple[Any, Any, Any]:
        found = choices(root)
        if found == before:
            return gr.skip(), gr.skip(), gr.skip()
        ids = [id for _, id in found]
        value = chosen if chosen in ids else next(iter(ids), None)
        message = none if not found else gr.skip() if before else hint
        return gr.update(choices=found, value=value), message, found

    def show(run_id: str | None, text: str, k: float) -> tuple[Any, Any]:
        try:
            found = ask(models, run_id, text, k)
        except EngineError as error:
            return gr.update(value=note(str(error), problem=True), visible=True), gr.update(visible=False)
        return gr.update(visible=False), gr.update(value=found, visible=True)

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(ticks, refresh, [shown, run], [run, answer, shown], **quiet)
    gr.on([button.click, text.submit], show, [run, text, k], [answer, labels], api_visibility="private")

    def predict(run: str, text: str, k: int = 5) -> dict[str, float]:
        """Label -> probability of the k likeliest labels of a text, by the model of the run of that id."""
        try:
            return ask(models, run, text, k)
        except EngineError as error:
            raise gr.Error(str(error)) from None

    gr.api(predict, api_name="predict")


def note(text: str, problem: bool = False) -> str:
    """HTML of a remark; `text` is plain."""
    return f'<p class="note{" problem" if problem else ""}">{html.escape(text[:1].upper() + text[1:])}.</p>'
