"""HTTP/1.1 as bots speak it: bounded requests, answered one after the other on each connection.

A protocol on the event loop and httptools: a web framework and its HTTP client cost more for each
call than all the rest of it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, cast

import httptools

MOST_CONNECTIONS: Final = 2000
MOST_HELD_BYTES: Final = 128 << 20
"""Of the bodies of all requests that are not answered: anybody may send one, even without a key."""
MOST_HEADER_BYTES: Final = 8 << 10
MOST_QUEUED: Final = 8
"""Requests that a client has sent ahead on one connection before it is read again."""
FRAMING: Final = 8
"""Times the largest body, all that a request may be with the frames of its chunks."""
READ_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 75.0
LINGER_SECONDS: Final = 2.0
"""A connection that is closed while data comes in takes the answer on its way with it."""
UNREAD_SECONDS: Final = 10.0
"""How long a client may take nothing of what it is sent."""
DRAIN_SECONDS: Final = 20.0
SWEEP_SECONDS: Final = 1.0

_UPGRADE: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})
_PHRASES: Final[Mapping[HTTPStatus, bytes]] = {
    status: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


@dataclass(kw_only=True, slots=True)
class HTTPRequest:
    """One request.

    Attributes:
        method: Such as `POST`.
        path: Without what may follow a `?`.
        headers: By name in lower case.
        body: Empty if it is refused.
        keep_alive: Whether the client may send another one after it.
        refused: Why it was not read to its end: `RequestInvalid`, `HeadersTooLarge`, `BodyTooLarge`
            or `RequestTooSlow`; empty for one that was.
    """

    method: str = ""
    path: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    keep_alive: bool = False
    refused: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class HTTPResponse:
    """An answer in JSON."""

    status: HTTPStatus
    body: bytes
    retry_after: int | None = None

    def head(self, *, keep_alive: bool) -> bytes:
        """Return all that precedes the body."""
        more = b"" if self.retry_after is None else b"retry-after: %d\r\n" % self.retry_after
        if not keep_alive:
            more += b"connection: close\r\n"
        return b"%scontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n" % (
            _PHRASES[self.status],
            len(self.body),
            more,
        )


Answer = Callable[[HTTPRequest], Awaitable[HTTPResponse]]
"""Answers any request, and raises nothing."""


class HTTPServer:
    """Takes connections, and ends them when it ends."""

    def __init__(
        self,
        answer: Answer,
        most_body_bytes: int,
        most_connections: int = MOST_CONNECTIONS,
        most_held_bytes: int = MOST_HELD_BYTES,
    ) -> None:
        self.answer = answer
        self.most_body_bytes = most_body_bytes
        self._most_connections = most_connections
        self._most_held_bytes = most_held_bytes
        self.held_bytes = 0
        self.connections: set[Connection] = set()
        self.is_ending = False
        self._answering: set[asyncio.Task[None]] = set()
        """Also for clients that are gone."""
        self._is_empty = asyncio.Event()

    async def serve(self, port: int, ended: asyncio.Event) -> None:
        """Serve on all addresses until `ended`; then finish what was begun, for 20 seconds."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self), "0.0.0.0", port)  # noqa: S104 - a pod has one address
        while not ended.is_set():
            self.sweep(time.monotonic())
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await ended.wait()
        server.close()
        await self._drain()

    def welcome(self, connection: Connection) -> None:
        """Take a connection; where there are too many, one ends that asks nothing, soonest due."""
        self.connections.add(connection)
        if len(self.connections) > self._most_connections:
            idle = (c for c in self.connections if c.is_idle and c is not connection)
            ended = min(idle, key=lambda c: c.deadline, default=connection)
            self.connections.discard(ended)
            ended.abort()

    def forget(self, connection: Connection) -> None:
        """Note that a connection is no more."""
        self.connections.discard(connection)
        self._note_end()

    def hold(self, size: int) -> None:
        """Keep a part of a body; where that is too much, who has been sending for longest ends."""
        self.held_bytes += size
        while self.held_bytes > self._most_held_bytes:
            unread = (c for c in self.connections if c.held_bytes and c.is_ahead)
            slowest = min(unread, key=lambda c: c.deadline, default=None)
            if slowest is None:
                return
            self.connections.discard(slowest)
            slowest.abort()

    def begin(self, answering: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Let a connection answer; an end waits for it, whatever becomes of the connection."""
        task = asyncio.get_running_loop().create_task(answering)
        self._answering.add(task)
        task.add_done_callback(self._finish)
        return task

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._note_end()

    def _note_end(self) -> None:
        if self.is_ending and not self.connections and not self._answering:
            self._is_empty.set()

    def sweep(self, now: float) -> None:
        """End the connections on which nothing has come for too long, at monotonic seconds."""
        for connection in [c for c in self.connections if c.deadline < now]:
            connection.expire()

    async def _drain(self) -> None:
        self.is_ending = True
        for connection in list(self.connections):
            connection.close_if_idle()
        last = time.monotonic() + DRAIN_SECONDS
        while (self.connections or self._answering) and time.monotonic() < last:
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._is_empty.wait()
            self.sweep(time.monotonic())
        for connection in list(self.connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, server: HTTPServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._request = HTTPRequest()
        self._size = 0
        """Bytes that came since the request began; not those that came with the one before it."""
        self._header_bytes = 0
        self._is_in_head = False
        self._is_reading = False
        self.held_bytes = 0
        """Of the bodies of its requests that are not answered."""
        self._is_over = False
        """Nothing is read any more: the last answer is on its way."""
        self._has_ended = False
        """The client has said that it sends no more."""
        self._has_declined = False
        self._queue: deque[HTTPRequest] = deque()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._unsent = 0
        self.deadline = time.monotonic() + READ_SECONDS

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered."""
        return self._task is None

    @property
    def is_ahead(self) -> bool:
        """Whether its client has sent more than what is being answered."""
        return self._is_reading or bool(self._queue)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, unless there are too many."""
        # uvloop's transports are streams and no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._server.welcome(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget the connection; a call that is under way goes on and is counted."""
        self._server.forget(self)
        self._let_go(self.held_bytes)
        self._is_over = True
        self._writable.set()

    def pause_writing(self) -> None:
        """Wait with answers: the client does not read them."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on with answers."""
        self._unsent = 0
        self._writable.set()

    def eof_received(self) -> bool:
        """Answer what was asked: a client that sends no more may still read."""
        self._is_over = self._has_ended = True
        return self._task is not None

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        if self._is_over:
            return
        self._size = len(data) + (self._size if self._is_reading else 0)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse("RequestInvalid")
        if self._is_in_head and self._size > MOST_HEADER_BYTES:
            self._refuse("HeadersTooLarge")
        most = MOST_HEADER_BYTES + FRAMING * self._server.most_body_bytes
        if self._is_reading and self._size > most:
            self._refuse("BodyTooLarge")

    def on_message_begin(self) -> None:
        """A request starts."""
        self._request = HTTPRequest()
        self._header_bytes = 0
        self._is_in_head = self._is_reading = True
        self.deadline = time.monotonic() + READ_SECONDS

    def on_url(self, url: bytes) -> None:
        """Take the target, or a part of it."""
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; of one that comes twice the first counts, of one after the body none."""
        if self._is_in_head:
            self._header_bytes += len(name) + len(value)
            self._request.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Look at what the headers ask for."""
        request = self._request
        self._is_in_head = False
        if self._header_bytes + len(request.path) > MOST_HEADER_BYTES:
            self._refuse("HeadersTooLarge")
        elif int(request.headers.get(b"content-length", b"0")) > self._server.most_body_bytes:
            self._refuse("BodyTooLarge")
        request.method = self._parser.get_method().decode("latin-1")
        request.path = request.path.partition("?")[0]
        request.keep_alive = self._parser.should_keep_alive()
        if request.headers.get(b"expect", b"").lower() == b"100-continue" and self._may_go_on():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, as long as it is not too large."""
        if len(self._request.body) + len(body) > self._server.most_body_bytes:
            self._refuse("BodyTooLarge")
        elif not self._is_over:
            self._request.body += body
            self.held_bytes += len(body)
            self._server.hold(len(body))

    def on_message_complete(self) -> None:
        """Answer the request when it is its turn; one that asks for another protocol goes on."""
        self._is_reading, self._size = False, 0
        if not self._is_over and not self._parser.should_upgrade():
            self._enqueue(self._request)

    def expire(self) -> None:
        """End a connection on which nothing has come for too long; who is being answered stays."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent != self._unsent:
            self._unsent = unsent
            self.deadline = time.monotonic() + UNREAD_SECONDS
        elif self._task is not None and not unsent:
            self.deadline = time.monotonic() + READ_SECONDS
        elif self._is_reading and not self._is_over:
            self._refuse("RequestTooSlow")
        else:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """End the connection unless a request is being answered."""
        if self.is_idle:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        self._let_go(self.held_bytes)
        self._is_over = True
        self._request = HTTPRequest()
        self._transport.abort()

    def _let_go(self, size: int) -> None:
        size = min(size, self.held_bytes)
        self.held_bytes -= size
        self._server.held_bytes -= size

    def _may_go_on(self) -> bool:
        """Say whether a client that asks may send its body: not amid answers to what it sent."""
        is_new = self._parser.get_http_version() == "1.1" and not self._parser.should_upgrade()
        return is_new and not self._is_over and self._task is None

    def _decline(self, rest: bytes) -> None:
        """Read a request, whose head was read, without its wish for another protocol.

        Java's client, for one, asks for HTTP/2 in its first request on each connection.
        """
        request = self._request
        if self._is_over or self._has_declined or request.method == "CONNECT":
            self._refuse("RequestInvalid")
            return
        self._has_declined = True
        lines = [f"{request.method} {request.path} HTTP/1.1".encode("latin-1")]
        lines += [b"%s: %s" % h for h in request.headers.items() if h[0] not in _UPGRADE]
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def _refuse(self, reason: str) -> None:
        """Answer a request that is not read to its end, and nothing after it."""
        if self._is_over:
            return
        self._is_over, self._is_in_head, self._is_reading = True, False, False
        self._let_go(len(self._request.body))
        self._request = HTTPRequest()
        self._enqueue(HTTPRequest(refused=reason))

    def _enqueue(self, request: HTTPRequest) -> None:
        self._queue.append(request)
        if len(self._queue) >= MOST_QUEUED:
            self._transport.pause_reading()
        if self._task is None:
            self._task = self._server.begin(self._answer_queue())

    async def _answer_queue(self) -> None:
        keep_alive = True
        while self._queue:
            request = self._queue.popleft()
            response = await self._server.answer(request)
            self._let_go(len(request.body))
            await self._writable.wait()
            if self._transport.is_closing():
                break
            is_last = self._is_over and not self._queue
            keep_alive = request.keep_alive and not self._server.is_ending and not is_last
            self._transport.write(response.head(keep_alive=keep_alive) + response.body)
            if not keep_alive:
                break
            if len(self._queue) < MOST_QUEUED and not self._has_ended:
                self._transport.resume_reading()
        if (self._is_over or not keep_alive) and not self._transport.is_closing():
            self._end()
        self._queue.clear()
        self._task = None
        self.deadline = time.monotonic() + (LINGER_SECONDS if self._is_over else IDLE_SECONDS)

    def _end(self) -> None:
        """Say that nothing follows, and let the client end what it is sending."""
        self._is_over = True
        if self._has_ended:
            self._transport.close()
        else:
            self._transport.resume_reading()
            self._transport.write_eof()
