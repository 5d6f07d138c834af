"""Lets a page rest: where nothing happens, what asks for animation frames gets few.

Gradio counts the seconds of every event sixty times a second, and for what has left the page before its event ended,
the words "Loading..." of every start among them, for ever (StatusTracker of gradio 6.31). That alone takes 6 % of a
core. Its modules take requestAnimationFrame as they find it when they are loaded, which is before any script that can
be given to gradio: so this one is put into the page on its way out.
"""

from __future__ import annotations

from typing import Any

SECONDS_AWAKE, SLOW_FRAME_SECONDS = 5.0, 0.5
# `wake` is called on news, too: see app.news.
SCRIPT = f"""<script>
const frame = window.requestAnimationFrame.bind(window);
let awake = 0;
function wake() {{ awake = performance.now(); }}
for (const kind of ['pointermove', 'pointerdown', 'keydown', 'wheel', 'focusin']) addEventListener(kind, wake, true);
const cancel = window.cancelAnimationFrame.bind(window);
// What waits has a negative number, so that it can be told from a frame when it is to be cancelled.
window.requestAnimationFrame = draw => performance.now() - awake < {1000 * SECONDS_AWAKE:.0f}
  ? frame(draw) : -setTimeout(() => frame(draw), {1000 * SLOW_FRAME_SECONDS:.0f});
window.cancelAnimationFrame = number => number < 0 ? clearTimeout(-number) : cancel(number);
</script>"""


class SlowFrames:
    """ASGI middleware that puts SCRIPT before everything else in the page."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/":
            return await self.app(scope, receive, send)
        start: dict[str, Any] = {}

        async def changed(message: dict) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            if start:
                body = message.get("body", b"").replace(b"<head>", b"<head>" + SCRIPT.encode(), 1)
                message = {**message, "body": body}
                length = (b"content-length", str(len(body)).encode())
                kept = [header for header in start["headers"] if header[0].lower() != length[0]]
                await send({**start, "headers": kept if message.get("more_body") else [*kept, length]})
                start.clear()
            await send(message)

        await self.app(scope, receive, changed)
