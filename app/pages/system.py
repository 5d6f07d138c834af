"""The page that says what this machine can do: what `engine doctor` says, and which folders are in use."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.shared import QUIET, Shared
from app.system_view import findings, folders, gauges, headline, parts
from engine.planning.doctor_command import format_report

# Copies the text beside a button of class "copy".
COPY = """element.addEventListener("click", event => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent)
    .then(() => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); });
})"""


def build(shared: Shared) -> None:
    """Lays the page out inside the current Blocks."""
    machine, workspace = shared.machine, shared.workspace
    top = gr.HTML(elem_id="verdict")
    with gr.Row():
        again = gr.Button("Look again", size="sm", scale=0, min_width=160)
    mend = gr.HTML(js_on_load=COPY, elem_id="findings")
    measures = gr.HTML(elem_id="gauges")
    table = gr.HTML(elem_id="doctor")
    used = gr.HTML(elem_id="folders")
    with gr.Accordion("Report to copy, for a question or a bug report", open=False):
        report = gr.Textbox(
            label="What engine doctor says", lines=12, max_lines=40, interactive=False, buttons=["copy"],
            elem_id="report",
        )  # fmt: skip
    shown = gr.State()

    def refresh(before: tuple | None) -> Any:
        asking, found, problem = machine.asking, machine.report, machine.problem
        there = ([run.id for run in shared.runs()], workspace.dataset_ids())
        now = (asking, id(found), problem, there)
        if now == before:
            return gr.skip()
        updates: dict[Any, Any] = {shown: now, again: gr.update(interactive=not asking)}
        updates[top] = headline(found, problem, asking)
        if before is None or now[1:] != before[1:]:
            updates[used] = folders(workspace)
            if found:
                updates |= {
                    mend: findings(found), measures: gauges(found), table: parts(found), report: format_report(found),
                }  # fmt: skip
        return updates

    def look(before: tuple | None) -> Any:
        machine.ask()
        return refresh(before)

    outputs = [shown, top, again, mend, measures, table, used, report]
    gr.on(shared.ticks, refresh, [shown], outputs, **QUIET)
    again.click(look, [shown], outputs, **QUIET)
