"""The page that asks the models of finished runs for labels: of a text as it is typed, or of a whole file."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import answers
from app.batch_panel import BatchPanel
from app.html import note
from app.models import Models, choices
from app.shared import QUIET, Shared, offer
from app.snippets import COPY
from engine.errors import EngineError

HINT = note("the labels of your text appear here")
NO_MODEL = note("no finished run has a model yet; the page Runs shows what there is")


def build(shared: Shared) -> None:
    """Lays the page out inside the current Blocks."""
    Page(shared)


class Page:
    def __init__(self, shared: Shared):
        self.models = Models(shared.workspace.runs)
        self.runs = shared.runs
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                self.run = gr.Dropdown(
                    [], label="Model of the run", interactive=True, filterable=False, elem_id="model"
                )
                self.text = gr.Textbox(
                    label="Text to label", placeholder="For example: open a file in append mode", lines=4,
                    max_lines=12, max_length=answers.LONGEST_TEXT,
                )  # fmt: skip
                self.examples = gr.HTML(js_on_load=answers.CHOOSE_EXAMPLE, elem_id="examples")
                self.k = gr.Slider(1, answers.MOST_LABELS, value=5, step=1, label="How many labels to show")
                self.threshold = gr.Slider(
                    0, 0.99, value=0, step=0.01, label="Lowest probability to show",
                    info="Labels that the model finds less likely are left out.",
                )  # fmt: skip
            with gr.Column(min_width=300):
                self.answer = gr.HTML(HINT, js_on_load=answers.CHOOSE_LABEL, elem_id="answer")
                self.learned = gr.HTML(elem_id="learned-from")
        with gr.Accordion("The same in code", open=False):
            self.code = gr.HTML(js_on_load=COPY, elem_id="predict-code")
        self.batch = BatchPanel(shared, self.models, self.run, self.k)
        self.seen, self.texts = gr.State(), gr.State([])
        shared.choices["predict"] = (self.run, lambda: choices(shared.runs()))
        asked = [self.run, self.text, self.k, self.threshold]
        gr.on(
            shared.ticks, self.tick, [self.seen, self.run, *self.batch.known],
            [self.run, self.seen, self.answer, *self.batch.panel], **QUIET,
        )  # fmt: skip
        gr.on(
            [self.text.change, self.k.change, self.threshold.change],
            self.show, asked, [self.answer, self.code], trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        self.run.change(self.other_run, self.run, [self.examples, self.texts, self.learned], **QUIET)
        self.run.change(
            lambda run, text: self.announce(run) if text else gr.skip(), [self.run, self.text], self.answer, **QUIET
        ).then(self.other_answer, asked, [self.answer, self.code], **QUIET)
        self.text.focus(self.announce, self.run, self.answer, **QUIET).then(self.warm, self.run, **QUIET).then(
            lambda text: gr.skip() if text else HINT, self.text, self.answer, **QUIET
        )
        self.examples.select(self.example, self.texts, self.text, **QUIET)
        self.answer.select(self.learned_from, self.run, self.learned, **QUIET)

        def predict(run: str, text: str, k: int = 5, threshold: float = 0.0) -> dict[str, float]:
            """Label -> probability of the k likeliest labels of a text, those below the threshold left out, by the
            model of the run of that id."""
            try:
                return answers.by_name(answers.ask(self.models, run, text, k, threshold))
            except EngineError as error:
                raise gr.Error(str(error)) from None

        gr.api(predict, api_name="predict")

    def tick(self, before: list | None, chosen: str | None, *batch: Any) -> tuple[Any, ...]:
        """One look for all of the page."""
        return *self.refresh(before, chosen), *self.batch.refresh(*batch)

    def refresh(self, before: list | None, chosen: str | None) -> tuple[Any, Any, Any]:
        """The models that can be asked now; nothing if they are as before."""
        found = choices(self.runs())
        if found == before:
            return gr.skip(), gr.skip(), gr.skip()
        ids = [id for _, id in found]
        value = chosen if chosen in ids else next(iter(ids), None)
        message = NO_MODEL if not found else gr.skip() if before else HINT
        return offer(found, chosen, value), found, message

    def show(
        self, run: str | None, text: str | None, k: float, threshold: float, request: gr.Request
    ) -> tuple[Any, str]:
        """The answer, and the same question in code."""
        if not run or not (text or "").strip():
            return HINT if run else gr.skip(), ""
        address = f"http://{request.headers.get('host', '127.0.0.1:7860')}/"
        path = self.models.root / run
        try:
            found = answers.ask(self.models, run, text, k, threshold)
        except EngineError as error:
            return note(str(error), problem=True), ""
        code = answers.code(address, bool(request.username), path, text, int(k), threshold)
        return answers.bars(found, threshold), code

    def other_run(self, run: str | None) -> tuple[str, list[str], str]:
        """Examples for another model."""
        try:
            texts = answers.example_texts(self.models.run(run))
        except EngineError:
            texts = []
        return answers.example_buttons(texts), texts, ""

    def other_answer(
        self, run: str | None, text: str | None, k: float, threshold: float, request: gr.Request
    ) -> tuple[Any, Any]:
        """What another model says of the text."""
        return self.show(run, text, k, threshold, request) if text else (gr.skip(), gr.skip())

    def announce(self, run: str | None) -> Any:
        """Says what an answer waits for."""
        if not run or self.models.ready(run):
            return gr.skip()
        return note("loading the model, once; that takes some seconds…")

    def warm(self, run: str | None) -> None:
        """Loads the model while the text is being typed."""
        try:
            if not self.models.ready(run):
                self.models.warm(run)
        except EngineError:
            return  # asking it will say so

    def example(self, texts: list[str], event: gr.EventData) -> Any:
        number = event._data.get("example")
        return texts[number] if isinstance(number, int) and 0 <= number < len(texts) else gr.skip()

    def learned_from(self, run: str | None, event: gr.EventData) -> str:
        label = event._data.get("label")
        if not isinstance(label, int):
            return ""
        try:
            return answers.training_list(*answers.training_texts(self.models.run(run), label))
        except EngineError as error:
            return note(str(error), problem=True)
