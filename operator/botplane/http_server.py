"""HTTP as our processes serve it: bounded, and ended with an answer to what was taken."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Final, Literal

import uvicorn
from starlette.types import ASGIApp

MOST_CONNECTIONS: Final = 2000
DRAIN_SECONDS: Final = 20


class Server(uvicorn.Server):
    """An HTTP server on all addresses that SIGTERM and SIGINT end.

    Args:
        app: What it serves.
        port: TCP port.
        lifespan: Whether the application wants to hear of start and end.
    """

    def __init__(self, app: ASGIApp, port: int, lifespan: Literal["on", "off"]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host="0.0.0.0",  # noqa: S104 - a pod has one address
                port=port,
                loop="uvloop",
                http="httptools",
                lifespan=lifespan,
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "should_exit", True))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals as they are: uvicorn would raise them again after a clean end."""
        yield
