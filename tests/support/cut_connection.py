"""A wire to Postgres that breaks right after a statement: it is done, and nobody hears of it."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from itertools import takewhile
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

COMMIT_DONE = b"C\x00\x00\x00\x0bCOMMIT\x00"
"""CommandComplete of a COMMIT in the frontend/backend protocol, version 3."""


class CutConnection:
    """Forwards to the server of a URL, and breaks off before the n-th statement is reported.

    By default only a COMMIT counts; what was not committed is rolled back by the server.
    """

    def __init__(self, url: str, nth: int, *, every_statement: bool = False) -> None:
        self._target = urlsplit(url)
        self._left = nth
        self._every_statement = every_statement
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        """The URL of the same database through the wire, without TLS."""
        user = f"{self._target.username}@" if self._target.username else ""
        netloc = f"{user}127.0.0.1:{self._listener.getsockname()[1]}"
        return urlunsplit(self._target._replace(netloc=netloc, query="sslmode=disable"))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()

    def _serve(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        server = socket.create_connection((self._target.hostname or "", self._target.port or 5432))
        threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
        self._answer(server, client)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                server.sendall(data)
        except OSError:
            return

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        pending = b""
        with suppress(OSError):  # the client may be gone before its wire is cut
            while self._left > 0 and (data := server.recv(65536)):
                frames, pending = _frames(pending + data)
                passed: list[bytes] = [*takewhile(self._passes, frames)]
                client.sendall(b"".join(passed))
        for end in (server, client):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _passes(self, frame: bytes) -> bool:
        if frame == COMMIT_DONE or (self._every_statement and frame[:1] == b"C"):
            self._left -= 1
        return self._left > 0


def _frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Split what the server sent into whole messages and a rest: a type, a length, a body."""
    frames = []
    while len(data) >= 5 and len(data) > (length := int.from_bytes(data[1:5])):
        frames.append(data[: length + 1])
        data = data[length + 1 :]
    return frames, data
