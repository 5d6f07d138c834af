"""The browser interface: puts the pages together and serves them, on this machine or behind a password.

A thin client: everything shown is read from run directories, and a training is another process. Closing or
reloading the page changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from app.pages import predict, runs

REFRESH_SECONDS = 2.0
CSS = """
.gradio-container {width: 100%; max-width: 1200px !important; margin: 0 auto !important}
#runs * {font-family: var(--font); font-variant-numeric: tabular-nums}
.note {overflow-wrap: anywhere}
.note.problem {color: var(--error-text-color)}
.confidence-set .text {white-space: normal; overflow-wrap: anywhere}
"""


def build(root: Path) -> gr.Blocks:
    """The interface over the runs in `root`."""
    with gr.Blocks(title="fanin", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as interface:
        gr.Markdown("# fanin\nText classifiers with very many labels: trainings on this machine, and their models.")
        timer = gr.Timer(REFRESH_SECONDS)
        ticks = [interface.load, timer.tick]
        with gr.Tab("Runs"):
            runs.build(root, ticks)
        with gr.Tab("Predict"):
            predict.build(root, ticks)
    return interface


def serve(root: Path, host: str, port: int, auth: tuple[str, str] | None, loopback: bool) -> None:
    """Serves `build(root)` until Ctrl+C."""
    # Gradio asks itself whether it is up; a proxy for the outside world cannot answer that.
    direct = filter(None, (os.environ.get("no_proxy", os.environ.get("NO_PROXY")), "localhost,127.0.0.1,::1", host))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(direct)
    # A page of another site that lets its name resolve to 127.0.0.1 still sends that name (DNS rebinding).
    names = ["localhost", "127.0.0.1", "::1", "[::1]", host] if loopback else ["*"]
    interface = build(root)
    interface.queue(max_size=64)
    interface.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        auth=auth,
        share=False,
        allowed_paths=[],
        max_file_size="1mb",
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)]},
        footer_links=[],
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        prevent_thread_lock=True,
        quiet=True,
    )
    print(f"Runs in {root.resolve()}: open {interface.local_url} (Ctrl+C ends it)", flush=True)
    interface.block_thread()
