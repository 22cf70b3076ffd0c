"""A TCP pipe to Postgres that can cut a connection between COMMIT and its answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit


class PostgresProxy:
    """Listens on a port of its own; `cut_commits` says how many commits lose their answer.

    Only those of transactions that say `of` count: a process commits things of its own in between.
    A statement without a transaction around it `ends` by itself.
    """

    def __init__(self, database_url: str, of: bytes = b"", *, ends: bytes = b"COMMIT\0") -> None:
        self._of = of
        self._ends = ends
        target = urlsplit(database_url)
        self._target = (target.hostname or "127.0.0.1", target.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(target._replace(netloc=f"{target.username}@127.0.0.1:{port}"))
        self.cut_commits = 0
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            doomed = threading.Event()
            asks = threading.Thread(target=self._ask, args=[client, server, doomed], daemon=True)
            answers = threading.Thread(
                target=self._answer, args=[server, client, doomed], daemon=True
            )
            asks.start()
            answers.start()

    def _ask(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        said = b""
        with _ended(client, server):
            while data := client.recv(65536):
                said += data
                if self._ends in data:
                    if self.cut_commits > 0 and self._of in said:
                        self.cut_commits -= 1
                        doomed.set()
                    said = b""
                server.sendall(data)

    def _answer(
        self, server: socket.socket, client: socket.socket, doomed: threading.Event
    ) -> None:
        with _ended(client, server):
            while data := server.recv(65536):
                if doomed.is_set():
                    self.cuts += 1
                    return
                client.sendall(data)


@contextmanager
def _ended(*connections: socket.socket) -> Iterator[None]:
    """Close both ends, whoever went first."""
    with suppress(OSError):
        yield
    for connection in connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
