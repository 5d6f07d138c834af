"""The browser interface: puts the pages together and serves them, on this machine or behind a password.

A thin client: everything shown is read from files, and whatever takes long is another process. Closing or reloading
the page, or ending the interface, changes nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from app.frames import SlowFrames
from app.history import Histories
from app.html import chip
from app.jobs import Jobs
from app.machine import Machine
from app.news import SCRIPT, offer_stamp, pulse
from app.runlist import RunList
from app.shared import LARGEST_UPLOAD, QUIET, Shared
from app.workspace import Workspace
from engine.runs import RunSummary

QUEUE_SECONDS = 0.05
PAGES = ("data", "plan", "train", "runs", "predict", "system")
# The page that was open before a reload. It is read before the first page opens.
HEAD = "<script>const pageBefore = sessionStorage.getItem('page') || 'data'</script>" + SCRIPT
# Whoever opened another page while this one was still loading stays there.
AGAIN = f"""() => {{
  const opened = sessionStorage.getItem('page') || '{PAGES[0]}';
  return {{__type__: 'update', selected: opened === '{PAGES[0]}' ? pageBefore : opened}};
}}"""
TITLE = "<h1>fanin</h1><p>Text classifiers with very many labels, trained on your own card.</p>"


def build(workspace: Workspace) -> gr.Blocks:
    """The interface over the runs and datasets of `workspace`."""
    with gr.Blocks(title="fanin", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as interface:
        head = gr.HTML(header(None), elem_id="head")
        jobs = Jobs(workspace.jobs)
        shared = Shared(workspace, jobs, Machine(jobs), RunList(workspace.runs), Histories())
        offer_stamp(shared)
        pulses = {name: pulse(name) for name in ("top", *PAGES)}  # among the tabs they would be counted as tabs
        pages = {}
        with gr.Tabs(elem_id="pages") as shared.tabs:
            for name in PAGES:
                with gr.Tab(name.capitalize(), id=name) as tab:
                    tab.select(None, None, None, js=f"() => {{ sessionStorage.setItem('page', '{name}') }}", **QUIET)
                    shared.ticks = [interface.load, tab.select, pulses[name].tick]
                    pages[name] = import_module(f"app.pages.{name}").build(shared)
        interface.load(None, None, shared.tabs, js=AGAIN, **QUIET)
        said = gr.State()
        gr.on([interface.load, pulses["top"].tick], lambda before: _now(shared, before), [said], [head, said], **QUIET)
        for page in pages.values():
            if page is not None:
                page.connect()
    return interface


def header(active: RunSummary | None) -> str:
    """The top of every page, with the training that is going on."""
    now = ""
    if active:
        share = f" {active.step / active.total:.0%}" if active.total else ""
        now = chip(active.state, f"{active.id}: {active.state}{share}")
    return f'<header class="top">{TITLE}{now}</header>'


def _now(shared: Shared, before: str | None) -> tuple[Any, Any]:
    active = [run for run in shared.runs() if run.active]
    training = next((run for run in active if run.state != "queued"), next(iter(active), None))
    text = header(training)
    return (gr.skip(), gr.skip()) if text == before else (text, text)


def serve(workspace: Workspace, host: str, port: int, auth: tuple[str, str] | None, loopback: bool) -> None:
    """Serves `build(workspace)` until Ctrl+C."""
    # Gradio asks itself whether it is up; a proxy for the outside world cannot answer that.
    direct = filter(None, (os.environ.get("no_proxy", os.environ.get("NO_PROXY")), "localhost,127.0.0.1,::1", host))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(direct)
    # A page of another site that lets its name resolve to 127.0.0.1 still sends that name (DNS rebinding).
    names = ["localhost", "127.0.0.1", "::1", "[::1]", host] if loopback else ["*"]
    interface = build(workspace)
    interface.queue(max_size=64, default_concurrency_limit=8)
    # Gradio looks for work a thousand times a second, which takes 4 % of a core for nothing. Only the calls of programs
    # go through its queue.
    interface._queue.sleep_when_free = QUEUE_SECONDS
    interface.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        auth=auth,
        share=False,
        allowed_paths=[],
        max_file_size=LARGEST_UPLOAD,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False),
                Middleware(SlowFrames),
            ]
        },
        footer_links=[],
        theme=theme(),
        head=HEAD,
        css_paths=[Path(__file__).parent / "style.css"],
        prevent_thread_lock=True,
        quiet=True,
    )
    where = f"Runs in {workspace.runs.resolve()}, datasets in {workspace.datasets.resolve()}"
    print(f"{where}: open {interface.local_url} (Ctrl+C ends the interface; trainings go on)", flush=True)
    interface.block_thread()


def theme() -> gr.themes.Base:
    """Colours that keep their contrast in light and dark, fonts that every machine has, the corners a little round."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_hover_dark="#991b1b",
        button_cancel_text_color="white",
        button_cancel_text_color_dark="white",
    )
