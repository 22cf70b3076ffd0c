"""HTTP from strangers: bounded, in order, and nothing that two readers could read in two ways."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest

from botplane.gateway.http import (
    IDLE_SECONDS,
    READ_SECONDS,
    Answer,
    HTTPRequest,
    HTTPResponse,
    HTTPServer,
)
from tests.support.controlplane.ports import free_ports
from tests.support.until import until

HEAD = "POST /c HTTP/1.1\r\nHost: g\r\n"
CALL = f"{HEAD}Content-Length: 2\r\n\r\n{{}}"


class Echo:
    """Answers with what it was asked; a path `/wait…` waits."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.begun: list[str] = []
        self.done: list[str] = []

    async def __call__(self, request: HTTPRequest) -> HTTPResponse:
        """Answer a request."""
        self.begun.append(request.path)
        if request.path.startswith("/wait"):
            await self.goes_on.wait()
        self.done.append(request.path)
        told = [request.refused or request.path, request.body.decode()]
        status = HTTPStatus.BAD_REQUEST if request.refused else HTTPStatus.OK
        return HTTPResponse(status=status, body=json.dumps(told).encode())


@asynccontextmanager
async def serving(
    answer: Answer, **more: int
) -> AsyncIterator[tuple[HTTPServer, int, asyncio.Event]]:
    (port,) = free_ports(1)
    server, ended = HTTPServer(answer, most_body_bytes=1000, **more), asyncio.Event()
    task = asyncio.create_task(server.serve(port, ended))
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(0)
    writer.close()
    yield server, port, ended
    ended.set()
    await task


