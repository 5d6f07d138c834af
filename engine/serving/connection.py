"""A connection of the HTTP server that does not wait for ever: uvicorn's waits for the first request without end.

Without a limit, anybody who opens as many connections as there may be, and says nothing, keeps all others out, also
without a token.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closed when it waited for the head of a request from one look at it to the next."""

    SECONDS = 30.0  # between two looks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._next_look = self.loop.call_later(self.SECONDS, self._look, None)

    def connection_lost(self, error: Exception | None) -> None:
        self._next_look.cancel()
        super().connection_lost(error)

    def _look(self, before: Any) -> None:
        """before: the request behind which it waited at the last look, None for the first one; False if it did not."""
        waits_behind = self.cycle if self.cycle is None or self.cycle.response_complete else False
        if waits_behind is not False and waits_behind is before:
            self.transport.close()
        else:
            self._next_look = self.loop.call_later(self.SECONDS, self._look, waits_behind)
