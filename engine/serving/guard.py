"""What every request passes before anything looks into it: host, token, size and duration of the body."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST_BYTES = 2**20  # of a body
MOST_DROPPED = 16 * 2**20  # of one that is too large: most clients read the answer only after they sent all
BODY_SECONDS = 20.0
OPEN_PATHS = frozenset({"/health", "/docs", "/openapi.json"})  # what they tell is the same for every model
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """An ASGI application around `app`.

    token: what `Authorization: Bearer` has to carry, or None · local: the name that a client calls this server by must
    be one of this machine's own, so that no web page of a name that resolves to it can ask the model (DNS rebinding).
    """

    def __init__(self, app: Callable[..., Awaitable[None]], token: str | None, local: bool) -> None:
        self._app, self._local = app, local
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._local and _host(headers) not in LOCAL_NAMES:
            await _refuse(send, 421, "call this server localhost or 127.0.0.1")
        elif self._token is not None and scope["path"] not in OPEN_PATHS and not self._has_token(headers):
            await _refuse(send, 401, "needs the header Authorization: Bearer TOKEN", (b"www-authenticate", b"Bearer"))
        else:
            await self._with_body(scope, receive, send)

    def _has_token(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(given.strip(), self._token) and scheme.lower() == b"bearer"

    async def _with_body(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Reads the body, then lets the application have it in one piece."""
        body, size, more = bytearray(), 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more and size <= MOST_DROPPED:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size <= MOST_BYTES:
                        body += part
        except TimeoutError:
            await _refuse(send, 408, f"the body took longer than {BODY_SECONDS:.0f} s")
            return
        if size > MOST_BYTES:
            await _refuse(send, 413, f"the body is larger than {MOST_BYTES} bytes")
            return
        first = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> MutableMapping[str, Any]:
            return first.pop() if first else await receive()

        await self._app(scope, replay, send)


def _host(headers: dict[bytes, bytes]) -> str:
    """The Host header without its port."""
    host = headers.get(b"host", b"").decode("latin-1")
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]


async def _refuse(send: Send, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
    content = json.dumps({"detail": reason}).encode()
    shown = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *headers]
    # What is left of the body shall not be taken for the next request.
    shown.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": shown})
    await send({"type": "http.response.body", "body": content})
