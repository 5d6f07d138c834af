"""The page of all runs: what became of them, several beside each other, and what can be done with one."""

from __future__ import annotations

import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr

from app import launch, live
from app.comparison import compare, listing
from app.html import escape, facts, note, percent, size, table
from app.settings import HIDDEN, named, shown
from app.shared import PRIVATE, QUIET, Shared, go, offer
from engine.errors import ConfigError, EngineError
from engine.runs import RunSummary, delete_run

MOST_COMPARED = 8
CLICKED = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-run]');
  if (button) trigger('select', {run: button.dataset.run});
});"""
HINT = note("choose a run to see its settings and results; choose several to compare them")


class RunsPage:
    """Lays the page out inside the current Blocks."""

    def __init__(self, shared: Shared):
        self.shared = shared
        self.table = gr.HTML(none_yet(shared.workspace.runs), js_on_load=CLICKED, elem_id="runs")
        self.chosen = gr.Dropdown(
            [], multiselect=True, max_choices=MOST_COMPARED, label="Look at", elem_id="chosen-runs",
            info="one run, or several to compare; a name in the table does the same",
        )  # fmt: skip
        with gr.Row(elem_classes="actions", visible=False) as self.actions:
            self.open = gr.Button("Open")
            self.resume = gr.Button("Resume", variant="primary")
            self.ask = gr.Button("Ask its model")
            self.prepare = gr.Button("Pack the model for download")
            self.delete = gr.Button("Delete…", variant="stop")
        self.download = gr.DownloadButton("Download", visible=False, elem_id="download-model")
        with gr.Group(visible=False) as self.confirmation:
            self.question = gr.HTML()
            with gr.Row():
                self.yes = gr.Button("Yes, delete it", variant="stop")
                self.no = gr.Button("No, keep it")
        self.said = gr.HTML(visible=False, elem_id="runs-said")
        self.details = gr.HTML(HINT, elem_id="run-details")
        self.seen, self.shown = gr.State(), gr.State()
        self._events()

        def runs() -> list[dict]:
            """The runs, newest first: id, state, step, total, message, started, metrics, has_model."""
            keys = ("id", "state", "step", "total", "message", "started", "metrics", "has_model")
            return [{key: getattr(run, key) for key in keys} for run in shared.runs()]

        gr.api(runs, api_name="runs")

    def connect(self) -> None:
        """Buttons that lead to the run, or the model, on another page."""
        shared = self.shared
        for button, name, page in ((self.open, "run", "train"), (self.ask, "predict", "predict")):
            button.click(
                lambda ids, name=name, page=page: (shared.set_to(name, ids[0]), go(page)),
                [self.chosen], [shared.choices[name][0], shared.tabs], **QUIET,
            )  # fmt: skip

    # What happens

    def _events(self) -> None:
        look = [self.details, self.actions, self.resume, self.ask, self.prepare, self.open, self.delete, self.shown]
        gr.on(
            self.shared.ticks, lambda seen, chosen, shown: (*self._refresh(seen, chosen), *self._look(chosen, shown)),
            [self.seen, self.chosen, self.shown], [self.table, self.chosen, self.seen, *look], **QUIET,
        )  # fmt: skip
        self.table.select(self._pick, [self.chosen], [self.chosen], **QUIET)
        self.chosen.change(
            lambda: (gr.update(visible=False),) * 3, None, [self.download, self.confirmation, self.said], **QUIET
        ).then(self._look, [self.chosen, gr.State()], look, **QUIET)
        self.resume.click(self._resume, [self.chosen], [self.said], **PRIVATE)
        self.prepare.click(self._pack, [self.chosen], [self.download, self.said], **PRIVATE)
        self.delete.click(self._ask, [self.chosen], [self.confirmation, self.question], **QUIET)
        self.no.click(lambda: gr.update(visible=False), None, [self.confirmation], **QUIET)
        self.yes.click(self._delete, [self.chosen], [self.confirmation, self.said, self.chosen], **PRIVATE).then(
            self._refresh, [gr.State(), self.chosen], [self.table, self.chosen, self.seen], **QUIET
        )

    def _refresh(self, before: Any, chosen: list[str] | None) -> tuple[Any, Any, Any]:
        runs = self.shared.runs()
        news = [(run.id, run.state, run.step, run.message, run.has_model) for run in runs]
        if news == before:
            return gr.skip(), gr.skip(), gr.skip()
        page = listing(runs, [live.read(run, "result.json") for run in runs])
        ids = [run.id for run in runs]
        kept = [id for id in chosen or [] if id in ids]
        return page if runs else none_yet(self.shared.workspace.runs), offer(ids, chosen or [], kept), news

    def _pick(self, chosen: list[str] | None, event: gr.EventData) -> list[str]:
        """A name in the table was clicked: one more run, or one less."""
        id, chosen = event.run, chosen or []
        return [other for other in chosen if other != id] if id in chosen else [*chosen, id][-MOST_COMPARED:]

    def _look(self, chosen: list[str] | None, before: Any) -> tuple:
        runs = [run for run in map(self.shared.runs.find, chosen or []) if run is not None]
        news = [(run.id, run.state, run.step if run.active else 0) for run in runs]
        if news == before:
            return tuple(gr.skip() for _ in range(8))
        one = runs[0] if len(runs) == 1 else None
        page = details(one) if one else compare(runs, self.shared.histories) if runs else HINT
        model = bool(one and one.has_model and not one.active)
        return (
            page,
            gr.update(visible=one is not None),
            gr.update(visible=bool(one and one.state in ("stopped", "failed"))),
            gr.update(visible=model),
            gr.update(visible=model, value=f"Pack the model for download ({size(folder_size(one.path / 'model'))})")
            if model
            else gr.update(visible=False),
            gr.update(visible=one is not None),
            gr.update(visible=bool(one and not one.active)),
            news,
        )

    def _resume(self, chosen: list[str]) -> Any:
        try:
            launch.resume(self.shared.workspace.runs, chosen[0])
        except EngineError as error:
            return gr.update(value=note(str(error), problem=True), visible=True)
        self.shared.runs.forget()
        return gr.update(value=note(f"{chosen[0]} goes on; the page Train shows it"), visible=True)

    def _pack(self, chosen: list[str]) -> tuple[Any, Any]:
        try:
            run = self.shared.runs.find(chosen[0])
            if run is None or not run.has_model:
                raise ConfigError("this run has no model any more")
            file = pack(run.path / "model", Path(self.download.GRADIO_CACHE) / "models", run.id)
        except (EngineError, OSError) as error:
            return gr.update(visible=False), gr.update(value=note(str(error), problem=True), visible=True)
        label = f"Download {file.name} ({size(file.stat().st_size)})"
        return gr.update(value=str(file), label=label, visible=True), gr.update(visible=False)

    def _ask(self, chosen: list[str]) -> tuple[Any, Any]:
        run = self.shared.runs.find(chosen[0])
        if run is None:
            return gr.update(visible=False), gr.skip()
        taken = size(folder_size(run.path))
        return gr.update(visible=True), note(f"{run.id} will be deleted with its model and checkpoints, {taken} in all")

    def _delete(self, chosen: list[str]) -> tuple[Any, Any, Any]:
        hidden = gr.update(visible=False)
        try:
            delete_run(self.shared.workspace.runs, chosen[0])
        except EngineError as error:
            return hidden, gr.update(value=note(str(error), problem=True), visible=True), gr.skip()
        self.shared.runs.forget()
        return hidden, gr.update(value=note(f"{chosen[0]} is deleted"), visible=True), []


def build(shared: Shared) -> RunsPage:
    return RunsPage(shared)


def none_yet(root: Path) -> str:
    """How to make the first run in `root`."""
    where = "" if str(root) == "runs" else f" --output {root}"
    return (
        f'<p class="note">No runs in {escape(root.resolve())} yet. Start one on the page Train, or in a terminal: '
        f"<code>engine train --profile cpu{escape(where)}</code></p>"
    )


def details(run: RunSummary) -> str:
    """Settings that were chosen, results, and the plan of one run."""
    plan, result = live.files(run)
    stored = live.read(run, "config.json")
    origins, values = stored.get("origins", {}), stored.get("config", {})
    parts = []
    rows = [("this model", run.metrics), *result.get("baselines", {}).items()]
    names = [name for name in ("P@1", "P@3", "P@5", "R@5", "nDCG@5", "PSP@1", "PSP@5") if name in run.metrics]
    if names:
        cells = [[title, *(percent(metrics.get(name)) for name in names)] for title, metrics in rows]
        parts.append("<h3 class=head>Test texts</h3>" + table(["", *names], cells, range(1, 9), "Results"))
    if plan:
        measured = size(result.get("peak_memory_bytes")) or "not measured yet"
        parts.append("<h3 class=head>Memory</h3>" + facts([
            ("predicted", size(plan.get("predicted_bytes"))), ("measured", measured),
            ("budget", size(plan.get("budget_bytes"))), ("classifier", size(plan.get("classifier_bytes"))),
        ]))  # fmt: skip
    chosen = [
        (named(key), f"{shown(values.get(key))} ({origin})")
        for key, origin in origins.items()
        if origin != "default" and (key not in HIDDEN or key == "data.path")
    ]
    parts.append("<h3 class=head>Settings that were chosen</h3>" + (facts(chosen) if chosen else note("none")))
    return "".join(parts)


def folder_size(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def pack(folder: Path, into: Path, name: str) -> Path:
    """A zip file of a folder, in a folder of its own that packs of more than an hour ago leave."""
    into.mkdir(parents=True, exist_ok=True)
    for old in into.iterdir():
        if time.time() - old.stat().st_mtime > 3600:
            shutil.rmtree(old, ignore_errors=True)
    target = into / f"{time.time_ns()}" / f"{name}.zip"
    target.parent.mkdir()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, Path(name) / file.relative_to(folder))
    return target
