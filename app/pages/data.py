"""The page that shows what is in a dataset, makes the built-in corpora, and brings in files."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.bring import Bring
from app.data_view import ended, origin, overview, past, rows, running
from app.html import note
from app.imports import Imports
from app.inspections import Inspections, Look
from app.removal import check_removable, remove_dataset
from app.shared import QUIET, Shared, go, offer
from engine.data.builtin import BUILT_IN
from engine.errors import EngineError

SMALL = "python-stdlib"  # the built-in corpus of one click
SECONDS = {SMALL: "some seconds", "python-api": "about a minute"}  # to make it


def build(shared: Shared) -> DataPage:
    """Lays the page out inside the current Blocks."""
    return DataPage(shared)


class DataPage:
    """The page. Its state in a browser: what is shown there (`seen`), the import whose dataset is shown when it is done
    (`following`), and which of the sampled rows are shown (`leaf`).
    """

    def __init__(self, shared: Shared):
        self.shared = shared
        self.workspace = shared.workspace
        self.imports = Imports(shared.workspace, shared.jobs)
        self.inspections = Inspections(shared.workspace, shared.jobs)
        self.seen, self.following, self.leaf = gr.State(), gr.State(), gr.State(0)
        with gr.Row(equal_height=True):
            self.dataset = gr.Dropdown(
                [], label="Dataset", scale=3,
                info="texts with their labels; the built-in corpus is Python's own documentation", elem_id="dataset",
                interactive=True,
            )  # fmt: skip
            self.built_in = gr.Button("Use the built-in corpus", scale=1, min_width=220)
        self.problem = gr.HTML(elem_id="data-problem")
        with gr.Row():
            self.plan = gr.Button("Plan with this data")
            self.train = gr.Button("Train with this data", variant="primary")
            self.delete = gr.Button("Delete this dataset", visible=False)
        with gr.Group(visible=False, elem_id="confirm") as self.confirm:
            self.question = gr.HTML()
            with gr.Row():
                self.yes = gr.Button("Yes, delete it", variant="stop")
                self.no = gr.Button("No, keep it")
        self.active = gr.HTML(visible=False, elem_id="import-progress", render=False)
        self.cancel = gr.Button("Cancel", variant="stop", size="sm", visible=False, render=False)
        self.bring = Bring(shared, self.imports, [self.following, self.active, self.cancel])
        self.active.render()
        self.cancel.render()
        self.about = gr.HTML(elem_id="about")
        self.make = gr.Button("Make this corpus", visible=False)
        self.rows = gr.HTML(elem_id="rows")
        self.others = gr.Button("Show other rows", size="sm", visible=False)
        self.origin = gr.HTML(elem_id="origin")
        with gr.Accordion("Imports so far", open=False):
            self.past = gr.HTML(elem_id="imports")
        self._wire()

    def _wire(self) -> None:
        shown = [self.about, self.make, self.rows, self.others, self.origin, self.delete, self.leaf, self.seen]
        form = [self.bring.files, self.bring.name, self.bring.box]
        gr.on(
            self.shared.ticks, self._refresh, [self.seen, self.following, self.dataset, self.leaf],
            [*shown, *form, self.dataset, self.active, self.cancel, self.past, self.following], **QUIET,
        )  # fmt: skip
        self.dataset.input(self._choose, [self.dataset, self.seen], [*shown, self.problem, self.confirm], **QUIET)
        begun = [self.following, self.active, self.cancel, self.problem, self.bring.box]
        self.built_in.click(
            lambda seen: self._built_in(SMALL, seen), [self.seen], [*begun, *shown, self.dataset], **QUIET
        )
        self.make.click(self._built_in, [self.dataset, self.seen], [*begun, *shown, self.dataset], **QUIET)
        self.cancel.click(self._cancel, None, [self.problem], **QUIET)
        self.others.click(self._turn, [self.dataset, self.leaf], [self.rows, self.leaf], **QUIET)
        self.delete.click(self._ask, [self.dataset], [self.confirm, self.question, self.problem], **QUIET)
        self.no.click(lambda: gr.update(visible=False), None, self.confirm, **QUIET)
        self.yes.click(self._delete, [self.dataset], [self.confirm, self.problem], **QUIET)

    def connect(self) -> None:
        """Lets the buttons lead to the pages that work with the dataset, which is chosen there at once."""
        others = [self.shared.choices[page][0] for page in ("plan", "train")]
        told = gr.State(False)
        self.dataset.change(self._tell, [self.dataset, told], [told, *others], **QUIET)
        for page, button in (("plan", self.plan), ("train", self.train)):
            button.click(
                lambda id, page=page: (go(page), self.shared.set_to(page, id)),
                [self.dataset], [self.shared.tabs, self.shared.choices[page][0]], **QUIET,
            )  # fmt: skip

    def _refresh(self, seen: dict | None, following: str | None, chosen: str | None, leaf: int) -> Any:
        """Updates of whatever is new since `seen`."""
        before = seen or {}
        now: dict[str, Any] = {"choices": self.workspace.dataset_choices()}
        jobs = self.imports.list()
        now["imports"] = [(job.id, job.state, job.words) for job in jobs]
        active = next((job for job in jobs if job.state == "running"), None)
        now["active"] = active.id if active else None
        updates: dict[Any, Any] = {}
        ids = [id for _, id in now["choices"]]
        value = chosen if chosen in ids else self._first(ids)
        if now["imports"] != before.get("imports"):
            updates[self.past] = past(jobs)
            if active:
                updates |= {
                    self.active: gr.update(value=running(active), visible=True),
                    self.cancel: gr.update(visible=True),
                }
        if seen is None and active:
            updates[self.following] = active.id
        for job in jobs:
            if job.state != "running" and job.id in (following, before.get("active")):
                updates |= {
                    self.active: gr.update(value=ended(job), visible=True),
                    self.cancel: gr.update(visible=False),
                }
                if job.id == following:
                    updates[self.following] = None
                    if job.state == "done":
                        value = job.details["dataset"]
                        updates |= self.bring.cleared if value not in BUILT_IN else {}
        if now["choices"] != before.get("choices") or value != chosen:
            updates[self.dataset] = offer(now["choices"], chosen, value)
        now["shown"] = before.get("shown")
        if (
            not before
            or now["shown"][:2] != (value, self.workspace.dataset_stamp(value))
            or now["shown"][2] == "running"
        ):
            updates |= self._show(value, now, leaf if value == chosen else 0)
        if now == seen and not updates:
            return gr.skip()
        return updates | {self.seen: now}

    def _tell(self, id: str | None, told: bool) -> list[Any]:
        """What other pages are told of a dataset that was chosen or imported, not of the first one shown."""
        if not (told and id and self.workspace.dataset_stamp(id)):
            return [True, gr.skip(), gr.skip()]
        return [True, *(self.shared.set_to(page, id) for page in ("plan", "train"))]

    def _first(self, ids: list[str]) -> str:
        """What is shown when nothing is chosen: a dataset that is there, best one's own."""
        return next((id for id in [*ids[len(BUILT_IN) :], *ids] if self.workspace.dataset_stamp(id)), SMALL)

    def _show(self, id: str, seen: dict[str, Any], leaf: int = 0, again: bool = False) -> dict[Any, Any]:
        """Updates that show a dataset; `seen` learns of it."""
        stamp = self.workspace.dataset_stamp(id)
        look = self.inspections.look(id, again)
        before, seen["shown"] = seen.get("shown"), (id, stamp, look.state)
        if look.state == "running" and before == seen["shown"]:
            return {}
        done = look.state == "done"
        return {
            self.about: self._about(id, look),
            self.make: gr.update(visible=look.state == "absent"),
            self.rows: gr.update(value=rows(look.report, leaf) if done else "", visible=done),
            self.others: gr.update(visible=done),
            self.origin: origin(self.workspace.dataset_path(id), look.meta) if done else "",
            self.delete: gr.update(visible=id not in BUILT_IN),
            self.leaf: leaf,
        }

    def _about(self, id: str, look: Look) -> str:
        if look.state == "done":
            return overview(look.report, look.meta)
        if look.state == "absent":
            return note(f"{look.words}: the button makes it in {SECONDS[id]}, and so does a training that needs it")
        return note(look.words, problem=look.state == "failed")

    def _choose(self, id: str, seen: dict | None) -> dict[Any, Any]:
        seen = dict(seen or {})
        seen["shown"] = None
        return self._show(id, seen, again=True) | {
            self.seen: seen, self.problem: "", self.confirm: gr.update(visible=False),
        }  # fmt: skip

    def _built_in(self, id: str, seen: dict | None) -> dict[Any, Any]:
        """Shows a built-in corpus, and makes it first if it is not there."""
        seen = dict(seen or {}) | {"shown": None}
        updates = self._show(id, seen, again=True) | {self.dataset: id, self.seen: seen, self.problem: ""}
        updates[self.bring.box] = gr.update(open=False)
        if seen["shown"][2] == "absent":
            try:
                job = self.imports.start_built_in(id)
            except EngineError as error:
                return updates | {self.problem: note(str(error), problem=True)}
            updates |= {
                self.following: job.id,
                self.active: gr.update(value=running(job), visible=True),
                self.about: "",
                self.make: gr.update(visible=False),
                self.cancel: gr.update(visible=True),
            }
        return updates

    def _cancel(self) -> str:
        for job in self.imports.list():
            if job.state == "running":
                self.shared.jobs.stop(job.id)
        return ""

    def _turn(self, id: str, leaf: int) -> tuple[Any, int]:
        look = self.inspections.look(id)
        return (rows(look.report, leaf + 1), leaf + 1) if look.report else (gr.skip(), leaf)

    def _ask(self, id: str) -> tuple[Any, Any, str]:
        try:
            path = check_removable(self.workspace, id)
        except EngineError as error:
            return gr.update(visible=False), "", note(str(error), problem=True)
        return (
            gr.update(visible=True),
            note(f"delete {id} for good? Its folder is {path}. Models trained on it stay"),
            "",
        )

    def _delete(self, id: str) -> tuple[Any, str]:
        try:
            remove_dataset(self.workspace, id)
        except EngineError as error:
            return gr.update(visible=False), note(str(error), problem=True)
        return gr.update(visible=False), note(f"{id} is deleted")
