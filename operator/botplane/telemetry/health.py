"""Three routes for the kubelet and Prometheus: /livez, /readyz and /metrics."""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


class Process(Protocol):
    """What the probes ask about."""

    def is_stuck(self) -> bool:
        """Say whether only a restart helps."""

    def is_ready(self) -> bool:
        """Say whether the first list is in."""


def serve_health(port: int, process: Process) -> ThreadingHTTPServer:
    """Serve the three routes on every address until `shutdown`.

    Postgres being away is neither unready nor dead: a restart would not bring it back.

    Raises:
        OSError: The port is taken.
    """

    class Routes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path:
                case "/livez":
                    self._verdict(is_good=not process.is_stuck())
                case "/readyz":
                    self._verdict(is_good=process.is_ready())
                case "/metrics":
                    self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest())
                case _:
                    self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")

        def _verdict(self, *, is_good: bool) -> None:
            status = HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, "text/plain", b"ok\n" if is_good else b"failing\n")

        def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *_: object) -> None:
            """Probes are not worth a line."""

    server = ThreadingHTTPServer(("", port), Routes)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
