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
QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # of events that refresh something


@dataclass
class Shared:
    """ticks: the events on which a page looks for news, the first of them the loading of the page · tabs: to go to
    another page, see `go` · choices: by page, the components through which another page sets what it works on.
    """

    workspace: Workspace
    jobs: Jobs
    machine: Machine
    runs: RunList
    histories: Histories
    ticks: list[Callable]
    tabs: gr.Tabs
    choices: dict[str, Any] = field(default_factory=dict)


def go(page: str) -> gr.Tabs:
    """The update of `Shared.tabs` that opens the page of that id."""
    return gr.Tabs(selected=page)
