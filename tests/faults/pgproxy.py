"""A TCP pipe to Postgres that can cut a connection between COMMIT and its answer."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit, urlunsplit


class PostgresProxy:
    """Listens on a port of its own; `cut_commits` says how many commits lose their answer."""

    def __init__(self, database_url: str) -> None:
        target = urlsplit(database_url)
        self._target = (target.hostname or "127.0.0.1", target.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = urlunsplit(
            target._replace(netloc=f"{target.username}@127.0.0.1:{port}")
        )
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
            server = socket.create_connection(self._target)
            doomed = threading.Event()
            for source, sink, is_client in (
                (client, server, True),
                (server, client, False),
            ):
                threading.Thread(
                    target=self._pump,
                    args=[source, sink, is_client, doomed],
                    daemon=True,
                ).start()

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        is_client: bool,
        doomed: threading.Event,
    ) -> None:
        try:
            while data := source.recv(65536):
                if is_client and b"COMMIT\0" in data and self.cut_commits > 0:
                    self.cut_commits -= 1
                    doomed.set()
                elif not is_client and doomed.is_set():
                    self.cuts += 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()
