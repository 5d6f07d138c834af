"""How an open page learns that there is news: it asks for a stamp, and looks at everything only when that is another.

A look is an event of gradio, which costs a browser a tenth of a second; the stamp is a plain request.
"""

from __future__ import annotations

import hashlib
import secrets
import time

import gradio as gr

from app.shared import Shared

ASK_SECONDS = 2.0
ANYWAY_SECONDS = 300.0  # whatever the stamp may miss is seen after so long
# A server that was started again knows nothing of what was offered on the page and refuses what is chosen there, and so
# does one whose page has slept for longer: the page is loaded again, which keeps what is open.
FORGOTTEN_SECONDS = 1800.0
SERVER = secrets.token_hex(4)
# Every page, and the top of all of them, puts into `pulses` what lets it look. Only the page that is open does; after
# news it looks twice, since an event that comes while the one before is still under way is dropped.
SCRIPT = f"""<script>
const pulses = {{}};
const asking = {{stamp: null, looks: 0, busy: false, server: null, at: Date.now(), slept: false, failed: 0}};
async function askForNews() {{
  asking.slept ||= Date.now() - asking.at > {1000 * FORGOTTEN_SECONDS:.0f};
  asking.at = Date.now();
  if (document.hidden || asking.busy || !window.gradio_config) return;
  asking.busy = true;
  try {{
    const {{root, api_prefix}} = window.gradio_config;
    const answer = await fetch(`${{root}}${{api_prefix}}/run/news`, {{
      method: 'POST', headers: {{'Content-Type': 'application/json'}}, body: '{{"data": []}}',
    }});
    const [server, stamp] = answer.ok ? (await answer.json()).data[0].split(' ') : [null, null];
    const another = asking.server && (answer.status === 401 || (server && server !== asking.server));
    asking.failed = 0;
    if (another || (server && asking.slept)) return location.reload();
    if (server) {{
      asking.server = server;
      if (stamp !== asking.stamp) asking.looks = 2;
      asking.stamp = stamp;
      if (asking.looks > 0) {{
        asking.looks -= 1;
        wake();
        for (const name of ['top', sessionStorage.getItem('page') || 'data']) pulses[name]?.();
      }}
    }}
  }} catch {{
    asking.failed += 1; // the interface has ended; it is asked again
  }} finally {{
    document.body.classList.toggle('ended', asking.failed > 1);
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
        return f"{SERVER} {stamp(shared, time.monotonic())}"

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