async def said(port: int, *sent: str) -> list[list[str]]:
    """Return the bodies of all answers to what is sent, until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in sent:
        writer.write(part.encode("latin-1"))
        await writer.drain()
    writer.write_eof()
    text = (await reader.read()).decode()
    writer.close()
    return [json.loads(line.partition("\r\n\r\n")[2]) for line in text.split("HTTP/1.1 ")[1:]]


REFUSED = {
    "no HTTP": ("hello\r\n\r\n", "RequestInvalid"),
    "a length and chunks": (
        f"{HEAD}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{{}}",
        "RequestInvalid",
    ),
    "two lengths": (f"{HEAD}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}", "RequestInvalid"),
    "a signed length": (f"{HEAD}Content-Length: +2\r\n\r\n{{}}", "RequestInvalid"),
    "an unknown coding": (f"{HEAD}Transfer-Encoding: xchunked\r\n\r\n{{}}", "RequestInvalid"),
    "a space before the colon": (f"{HEAD}Content-Length : 2\r\n\r\n{{}}", "RequestInvalid"),
    "a folded header": (f"{HEAD}X: a\r\n b\r\nContent-Length: 2\r\n\r\n{{}}", "RequestInvalid"),
    "bare line ends": (CALL.replace("\r\n", "\n"), "RequestInvalid"),
    "headers of 9 kB": (f"{HEAD}X: {'x' * 9000}\r\n\r\n", "HeadersTooLarge"),
    "a target of 9 kB": (f"POST /{'x' * 9000} HTTP/1.1\r\n\r\n", "HeadersTooLarge"),
    "a body of 1,001 bytes": (f"{HEAD}Content-Length: 1001\r\n\r\n{'x' * 1001}", "BodyTooLarge"),
    "chunks of 1,001 bytes": (
        f"{HEAD}Transfer-Encoding: chunked\r\n\r\n3e9\r\n{'x' * 1001}\r\n0\r\n\r\n",
        "BodyTooLarge",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_ends_the_connection_and_nothing_after_it_is_read(name: str) -> None:
    request, reason = REFUSED[name]
    async with serving(Echo()) as (_, port, _ended):
        assert await said(port, request + CALL) == [[reason, ""]]


@pytest.mark.parametrize("size", [1, 7, 50])
async def test_requests_sent_ahead_are_answered_in_their_order_however_they_are_cut(
    size: int,
) -> None:
    calls = "".join(CALL.replace("/c", f"/{n}?q={n}").replace("{}", f"{n:02}") for n in range(40))
    calls += CALL.replace("/c", "/last").replace("Host", "Connection: close\r\nHost")
    parts = [calls[at : at + size] for at in range(0, len(calls), size)]
    async with serving(Echo()) as (_, port, _ended):
        told = await said(port, *parts)

    assert told == [*([f"/{n}", f"{n:02}"] for n in range(40)), ["/last", "{}"]]


async def test_who_sends_no_more_is_answered_what_it_asked() -> None:
    echo = Echo()
    async with serving(echo) as (server, port, _ended):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((CALL.replace("/c", "/wait") + CALL).encode())
        writer.write_eof()
        await until(lambda: echo.begun == ["/wait"])
        # Another client is served after this one's end was read.
        await said(port, CALL.replace("Host", "Connection: close\r\nHost"))
        echo.goes_on.set()
        told = (await reader.read()).decode()
        writer.close()
        await until(lambda: not server.connections)

    assert told.count("HTTP/1.1 200 OK") == 2
    assert told.count("connection: close") == 1


async def test_requests_sent_ahead_are_no_large_headers_of_the_one_they_end_in() -> None:
    body = "x" * 990
    call = f"{HEAD}Content-Length: 990\r\n\r\n{body}"
    echo = Echo()
    async with serving(echo) as (_, port, _ended):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((call * 30 + call[:40]).encode())
        await until(lambda: len(echo.begun) == 30)
        writer.write(call[40:].encode())
        writer.write_eof()
        told = (await reader.read()).decode()
        writer.close()

    assert told.count("200 OK") == 31


async def test_who_asks_for_another_protocol_is_answered_in_this_one() -> None:
    asking = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nHost"
    last = CALL.replace("Host", "Connection: close\r\nHost")
    async with serving(Echo()) as (_, port, _ended):
        told = await said(port, CALL.replace("Host", asking) + last)
        again = await said(port, CALL.replace("Host", asking) * 2 + CALL)

    assert told == [["/c", "{}"]] * 2
    assert again == [["/c", "{}"], ["RequestInvalid", ""]]


async def test_headers_after_a_body_count_for_nothing_and_end_somewhere() -> None:
    seen: list[HTTPRequest] = []

    async def note(request: HTTPRequest) -> HTTPResponse:
        seen.append(request)
        return HTTPResponse(status=HTTPStatus.OK, body=b"[]")

    start = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n{{}}\r\n0\r\n"
    async with serving(note) as (_, port, _ended):
        await said(port, f"{start}Authorization: Bearer x\r\n\r\n")
        await said(port, start, *(f"X-{n}: {'x' * 1000}\r\n" for n in range(40)))

    first, second = seen
    assert (bytes(first.body), first.headers.get(b"authorization")) == (b"{}", None)
    assert second.refused == "BodyTooLarge"


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (CALL.replace("Host", "Expect: 100-continue\r\nHost"), ["100", "200"]),
        (CALL.replace("Length: 2", "Length: 1001\r\nExpect: 100-continue"), ["400"]),
        (CALL.replace("HTTP/1.1", "HTTP/1.0\r\nExpect: 100-continue"), ["200"]),
        (CALL + CALL.replace("Host", "Expect: 100-continue\r\nHost"), ["200", "200"]),
    ],
)
async def test_who_asks_whether_to_go_on_hears_it_when_it_may_and_it_is_its_turn(
    request_: str, told: list[str]
) -> None:
    async with serving(Echo()) as (_, port, _ended):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_.encode())
        writer.write_eof()
        text = (await reader.read()).decode()
        writer.close()

    assert [line[:3] for line in text.split("HTTP/1.1 ")[1:]] == told


async def test_who_takes_no_answer_is_ended_and_who_takes_it_slowly_is_not() -> None:
    async def much(_: HTTPRequest) -> HTTPResponse:
        return HTTPResponse(status=HTTPStatus.OK, body=b"x" * (80 << 20))

    async with serving(much) as (server, port, _ended):
        for call in (CALL, CALL.replace("Host", "Connection: close\r\nHost"), CALL + CALL):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(call.encode())
            for _ in range(3):
                # More than the buffers on the way hold.
                await reader.readexactly(16 << 20)
                server.sweep(time.monotonic() + 100)
            assert len(server.connections) == 1
            async with asyncio.timeout(30):
                while server.connections:
                    server.sweep(time.monotonic() + 100)
                    await asyncio.sleep(0.01)
            writer.transport.abort()


async def test_connections_that_ask_nothing_make_room_for_who_does() -> None:
    echo = Echo()
    async with serving(echo, most_connections=5) as (server, port, _ended):
        asking = await asyncio.open_connection("127.0.0.1", port)
        asking[1].write(CALL.replace("/c", "/wait").encode())
        await until(lambda: echo.begun == ["/wait"])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        for _, writer in silent:
            writer.write(b"P")
        told = await said(port, CALL.replace("Host", "Connection: close\r\nHost"))
        assert len(server.connections) <= 5
        echo.goes_on.set()
        answer = await asking[0].readuntil(b"]")
        for _, writer in (asking, *silent):
            writer.close()

    assert told == [["/c", "{}"]]
    assert b"/wait" in answer


async def test_bodies_of_all_requests_are_bounded_and_the_slowest_ends() -> None:
    echo = Echo()
    body = "x" * 900
    whole = f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}"
    async with serving(echo, most_held_bytes=4000) as (server, port, _ended):
        asking = await asyncio.open_connection("127.0.0.1", port)
        asking[1].write(whole.replace("/c", "/wait").encode())
        await until(lambda: echo.begun == ["/wait"])
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for _, writer in slow:
            writer.write(whole[:-1].encode())
        await until(lambda: sum(reader.at_eof() for reader, _ in slow) == 17)
        told = await said(port, whole.replace("Host", "Connection: close\r\nHost"))
        held = server.held_bytes
        echo.goes_on.set()
        answer = await asking[0].readuntil(b"]")
        for _, writer in (asking, *slow):
            writer.close()
        await until(lambda: server.held_bytes == 0)

    assert told == [["/c", body]]
    assert 900 <= held <= 4000
    assert b"/wait" in answer


async def test_headers_that_never_end_are_not_kept() -> None:
    async with serving(Echo()) as (_, port, _ended):
        told = await said(port, f"{HEAD}X: ", *["x" * 1000] * 12)

    assert told == [["HeadersTooLarge", ""]]


async def test_who_sends_nothing_or_half_a_request_is_ended_and_who_waits_is_not() -> None:
    echo = Echo()
    async with serving(echo) as (server, port, _ended):
        idle, slow, waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        slow[1].write(CALL[:30].encode())
        waiting[1].write(CALL.replace("/c", "/wait").encode())
        await until(lambda: len(server.connections) == 3 and echo.begun == ["/wait"])
        await asyncio.sleep(0)

        server.sweep(time.monotonic() + max(READ_SECONDS, IDLE_SECONDS) + 1)

        assert b"RequestTooSlow" in await slow[0].read()
        assert await idle[0].read() == b""
        echo.goes_on.set()
        assert b"/wait" in await waiting[0].readuntil(b"]")
        for _, writer in (idle, slow, waiting):
            writer.close()


async def test_an_end_answers_what_was_begun_and_takes_nothing_new() -> None:
    echo = Echo()
    async with serving(echo) as (server, port, ended):
        idle, waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        waiting[1].write((CALL.replace("/c", "/wait") + CALL).encode())
        await until(lambda: len(server.connections) == 2 and echo.begun == ["/wait"])
        ended.set()
        assert await idle[0].read() == b""
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", port)

        echo.goes_on.set()
        told = (await waiting[0].read()).decode()
        for _, writer in (idle, waiting):
            writer.close()

    assert "connection: close" in told
    assert echo.begun == ["/wait"]


async def test_an_end_waits_for_what_was_asked_by_a_client_that_is_gone() -> None:
    echo = Echo()
    async with serving(echo) as (server, port, ended):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CALL.replace("/c", "/wait").encode())
        await until(lambda: echo.begun == ["/wait"])
        hard = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
        writer.transport.abort()
        await until(lambda: not server.connections)
        ended.set()
        asyncio.get_running_loop().call_later(0.1, echo.goes_on.set)

    assert echo.done == ["/wait"]


async def test_a_client_that_reads_no_answers_is_not_answered_ahead() -> None:
    echo = Echo()
    async with serving(echo) as (_, port, _ended):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        call = (f"{HEAD}Content-Length: 1000\r\n\r\n" + "x" * 1000).encode()
        sent = asyncio.create_task(_flood(writer, call * 20_000))
        await until(lambda: len(echo.begun) > 100)
        before = -1
        while before != len(echo.begun):
            before = len(echo.begun)
            await asyncio.sleep(0.2)
        sent.cancel()
        reader.feed_eof()
        writer.transport.abort()

    assert before < 20_000


async def _flood(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
