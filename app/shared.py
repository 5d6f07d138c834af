"""What every page is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from app.history import Histories
from app.jobs import Jobs
from app.machine import Machine
from app.runlist import RunList
from app.workspace import Workspace

LARGEST_UPLOAD = "8gb"  # of one file
# No event of a page goes through gradio's queue. Its answers come over one stream, which the server closes after the
# last; an event that joins before the browser has heard of that waits for ever, and so do all that wait for it.
PRIVATE = {"api_visibility": "private", "queue": False}
QUIET = {**PRIVATE, "show_progress": "hidden"}  # of events that refresh something


@dataclass
class Shared:
    """ticks: the events on which the page that is being built looks for news: the loading of the interface, its
    opening, and news while it is open, see `app.news` · tabs: to go to another page, see `go` · choices: by name, the
    dropdowns through which another page sets what a page works on, each with a function of what it offers, see `set_to`
    · take: a function of settings by key that gives the updates of the form of a new training, and the components of
    that form.
    """

    workspace: Workspace
    jobs: Jobs
    machine: Machine
    runs: RunList
    histories: Histories
    ticks: list[Callable] = field(default_factory=list)
    tabs: gr.Tabs | None = None
    choices: dict[str, tuple[gr.Dropdown, Callable[[], list]]] = field(default_factory=dict)
    take: tuple[Callable, list[Any]] | None = None

    def set_to(self, name: str, value: Any) -> Any:
        """The update that chooses a value in one of `choices`, also one that came after the page was opened."""
        return gr.update(choices=self.choices[name][1](), value=value)


def offer(choices: list, chosen: Any, value: Any) -> Any:
    """The update of a dropdown that offers other choices. What is chosen there now is only set where `value` differs:
    the person may have chosen again meanwhile.
    """
    return gr.update(choices=choices) if value == chosen else gr.update(choices=choices, value=value)


def go(page: str) -> gr.Tabs:
    """The update of `Shared.tabs` that opens the page of that id."""
    return gr.Tabs(selected=page)
