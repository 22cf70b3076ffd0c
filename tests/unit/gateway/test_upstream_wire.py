"""What a provider sends by hand, and what became of the call: sent or not, answered or not."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from botplane.gateway.upstream import BrokenError, UnreachableError, Upstream

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def provider(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """A provider that serves each connection by hand, and the way to it."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the gateway has ended it
        finally:
            writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    upstream = Upstream(f"{'https' if tls else 'http'}://localhost:{port}/key", 1000)
    try:
        yield upstream
    finally:
        upstream.close()
        server.close()


def saying(*answers: bytes) -> Serve:
    """Return what gives these answers, one to each request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(answer)
            await writer.drain()
        await reader.read()

    return serve


async def test_an_answer_may_come_byte_by_byte_and_the_connection_is_used_again() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n{}")
            for at in range(len(ANSWER)):
                writer.write(ANSWER[at : at + 1])
                await writer.drain()
                await asyncio.sleep(0)

    async with provider(serve) as upstream:
        told = [(await upstream.post(b"{}")).body for _ in range(2)]

    assert told == [b"{}", b"{}"]


@pytest.mark.parametrize("more", [ANSWER, ANSWER[:20], b"x", b"HTTP/1.1 "])
async def test_what_follows_an_answer_is_no_part_of_the_next_one(more: bytes) -> None:
    async with provider(saying(ANSWER + more, ANSWER)) as upstream:
        told = [(await upstream.post(b"{}")).body for _ in range(2)]

    assert told == [b"{}", b"{}"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "too many headers"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "too many headers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, "more than 1,000 bytes"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            "nobody asked",
        ),
    ],
)
async def test_an_answer_has_an_end(answer: bytes, told: str) -> None:
    async with provider(saying(answer)) as upstream:
        with pytest.raises(BrokenError, match=told):
            await upstream.post(b"{}")


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_without_a_body_ends_at_once(status: bytes) -> None:
    async with provider(saying(b"HTTP/1.1 %s\r\n\r\n" % status, ANSWER)) as upstream:
        assert (await upstream.post(b"{}")).body == b""
        assert (await upstream.post(b"{}")).body == b"{}"


async def test_who_waits_for_a_connection_in_vain_has_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("botplane.gateway.upstream.TURN_SECONDS", 0.0)
    monkeypatch.setattr("botplane.gateway.upstream.MOST_CONNECTIONS", 1)
    begun = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        begun.set()
        await reader.read()

    async with provider(serve) as upstream:
        first = asyncio.create_task(upstream.post(b"{}"))
        await begun.wait()
        with pytest.raises(UnreachableError):
            await upstream.post(b"{}")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


def a_certificate(folder: Path, name: str) -> ssl.SSLContext:
    """Return the side of a provider with a certificate that it has made itself."""
    files = ("-keyout", str(folder / "key"), "-out", str(folder / "crt"))
    kind = (
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-noenc",
        "-subj",
        f"/CN={name}",
    )
    command = ["openssl", "req", "-x509", *kind, "-addext", f"subjectAltName=DNS:{name}", *files]
    subprocess.run(command, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "crt", folder / "key")
    return tls


@pytest.mark.parametrize(
    ("name", "is_known", "is_sent"),
    [("localhost", True, True), ("localhost", False, False), ("other.example", True, False)],
)
async def test_to_a_provider_that_cannot_prove_who_it_is_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, is_known: bool, is_sent: bool
) -> None:
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readuntil(b"\r\n\r\n{}"))
        writer.write(ANSWER)
        await writer.drain()

    tls = a_certificate(tmp_path, name)
    if is_known:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "crt"))
    async with provider(serve, tls) as upstream:
        if is_sent:
            assert (await upstream.post(b"{}")).body == b"{}"
        else:
            with pytest.raises(UnreachableError):
                await upstream.post(b"{}")

    assert bool(got) is is_sent
