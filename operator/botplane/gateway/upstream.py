"""Connections to one provider that are kept alive, each for one request at a time.

A connection goes back only after a whole answer; whatever else happens, it is closed. So no answer
can be taken for that to another call.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

CONNECT_SECONDS: Final = 3.0
TURN_SECONDS: Final = 3.0
"""How long a call waits for a connection while all are in use: it was not sent then."""
MOST_HEADER_BYTES: Final = 64 << 10
KEPT_SECONDS: Final = 15.0
"""Less than providers keep a connection."""
MOST_CONNECTIONS: Final = 512
HTTPS_PORT: Final = 443
HTTP_PORT: Final = 80


class UnreachableError(Exception):
    """Nothing was sent."""


class BrokenError(Exception):
    """Something was sent, and no whole answer came.

    Attributes:
        was_kept: The connection had been used before, and not one byte came: the provider may
            have closed it at that moment.
    """

    def __init__(self, told: str, *, was_kept: bool = False) -> None:
        super().__init__(told)
        self.was_kept = was_kept


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderResponse:
    """What came back."""

    status: int
    body: bytes


class Upstream:
    """The connections to one address."""

    def __init__(self, url: str, most_bytes: int) -> None:
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (HTTPS_PORT if self._is_tls else HTTP_PORT)
        self._tls = ssl.create_default_context() if self._is_tls else None
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._head = (
            f"POST {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: botplane\r\n"
            "Content-Type: application/json\r\nAccept: application/json\r\n"
            "Accept-Encoding: identity\r\nContent-Length: "
        ).encode()
        self._most_bytes = most_bytes
        self._idle: deque[_Connection] = deque()
        self._turns = asyncio.Semaphore(MOST_CONNECTIONS)

    async def post(self, body: bytes, *, fresh: bool = False) -> ProviderResponse:
        """Send a body and return what comes back; a caller that is cancelled closes the connection.

        Args:
            body: JSON.
            fresh: Over a connection that was never used.

        Raises:
            UnreachableError: Nothing was sent.
            BrokenError: No whole answer came.
        """
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise UnreachableError from None
        try:
            connection = (None if fresh else self._kept()) or await self._connect()
            return await self._exchange(connection, body)
        finally:
            self._turns.release()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().abort()

    async def _exchange(self, connection: _Connection, body: bytes) -> ProviderResponse:
        try:
            response = await connection.exchange(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        except BaseException:
            connection.abort()
            raise
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.abort()
        return response

    def _kept(self) -> _Connection | None:
        oldest = time.monotonic() - KEPT_SECONDS
        while self._idle and self._idle[0].used_at < oldest:
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._most_bytes),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._is_tls else None,
                )
        except (OSError, TimeoutError, ssl.SSLError):
            raise UnreachableError from None
        return connection


class _Connection(asyncio.Protocol):
    """One connection; `exchange` is called by one caller at a time."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[ProviderResponse] | None = None
        self._body = bytearray()
        self._head_bytes = 0
        self._is_in_head = True
        self._is_silent = True
        self._uses = 0
        self.is_reusable = True
        self.used_at = 0.0

    async def exchange(self, request: bytes) -> ProviderResponse:
        """Send a request and return its answer.

        Raises:
            UnreachableError: It was closed before anything was sent.
            BrokenError: No whole answer came.
        """
        if not self.is_reusable:
            raise UnreachableError
        self._answer = asyncio.get_running_loop().create_future()
        self._body, self._is_silent = bytearray(), True
        self._head_bytes, self._is_in_head = 0, True
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            self._answer = None
            self._uses += 1
            self.used_at = time.monotonic()

    def abort(self) -> None:
        """Close the connection now."""
        self.is_reusable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to write."""
        # uvloop's transports are streams and no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell who waits that no answer will come."""
        self._break("broke off")

    def data_received(self, data: bytes) -> None:
        """Read what came; what nobody asked for ends the connection."""
        self._is_silent = False
        if self._answer is None:
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break("did not answer in HTTP")
        self._head_bytes += len(data)
        if self._is_in_head and self._head_bytes > MOST_HEADER_BYTES:
            self._break("answered with too many headers")

    def on_message_begin(self) -> None:
        """Note that an answer begins; a second one to one call is nobody's."""
        if self._answer is None or self._answer.done():
            self._break("answered what nobody asked for")

    def on_headers_complete(self) -> None:
        """Read the body from here on."""
        self._is_in_head = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the answer, as long as it is not too large."""
        self._body += body
        if len(self._body) > self._most_bytes:
            self._break(f"answered more than {self._most_bytes:,} bytes")

    def on_message_complete(self) -> None:
        """Hand the answer to who waits for it; a second one is nobody's."""
        status = self._parser.get_status_code()
        if self._answer is None or self._answer.done() or status < 200:  # noqa: PLR2004 - not an end
            self._break("answered what nobody asked for")
            return
        self.is_reusable = self.is_reusable and self._parser.should_keep_alive()
        self._answer.set_result(ProviderResponse(status=status, body=bytes(self._body)))

    def _break(self, told: str) -> None:
        self.is_reusable = False
        if self._answer is not None and not self._answer.done():
            was_kept = self._is_silent and self._uses > 0
            self._answer.set_exception(BrokenError(told, was_kept=was_kept))
