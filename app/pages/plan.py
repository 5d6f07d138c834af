"""The page that says what fits: it plans again with every control that is moved, and trains nothing."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import plan_view
from app.html import note, size
from app.shared import QUIET, Shared, go, offer
from app.snippets import COPY, snippets
from app.wishes import CPU, CUSTOM, HERE, Wishes
from app.words import glossary
from engine.config import RunConfig, profile_titles, resolve
from engine.errors import EngineError, MemoryBudgetError
from engine.planning.encoders import HUB_NAMES
from engine.planning.planner import LADDER, make_plan

NO_DATA = ""
UNMADE = "this corpus is not made yet; it is planned for the number of labels beside it"
WITHOUT_DATA = ("No data yet: a number of labels", NO_DATA)
DEFAULTS = RunConfig()


def build(shared: Shared) -> Page:
    """Lays the page out inside the current Blocks."""
    return Page(shared)


class Page:
    def __init__(self, shared: Shared):
        self.shared = shared
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                self._controls()
            with gr.Column(scale=3, min_width=320):
                self.gauge = gr.HTML(elem_id="gauge")
                self.again = gr.Button("Look at this machine again", size="sm", elem_classes="aside")
                self.plan = gr.HTML(elem_id="plan")
                self.commands = gr.HTML(js_on_load=COPY, elem_id="plan-commands")
                self.train = gr.Button("Train with these settings", variant="primary", visible=False)
                with gr.Accordion("What the words mean", open=False):
                    gr.HTML(glossary())
        self.seen = gr.State()
        shared.choices["plan"] = (self.data, self._datasets)
        outputs = [self.labels, self.memory, self.again, self.gauge, self.plan, self.commands, self.train]
        gr.on(
            shared.ticks, self.tick, [self.seen, *self.controls],
            [self.data, self.seen, self.tokens, self.trained, *outputs], **QUIET,
        )  # fmt: skip
        gr.on(
            [control.change for control in self.controls],
            self.show, self.controls, outputs, trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        self.card.input(self.follow, self.card, [self.tokens, self.trained], **QUIET)
        self.again.click(shared.machine.ask, **QUIET)

    def _controls(self) -> None:
        titles = profile_titles()
        cards = [(title, name) for name, title in titles.items() if name != CPU]
        self.data = gr.Dropdown(
            [WITHOUT_DATA], value=NO_DATA, label="Dataset", info="What is to be learned, or just a number of labels.",
        )  # fmt: skip
        self.labels = gr.Number(100_000, label="Number of labels", precision=0, info="Different labels in the data.")
        self.card = gr.Dropdown(
            [("This machine", HERE), *cards, ("Another amount of memory", CUSTOM), ("No GPU: this machine's CPU", CPU)],
            value=HERE, label="Plan for", info="The graphics card need not be here.",
        )  # fmt: skip
        self.memory = gr.Number(10, label="Memory of the card (GiB)", visible=False)
        self.encoder = gr.Dropdown(
            HUB_NAMES, value=DEFAULTS.encoder.name, allow_custom_value=True, label="Encoder",
            info="The language model that reads the texts. Type the name of one that you have downloaded.",
        )  # fmt: skip
        self.trained = gr.Radio(
            [("Train it too", True), ("Leave it as it is", False)], value=True, label="What happens to the encoder",
            info="Trained, it learns your texts: more accurate, slower, with more memory.",
        )  # fmt: skip
        self.fan_in = gr.Dropdown(
            [("Automatic: the largest that fits", "auto"), *((f"{n:,}", str(n)) for n in LADDER),
             ("All of them (dense)", "dense")],
            value="auto", label="Features a label reads (fan-in)", filterable=False,
            info="More is more accurate and takes more memory.",
        )  # fmt: skip
        self.tokens = gr.Slider(
            16, 512, value=DEFAULTS.data.max_tokens, step=8, label="Longest text (tokens)",
            info="Pieces of words, about 1.3 for an English word. Longer texts are cut.",
        )  # fmt: skip
        self.batch_size = gr.Slider(
            8, 1024, value=DEFAULTS.training.batch_size, step=8, label="Texts a step (batch size)",
            info="More texts make fewer, larger steps.",
        )  # fmt: skip
        self.reserve = gr.Slider(
            0, 8, value=DEFAULTS.hardware.reserve_gib, step=0.25, label="Memory left to other programs (GiB)",
            info="The screen, the browser, and whatever else runs meanwhile.",
        )  # fmt: skip

    @property
    def controls(self) -> list[Any]:
        return [
            self.data, self.labels, self.card, self.memory, self.encoder, self.tokens, self.batch_size, self.fan_in,
            self.trained, self.reserve,
        ]  # fmt: skip

    def connect(self) -> None:
        """The button that takes the settings along to the page Train."""
        fill, form = self.shared.take

        def take(*values: Any) -> tuple[Any, ...]:
            machine, data, wishes = self.shared.machine, values[0], self._wishes(values)
            chosen = self.shared.set_to("train", data) if data else gr.skip()
            return go("train"), chosen, *fill(wishes.overrides(machine.hardware(), machine.profile))

        self.train.click(take, self.controls, [self.shared.tabs, self.shared.choices["train"][0], *form], **QUIET)

    def tick(self, before: Any, *values: Any) -> tuple[Any, ...]:
        """One look for all of the page. What the profile of this machine sets is followed once it is known."""
        data, now = self.refresh(before, values[0])
        if not isinstance(now, tuple):
            return (gr.skip(),) * 11
        known = self.shared.machine.hardware() is not None and (before is None or before[1] is None)
        if not known:
            return data, now, gr.skip(), gr.skip(), *self.show(*values)
        chosen, labels, card, memory, encoder, _, batch_size, fan_in, _, reserve = values
        tokens, trained = self.follow(card)
        shown = self.show(chosen, labels, card, memory, encoder, tokens, batch_size, fan_in, trained, reserve)
        return data, now, tokens, trained, *shown

    def _datasets(self) -> list[tuple[str, str]]:
        return [*self.shared.workspace.dataset_choices(), WITHOUT_DATA]

    def refresh(self, before: Any, chosen: str) -> tuple[Any, Any]:
        """The datasets and the machine, as they are now; nothing if both are as before."""
        found = self._datasets()
        now = (found, self.shared.machine.hardware(), self.shared.machine.asking)
        if before == now:
            return gr.skip(), gr.skip()
        known = [id for _, id in found]
        return offer(found, chosen, chosen if chosen in known else NO_DATA), now

    def follow(self, card: str) -> tuple[Any, Any]:
        """What the profile of the card sets otherwise: a CPU leaves the encoder as it is, and reads less."""
        if card == HERE and self.shared.machine.hardware() is None:
            return gr.skip(), gr.skip()
        name = (self.shared.machine.profile if card == HERE else card) or CPU
        usual = DEFAULTS if name == CUSTOM else resolve(name, {}, {})[0]
        return usual.data.max_tokens, usual.encoder.trainable == "all"

    def show(self, *values: Any) -> tuple[Any, ...]:
        """What the controls ask for, planned."""
        data, _, card, *_ = values
        machine = self.shared.machine
        here, unmade = machine.hardware(), bool(data) and self._count(data) is None
        fields = (
            gr.update(visible=not data or unmade),
            gr.update(visible=card == CUSTOM),
            gr.update(visible=card == HERE),
        )
        gauge, shown, commands, problem = "", "", "", None
        try:
            wishes = self._wishes(values)
            problem = wishes.problem(here, machine.profile)
            plan = make_plan(problem)
        except MemoryBudgetError as error:
            gauge, shown = plan_view.gauge(problem, 0, card == HERE), plan_view.advice(str(error))
        except EngineError as error:
            waiting = card == HERE and here is None
            shown = self._machine_words() if waiting else note(str(error), problem=True)
        else:
            gauge = plan_view.gauge(problem, plan.predicted_bytes, card == HERE)
            shown = (note(UNMADE) if unmade else "") + plan_view.whole(problem, plan)
            runs = str(self.shared.workspace.runs)
            commands = snippets(
                [
                    ("This plan on the command line", wishes.plan_command(machine.profile)),
                    ("Training so on the command line", wishes.train_command(machine.profile, runs)),
                ]
            )
        if card != HERE and here is not None:
            gauge += note(f"this machine: {here.name} with {size(here.memory_bytes)}")
        return *fields, gauge, shown, commands, gr.update(visible=bool(commands))

    def _machine_words(self) -> str:
        machine = self.shared.machine
        if machine.asking:
            return note("looking at this machine…") + note("planning for another card works already")
        reason = machine.problem or "training does not work on this machine; the page System says why"
        return note(reason, problem=True) + note("planning for another card works")

    def _count(self, data: str) -> int | None:
        return self.shared.workspace.label_count(data)

    def _wishes(self, values: tuple[Any, ...]) -> Wishes:
        """Raises ConfigError for a dataset that went away."""
        data, labels, *rest = values
        count = self._count(data) if data else None
        path = self.shared.workspace.data_path(data) if count is not None else None
        return Wishes(labels if count is None else count, path, *rest)
