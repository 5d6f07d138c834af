"""How an open page learns that there is news: it asks for a stamp, and looks at everything only when that is another.

A look is an event of gradio, which costs a browser a tenth of a second; the stamp is a plain request.
"""

from __future__ import annotations

import hashlib
import time

import gradio as gr

from app.shared import Shared

ASK_SECONDS = 2.0
ANYWAY_SECONDS = 300.0  # whatever the stamp may miss is seen after so long
# Every page, and the top of all of them, puts into `pulses` what lets it look. Only the page that is open does; after
# news it looks twice, since an event that comes while the one before is still under way is dropped.
SCRIPT = f"""<script>
const pulses = {{}}, asking = {{stamp: null, looks: 0, busy: false}};
async function askForNews() {{
  if (document.hidden || asking.busy || !window.gradio_config) return;
  asking.busy = true;
  try {{
    const {{root, api_prefix}} = window.gradio_config;
    const answer = await fetch(`${{root}}${{api_prefix}}/run/news`, {{
      method: 'POST', headers: {{'Content-Type': 'application/json'}}, body: '{{"data": []}}',
    }});
    if (answer.ok) {{
      const [stamp] = (await answer.json()).data;
      if (stamp !== asking.stamp) asking.looks = 2;
      asking.stamp = stamp;
      if (asking.looks > 0) {{
        asking.looks -= 1;
        wake();
        for (const name of ['top', sessionStorage.getItem('page') || 'data']) pulses[name]?.();
      }}
    }}
  }} catch {{
    // the interface has ended, which gradio says; it is asked again
  }} finally {{
    asking.busy = false;
  }}
}}
setInterval(askForNews, {1000 * ASK_SECONDS:.0f});
document.addEventListener('visibilitychange', askForNews);
</script>"""


def pulse(name: str) -> gr.HTML:
    """Shows nothing; its `tick` is the event on which the page of that name, or the top of all, looks for news."""
    return gr.HTML(js_on_load=f"pulses[{name!r}] = () => trigger('tick');", elem_classes=["pulse"])


def offer_stamp(shared: Shared) -> None:
    """Lets pages ask for the stamp; call it inside the Blocks."""

    def news() -> str:
        return stamp(shared, time.monotonic())

    gr.api(news, api_name="news", api_visibility="undocumented", queue=False)


def stamp(shared: Shared, now: float) -> str:
    """Another text whenever a page could show something else. now: seconds of a clock."""
    runs, jobs, machine, workspace = shared.runs(), shared.jobs.states(), shared.machine, shared.workspace
    busy = any(run.active for run in runs) or any(state == "running" for _, state in jobs)
    seen = (
        [(run.id, run.state, run.step, run.message, run.has_model) for run in runs],
        jobs,
        [(id, workspace.dataset_stamp(id)) for id in workspace.dataset_ids()],
        (machine.asking, id(machine.report), machine.problem),
        now // (ASK_SECONDS if busy else ANYWAY_SECONDS),
    )
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
