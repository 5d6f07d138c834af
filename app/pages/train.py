"""The page that starts a training and shows it while it works."""

from __future__ import annotations

from collections.abc import Iterator
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
    problem,
    profile_choices,
    settings,
)
from app.shared import QUIET, TICK, Shared
from engine.config import KEYS
from engine.errors import ConfigError, EngineError

LOOKING = "this machine is still being looked at, some seconds"
LOOKING_SECONDS = 60.0
RUNS_OFFERED = 100
FIELDS_IN_A_ROW = 3
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
        shared.choices |= {"train": self.data, "train_overrides": self.overrides, "run": self.run}

    def connect(self) -> None:
        """Nothing here leads to another page but what they lead to themselves."""

    # What is seen

    def _form(self) -> None:
        choices = self.shared.workspace.dataset_choices()
        self.overrides = gr.State({})
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
            choices = [(f"as the profile says ({default})", ""), *((option, option) for option in setting.options)]
            field = gr.Dropdown(
                choices, value="", label=setting.title, info=setting.words, filterable=False, elem_id=id
            )
        else:
            field = gr.Textbox(label=setting.title, info=setting.words, placeholder=default, max_lines=1, elem_id=id)
        self.fields[setting.key] = field

    def _view(self) -> None:
        self.run = gr.Dropdown([], label="Run", filterable=False, elem_id="run")
        self.head = gr.HTML(NONE_YET, elem_id="run-head")
        with gr.Row(elem_classes="actions"):
            self.stop = gr.Button("Stop and save", variant="stop", visible=False, elem_id="stop")
            self.resume = gr.Button("Resume", variant="primary", visible=False, elem_id="resume")
        self.numbers = gr.HTML()
        self.curves = gr.HTML()
        self.words = gr.HTML()

    # What happens

    def _events(self) -> None:
        fields = list(self.fields.values())
        form = [self.data, self.profile, self.name, *fields]
        view = [self.head, self.stop, self.resume, self.numbers, self.curves, self.words]
        self.seen, self.offered = gr.State(), gr.State()
        gr.on(
            self.shared.ticks,
            lambda offered, run, data, seen: (*self._offer(offered, run, data), *self._look(run, seen)),
            [self.offered, self.run, self.data, self.seen],
            [self.run, self.data, self.profile, self.form, self.offered, *view, self.seen], **TICK,
        )  # fmt: skip
        self.run.change(self._look, [self.run, self.seen], [*view, self.seen], **QUIET)
        self.profile.change(self._defaults, [self.profile], fields, **QUIET)
        gr.on(
            [f.change for f in form], self._preview, form, [self.said, self.line], trigger_mode="always_last", **QUIET
        )
        for setting in self.settings:
            field = self.fields[setting.key]
            if not setting.options:
                field.blur(self._check(setting), [self.profile, field], [field], **QUIET)
        self.overrides.change(self._take, [self.overrides], [self.profile, *fields], **QUIET)
        self.start.click(
            self._start, form, [self.run, self.said, self.offered, *fields], api_visibility="private"
        ).then(self._look, [self.run, gr.State()], [*view, self.seen], **QUIET)
        for button, act in ((self.stop, launch.stop), (self.resume, launch.resume)):
            button.click(self._act(act), [self.run], [self.said], api_visibility="private").then(
                self._look, [self.run, gr.State()], [*view, self.seen], **QUIET
            )

    def _offer(self, before: tuple | None, chosen: str | None, data: str | None) -> tuple:
        """Runs, datasets and profiles to choose from; by itself the page shows the training that is going on."""
        runs = [(f"{run.id} ({run.state})", run.id) for run in self.shared.runs()[:RUNS_OFFERED]]
        datasets = self.shared.workspace.dataset_choices()
        offered = (runs, datasets, self.shared.machine.profile)
        if offered == before:
            return tuple(gr.skip() for _ in range(5))
        ids = [id for _, id in runs]
        active = next((run.id for run in self.shared.runs() if run.active), None)
        run = chosen if chosen in ids else active or next(iter(ids), None)
        known = [id for _, id in datasets]
        return (
            choose(runs, chosen, run),
            choose(datasets, data, data if data in known else known[0]),
            gr.update(choices=profile_choices(self.shared.machine.profile)),
            gr.update(open=active is None) if before is None else gr.skip(),
            offered,
        )

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
            gr.update(visible=run.active),
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
            raise ConfigError(
                self.shared.machine.problem
                or "this machine is still being looked at; wait a moment, or choose a profile"
            )
        return self.shared.machine.profile

    def _defaults(self, chosen: str) -> list[Any]:
        try:
            values = defaults(self._profile(chosen))
        except EngineError:
            return [gr.skip() for _ in self.fields]
        found = []
        for setting in self.settings:
            value = values[setting.key]
            choices = [(f"as the profile says ({value})", ""), *((option, option) for option in setting.options)]
            found.append(gr.update(choices=choices) if setting.options else gr.update(placeholder=value))
        return found

    def _configuration(self, data: str, profile: str, name: str, given: tuple[str, ...]):
        always = {"data.path": self.shared.workspace.data_path(data), "run.output": str(self.shared.workspace.runs)}
        if name.strip():
            always["run.name"] = name.strip()
        return configuration(profile, dict(zip(self.fields, given, strict=True)), always)

    def _preview(self, data: str, profile: str, name: str, *given: str) -> tuple[Any, Any]:
        """What the planner makes of the form, or what is wrong with it; and the same on the command line."""
        try:
            profile = self._profile(profile)
            config, _, filled = self._configuration(data, profile, name, given)
        except EngineError as error:
            return gr.update(value=note(str(error), problem=str(error) != LOOKING), visible=True), gr.skip()
        always = {"data.path": config.data.path} | ({"run.name": config.run.name} if config.run.name else {})
        text, wrong = planned(self.shared, config, data)
        return gr.update(value=note(text, wrong), visible=bool(text)), command(profile, filled, always)

    def _check(self, setting: Setting):
        """A function of (profile, text) that says below a field what is wrong with it."""

        def checked(profile: str, text: str | None) -> Any:
            try:
                used = self._profile(profile)
            except EngineError:
                used = "cpu"
            return _told(setting, problem(used, setting.key, text or ""))

        return checked

    def _start(self, data: str, profile: str, name: str, *given: str) -> Iterator[tuple]:
        same = [gr.skip() for _ in given]
        if profile == "auto" and not self.shared.machine.wait(0):
            told = gr.update(value=note(f"{LOOKING}; then the training starts"), visible=True)
            yield gr.skip(), told, gr.skip(), *same
            self.shared.machine.wait(LOOKING_SECONDS)
        try:
            profile = self._profile(profile)
            problems = [problem(profile, s.key, text or "") for s, text in zip(self.settings, given, strict=True)]
            same = [_told(s, what) if what else gr.skip() for s, what in zip(self.settings, problems, strict=True)]
            config, origins, _ = self._configuration(data, profile, name, given)
            text, wrong = planned(self.shared, config, data)
            if wrong:
                raise ConfigError(text)
            id = launch.start(config, profile, origins)
        except EngineError as error:
            yield gr.skip(), gr.update(value=note(str(error), problem=True), visible=True), gr.skip(), *same
            return
        self.shared.runs.forget()
        runs = [(f"{run.id} ({run.state})", run.id) for run in self.shared.runs()[:RUNS_OFFERED]]
        yield gr.update(choices=runs, value=id), gr.update(visible=False), None, *same

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
        """The settings that another page chose; `profile` is one of them."""
        if not given:
            return [gr.skip()] * (1 + len(self.fields))
        chosen = {key: str(value) for key, value in given.items() if key in KEYS}
        return [given.get("profile", gr.skip()), *(chosen.get(key, "") for key in self.fields)]


def _told(setting: Setting, problem: str) -> Any:
    """The field with what is wrong below its title, or with its usual words."""
    return gr.update(info=f"⚠ {problem}" if problem else setting.words, elem_classes=["wrong"] if problem else [])


def build(shared: Shared) -> TrainPage:
    return TrainPage(shared)
