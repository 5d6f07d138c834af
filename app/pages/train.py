"""The page that starts a training and shows it while it works."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import launch, live
from app.html import note
from app.planned import planned
from app.settings import (
    MAIN,
    SECTIONS,
    Setting,
    command,
    configuration,
    defaults,
    in_words,
    problem,
    profile_choices,
    settings,
)
from app.shared import PRIVATE, QUIET, Shared, offer
from engine.config import KEYS, RunConfig
from engine.data.builtin import BUILT_IN
from engine.errors import ConfigError, EngineError

ENCODER = "encoder.name"
LOOKING = "this machine is still being looked at, some seconds"
STILL_LOOKING = "this machine is still being looked at; wait a moment, or choose a profile"
LOOKING_SECONDS = 60.0
RUNS_OFFERED = 100
FIELDS_IN_A_ROW = 3
STOP = "Stop and save"
NONE_YET = note("no training yet: start one above")


class TrainPage:
    """Lays the page out inside the current Blocks."""

    def __init__(self, shared: Shared):
        self.shared = shared
        self.settings = settings()
        with gr.Accordion("New training", open=True) as self.form:
            self._form()
        self._view()
        self._events()
        shared.choices |= {"train": (self.data, shared.workspace.dataset_choices), "run": (self.run, self._runs)}
        shared.take = (self._take, [self.profile, *self.fields.values()])

    def connect(self) -> None:
        """Nothing here leads to another page but what they lead to themselves."""

    # What is seen

    def _form(self) -> None:
        choices = self.shared.workspace.dataset_choices()
        with gr.Row():
            self.data = gr.Dropdown(
                choices, value=choices[0][1], label="Dataset", filterable=False,
                info="what to learn from; the page Data brings yours in", elem_id="set-data-path",
            )  # fmt: skip
            self.profile = gr.Dropdown(
                profile_choices(None), value="auto", label="Memory profile", filterable=False,
                info="how much memory may be taken; the planner makes the best of it", elem_id="set-profile",
            )  # fmt: skip
            self.name = gr.Textbox(
                label="Name of the run", info="a reminder for you; may stay empty", max_lines=1, elem_id="set-run-name"
            )
        self.fields: dict[str, Any] = {}
        main = [setting for setting in self.settings if setting.key in MAIN]
        self._rows(main)
        with gr.Accordion("All other settings", open=False):
            gr.HTML(note("an empty field leaves the choice to the profile; the grey text is that choice"))
            for section, title in SECTIONS.items():
                others = [s for s in self.settings if s.section == section and s.key not in MAIN]
                if others:
                    with gr.Accordion(title, open=False):
                        self._rows(others)
        self.said = gr.HTML(visible=False, elem_id="train-said")
        self.start = gr.Button("Start training", variant="primary", elem_id="start")
        with gr.Accordion("The same on the command line", open=False):
            self.line = gr.Code(language="shell", interactive=False, label="Command", elem_id="train-command")

    def _rows(self, settings: list[Setting]) -> None:
        for first in range(0, len(settings), FIELDS_IN_A_ROW):
            with gr.Row():
                for setting in settings[first : first + FIELDS_IN_A_ROW]:
                    self._field(setting)

    def _field(self, setting: Setting) -> None:
        default, id = defaults("cpu")[setting.key], f"set-{setting.key.replace('.', '-')}"
        if setting.options:
            field = gr.Dropdown(
                setting.choices(default), value="", label=setting.title, info=setting.words, filterable=False,
                elem_id=id,
            )  # fmt: skip
        else:
            field = gr.Textbox(label=setting.title, info=setting.words, placeholder=default, max_lines=1, elem_id=id)
        self.fields[setting.key] = field

    def _view(self) -> None:
        self.run = gr.Dropdown([], label="Run", filterable=False, elem_id="run")
        self.head = gr.HTML(NONE_YET, elem_id="run-head")
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button(STOP, variant="stop", visible=False, elem_id="stop")
            self.resume = gr.Button("Resume", variant="primary", visible=False, elem_id="resume")
        self.numbers = gr.HTML()
        self.curves = gr.HTML()
        self.words = gr.HTML()

    # What happens

    def _events(self) -> None:
        fields = list(self.fields.values())
        form = [self.data, self.profile, self.name, *fields]
        view = [self.head, self.stop, self.resume, self.numbers, self.curves, self.words]
        self.seen, self.offered, self.marked = gr.State(), gr.State(), gr.State({})
        gr.on(
            self.shared.ticks,
            self._tick, [self.offered, self.run, self.seen, *form],
            [self.run, self.data, self.profile, self.form, self.offered, self.said, self.line, *view, self.seen],
            **QUIET,
        )  # fmt: skip
        self.run.change(self._look, [self.run, self.seen], [*view, self.seen], **QUIET)
        self.profile.change(self._defaults, [self.profile], fields, **QUIET)
        gr.on(
            [field.change for field in form], self._preview, [self.marked, *form],
            [self.said, self.line, self.marked, *fields], trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        self.start.click(self._announce, self.profile, self.said, **PRIVATE).then(
            self._start, form, [self.run, self.said, self.offered, self.form], **PRIVATE
        ).then(self._look, [self.run, gr.State()], [*view, self.seen], **QUIET)
        for button, act in ((self.stop, launch.stop), (self.resume, launch.resume)):
            button.click(self._act(act), [self.run], [self.said], **PRIVATE).then(
                self._look, [self.run, gr.State()], [*view, self.seen], **QUIET
            )

    def _tick(self, offered: tuple | None, run: str | None, seen: tuple | None, *form: str | None) -> tuple:
        """One look for all of the page; with what is offered, what the planner says may be another."""
        news = self._offer(offered, run, form[0])
        said = self._say(*form) if isinstance(news[-1], tuple) else (gr.skip(), gr.skip())
        return *news, *said, *self._look(run, seen)

    def _offer(self, before: tuple | None, chosen: str | None, data: str | None) -> tuple:
        """Runs, datasets and profiles to choose from; by itself the page shows the training that is going on."""
        runs = self._runs()
        datasets = self.shared.workspace.dataset_choices()
        offered = (runs, datasets, self.shared.machine.profile)
        if offered == before:
            return tuple(gr.skip() for _ in range(5))
        ids = [id for _, id in runs]
        active = next((run.id for run in self.shared.runs() if run.active), None)
        run = chosen if chosen in ids else active or next(iter(ids), None)
        known = [id for _, id in datasets]
        if before is None and data in BUILT_IN:
            data_now = next(iter(known[len(BUILT_IN) :]), data)  # one's own, as on the page Data
        else:
            data_now = data if data in known else known[0]
        return (
            offer(runs, chosen, run),
            offer(datasets, data, data_now),
            gr.update(choices=profile_choices(self.shared.machine.profile)),
            gr.update(open=active is None) if before is None else gr.skip(),
            offered,
        )

    def _runs(self) -> list[tuple[str, str]]:
        return [(f"{run.id} ({run.state})", run.id) for run in self.shared.runs()[:RUNS_OFFERED]]

    def _look(self, id: str | None, seen: tuple | None) -> tuple:
        run = self.shared.runs.find(id)
        if run is None:
            blank = (None,)
            if seen == blank:
                return tuple(gr.skip() for _ in range(7))
            hidden = gr.update(visible=False)
            return NONE_YET, hidden, hidden, "", "", "", blank
        history = self.shared.histories.of(run.path)
        left = live.remaining(run, history)
        news = (run.id, run.state, run.step, run.message, history.size, None if left is None else round(left))
        if news == seen:
            return tuple(gr.skip() for _ in range(7))
        plan, result = live.files(run)
        return (
            live.head(run, history),
            gr.update(visible=run.active, value="Stop waiting" if run.state == "queued" else STOP),
            gr.update(visible=run.state in ("stopped", "failed")),
            live.numbers(run, history, plan, result),
            live.curves(history, plan),
            live.happenings(run, history),
            news,
        )

    def _profile(self, chosen: str) -> str:
        """The name of the profile. Raises ConfigError while this machine is not known."""
        if chosen != "auto":
            return chosen
        if self.shared.machine.profile is None:
            raise ConfigError(self.shared.machine.problem or STILL_LOOKING)
        return self.shared.machine.profile

    def _defaults(self, chosen: str) -> list[Any]:
        try:
            values = defaults(self._profile(chosen))
        except EngineError:
            return [gr.skip() for _ in self.fields]
        found = []
        for setting in self.settings:
            value = values[setting.key]
            told = {"choices": setting.choices(value)} if setting.options else {"placeholder": value}
            found.append(gr.update(**told))
        return found

    def _configuration(self, data: str, profile: str, name: str | None, given: tuple[str | None, ...]):
        always = {"data.path": self.shared.workspace.data_path(data), "run.output": str(self.shared.workspace.runs)}
        if (name or "").strip():
            always["run.name"] = name.strip()
        values = dict(zip(self.fields, given, strict=True))
        return configuration(profile, values | {ENCODER: self._encoder(values[ENCODER])}, always)

    def _encoder(self, text: str | None) -> str:
        """The encoder of that name; nothing for an empty field. Raises ConfigError."""
        return self.shared.workspace.encoder(text.strip()) if text and text.strip() else ""

    def _preview(
        self, marked: dict[str, str], data: str, profile: str, name: str | None, *given: str | None
    ) -> tuple[Any, ...]:
        """`_say`, and what is wrong below each field. marked: what is said below fields now, by key."""
        marks, marked = self._mark(marked, profile, given)
        return *self._say(data, profile, name, *given), marked, *marks

    def _say(self, data: str, profile: str, name: str | None, *given: str | None) -> tuple[Any, Any]:
        """What the planner makes of the form, or what is wrong with it; and the same on the command line."""
        try:
            profile = self._profile(profile)
            config, _, filled = self._configuration(data, profile, name, given)
        except EngineError as error:
            said = note(in_words(str(error)), problem=str(error) != STILL_LOOKING)
            return gr.update(value=said, visible=True), gr.skip()
        always = {"data.path": config.data.path} | ({"run.name": config.run.name} if config.run.name else {})
        if config.run.output != RunConfig().run.output:
            always["run.output"] = config.run.output
        text, wrong = planned(self.shared, config, data)
        said = gr.update(value=note(in_words(text), wrong), visible=bool(text))
        return said, command(profile, filled, always)

    def _mark(self, before: dict[str, str], profile: str, given: tuple[str | None, ...]) -> tuple[list, dict[str, str]]:
        """Updates of the fields by what is wrong with each on its own, and that by key."""
        try:
            used = self._profile(profile)
        except EngineError:
            used = "cpu"
        values = dict(zip(self.fields, given, strict=True))
        problems = {key: problem(used, key, text or "") for key, text in values.items()}
        try:
            self._encoder(values[ENCODER])
        except ConfigError as error:
            problems[ENCODER] = str(error)
        now = {key: what for key, what in problems.items() if what}
        marks = [
            gr.skip() if now.get(s.key) == before.get(s.key) else _told(s, now.get(s.key, "")) for s in self.settings
        ]
        return marks, now

    def _announce(self, profile: str) -> Any:
        """What a start still waits for."""
        if profile != "auto" or self.shared.machine.wait(0):
            return gr.skip()
        return gr.update(value=note(f"{LOOKING}; then the training starts"), visible=True)

    def _start(self, data: str, profile: str, name: str | None, *given: str | None) -> tuple:
        if profile == "auto":
            self.shared.machine.wait(LOOKING_SECONDS)
        try:
            profile = self._profile(profile)
            config, origins, _ = self._configuration(data, profile, name, given)
            text, wrong = planned(self.shared, config, data)
            if wrong:
                raise ConfigError(text)
            id = launch.start(config, profile, origins)
        except EngineError as error:
            said = gr.update(value=note(f"Not started: {in_words(str(error))}", problem=True), visible=True)
            return gr.skip(), said, gr.skip(), gr.skip()
        self.shared.runs.forget()
        # The form makes room for the run, which would begin below the screen.
        return gr.update(choices=self._runs(), value=id), gr.update(visible=False), (), gr.update(open=False)

    def _act(self, act):
        def acted(id: str | None):
            try:
                act(self.shared.workspace.runs, id)
            except EngineError as error:
                return gr.update(value=note(str(error), problem=True), visible=True)
            self.shared.runs.forget()
            return gr.update(visible=False)

        return acted

    def _take(self, given: dict[str, Any]) -> list:
        """The form with the settings that another page chose; `profile` is one of them."""
        chosen = {key: str(value) for key, value in given.items() if key in KEYS}
        return [given.get("profile", gr.skip()), *(chosen.get(key, "") for key in self.fields)]


def _told(setting: Setting, problem: str) -> Any:
    """The field with what is wrong below its title, or with its usual words."""
    words = f"⚠ {in_words(problem)}" if problem else setting.words
    return gr.update(info=words, elem_classes=["wrong"] if problem else [])


def build(shared: Shared) -> TrainPage:
    return TrainPage(shared)
