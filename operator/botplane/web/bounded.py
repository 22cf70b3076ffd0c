"""Connections with bounded heads and patience: uvicorn waits forever, for any number of headers.

Whoever reaches the port may connect, and only a request that was read can be told whose it is.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_CONNECTIONS: Final = 2000
MOST_UNREAD_BYTES: Final = 64 << 10
"""Of one request beside its body: its head, the frames of its chunks, what follows them."""
PATIENCE_SECONDS: Final = 40.0
"""How long a request may take to arrive: longer than a body may."""


class BoundedProtocol(HttpToolsProtocol):
    """Ends a connection that sends too much or too slowly, and the oldest that asks nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._beside = 0
        self.patience: asyncio.TimerHandle | None = None
        """Ends the connection; None while a request is answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; where there are too many, one ends on which no request is answered."""
        super().connection_made(transport)
        if len(self.connections) >= MOST_CONNECTIONS:
            self._end_oldest()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came, unless too much of it is no body."""
        self._beside += len(data)
        super().data_received(data)
        if self._beside > MOST_UNREAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Too many headers.")

    def on_message_begin(self) -> None:
        """A request starts."""
        super().on_message_begin()
        self._beside = 0
        self._wait()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, whose size its reader bounds."""
        self._beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Be patient with ourselves: the request is here."""
        self._beside = 0
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of the one that is answered."""
        super().on_response_complete()
        if not self.pipeline and not self.transport.is_closing():
            self._wait()

    def _wait(self) -> None:
        if self.patience is None:
            self.patience = self.loop.call_later(PATIENCE_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None

    def _end_oldest(self) -> None:
        waiting = {
            connection: connection.patience.when()
            for connection in self.connections
            if isinstance(connection, BoundedProtocol) and connection.patience is not None
        }
        if waiting:
            oldest = min(waiting, key=lambda connection: waiting[connection])
            self.connections.discard(oldest)
            oldest.transport.abort()
