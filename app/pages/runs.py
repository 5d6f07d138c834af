"""The page that lists the runs, newest first, as they are now."""

from __future__ import annotations

import html
from datetime import datetime
from pathlib import Path
from typing import Any

import gradio as gr

from app.shared import Shared
from engine.runs import RunSummary, list_runs

COLUMNS = {
    "Run": 240,
    "State": 120,
    "Steps done": 180,
    "P@1": 75,
    "Labels": 100,
    "Started": 150,
    "What it says": 265,
}
SIGNS = {"completed": "✓", "stopped": "■", "failed": "✗"}


def build(shared: Shared) -> None:
    """Lays the page out inside the current Blocks; `ticks` are the events that refresh it."""
    root, ticks = shared.workspace.runs, shared.ticks
    note = gr.HTML(none_yet(root), visible=False)
    table = gr.Dataframe(
        headers=list(COLUMNS),
        column_widths=list(COLUMNS.values()),
        datatype="str",
        type="array",
        interactive=False,
        wrap=True,
        show_label=False,
        buttons=[],
        visible=False,
        elem_id="runs",
    )
    shown = gr.State()

    def refresh(before: list | None) -> tuple[Any, Any, Any]:
        rows = [row(run) for run in list_runs(root)]
        # Sending equal rows again would make the browser lose its scroll position and selection.
        if rows == before:
            return gr.skip(), gr.skip(), gr.skip()
        return gr.update(visible=not rows), gr.update(value=rows, visible=bool(rows)), rows

    gr.on(ticks, refresh, [shown], [note, table, shown], show_progress="hidden", api_visibility="private", queue=True)

    def runs() -> list[dict]:
        """The runs, newest first: id, state, step, total, message, started, metrics, has_model."""
        keys = ("id", "state", "step", "total", "message", "started", "metrics", "has_model")
        return [{key: getattr(run, key) for key in keys} for run in list_runs(root)]

    gr.api(runs, api_name="runs")


def none_yet(root: Path) -> str:
    """HTML that says how to make the first run in `root`."""
    where = "" if str(root) == "runs" else f" --output {root}"
    return f'<p class="note">No runs in {html.escape(str(root.resolve()))} yet. Make one in a terminal: ' + (
        f"<code>engine train --profile cpu{html.escape(where)}</code></p>"
    )


def row(run: RunSummary) -> list[str]:
    """The texts in one row of the table."""
    share = f" ({run.step / run.total:.0%})" if run.total else ""
    return [
        run.id,
        f"{SIGNS.get(run.state, '●')} {run.state}",
        f"{run.step:,} of {run.total:,}{share}" if run.total else "",
        percent(run.metrics.get("P@1")),
        f"{run.labels:,}" if isinstance(run.labels, int) else "",
        f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}",
        run.message,
    ]


def percent(fraction: float | None) -> str:
    return f"{fraction:.1%}" if isinstance(fraction, int | float) else ""
