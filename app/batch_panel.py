"""The part of the page Predict that labels whole files, and shows what became of those before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from app import batches
from app.downloads import offered
from app.html import note
from app.models import Models
from app.shared import QUIET, Shared
from engine.errors import EngineError
from engine.inference.texts import SUFFIXES

NONE_YET = note("files that were labelled are listed here, whatever happens to this page meanwhile")


class BatchPanel:
    """run, k: the components that choose the model and how many labels. The page calls `refresh` now and then."""

    def __init__(self, shared: Shared, models: Models, run: gr.Dropdown, k: gr.Slider):
        self.jobs, self.models = shared.jobs, models
        gr.HTML('<h3 class="head">Label a whole file</h3>' + note("a .txt with one text a line, a .csv or a .jsonl"))
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                self.file = gr.File(
                    label="File with texts", file_types=list(SUFFIXES), height=140, elem_id="texts-file"
                )
                self.column = gr.Dropdown(
                    [], label="Column with the texts", visible=False, allow_custom_value=True, interactive=True
                )
                self.start = gr.Button("Label this file", variant="primary")
                self.problem = gr.HTML()
            with gr.Column(min_width=300):
                self.job = gr.Dropdown([], label="Labelled files", interactive=True, filterable=False, visible=False)
                self.shown = gr.HTML(NONE_YET, elem_id="batch")
                with gr.Row():
                    self.download = gr.DownloadButton("Download the labels", variant="primary", visible=False)
                    self.stop = gr.Button("Stop", visible=False)
                    self.resume = gr.Button("Go on", visible=False)
                    self.delete = gr.Button("Delete", visible=False)
        self.seen = gr.State()
        self.known = [self.seen, self.job]
        self.panel = [self.job, self.shown, self.download, self.stop, self.resume, self.delete, self.seen]
        self.file.change(self.look, self.file, [self.column, self.problem], **QUIET)
        self.start.click(self.begin, [run, self.file, self.column, k], [self.problem, self.job, self.seen], **QUIET)
        for button, act in ((self.stop, self.jobs.stop), (self.resume, self.go_on), (self.delete, self.remove)):
            button.click(self.safely(act), self.job, [self.problem, self.seen], **QUIET)
        # What an action changed is shown at once; the page looks for news.
        gr.on([self.seen.change, self.job.input], self.refresh, self.known, self.panel, **QUIET)

    def look(self, upload: str | None) -> tuple[Any, str]:
        """The columns of an uploaded file, to choose from."""
        found = batches.columns(Path(upload)) if upload else []
        value = "text" if "text" in found else next(iter(found), None)
        return gr.update(choices=found, value=value, visible=bool(found)), ""

    def begin(self, run_id: str, upload: str | None, column: str | None, k: float) -> tuple[Any, Any, Any]:
        try:
            job = batches.start(self.jobs, self.models.run(run_id), upload, column, int(k))
        except EngineError as error:
            return note(str(error), problem=True), gr.skip(), gr.skip()
        return "", gr.update(choices=[batches.choice(job)], value=job.id), None

    def safely(self, act: Any) -> Any:
        """Does something with a job; what goes wrong is shown."""

        def done(id: str | None) -> tuple[str, Any]:
            try:
                act(id or "")
            except EngineError as error:
                return note(str(error), problem=True), None
            return "", None

        return done

    def go_on(self, id: str) -> None:
        batches.go_on(self.jobs, id)

    def remove(self, id: str) -> None:
        self.jobs.remove(id)

    def refresh(self, before: Any, chosen: str | None) -> tuple[Any, ...]:
        """The jobs as they are now, and the chosen one, or the newest, in full; nothing if that is known."""
        jobs = {job.id: job for job in self.jobs.list(batches.KIND)}
        job = jobs.get(chosen or "") or next(iter(jobs.values()), None)
        now = ([batches.choice(job) for job in jobs.values()], job and (job.id, job.state, job.words))
        if now == before:
            return (gr.skip(),) * 7
        hidden = gr.update(visible=False)
        if job is None:
            return gr.update(choices=[], value=None, visible=False), NONE_YET, hidden, hidden, hidden, hidden, now
        file = batches.result(job)
        shown, download = batches.view(job), hidden
        try:
            download = gr.update(value=offered(file), visible=True) if file else hidden
        except OSError as error:
            shown += note(f"the labels cannot be offered here ({error.strerror}); they are in {file}", problem=True)
        return (
            gr.update(choices=now[0], value=job.id, visible=True), shown, download,
            gr.update(visible=job.state == "running"), gr.update(visible=job.state == "failed"),
            gr.update(visible=job.state != "running"), now,
        )  # fmt: skip
