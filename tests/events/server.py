"""The web process as a test has it, and the words to talk to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from botplane.metering.events.store import IngestKey, register_keys, secret_hash
from tests.support.controlplane.ports import free_ports
from tests.support.controlplane.waiting import until

BATCH = "application/cloudevents-batch+json"
SINGLE = "application/cloudevents+json"
BOTPLANE = str(Path(sys.executable).parent / "botplane")


@dataclass(kw_only=True)
class Serving:
    """A process that serves a database on a port of its own."""

    database_url: str
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the process and return its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        self.process = None
        return code


@dataclass(kw_only=True)
class Web(Serving):
    """One web process."""

    def start(self) -> None:
        """Start the process and return when it serves."""
        environment = os.environ | {
            "DATABASE_URL": self.database_url,
            "BOTPLANE_LOG_FORMAT": "console",
        }
        command = [BOTPLANE, "web", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=environment)
        until(self._is_ready, what="web is ready")

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Return status, JSON body and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            text = answer.read()
            given = {name.lower(): value for name, value in answer.getheaders()}
            is_json = given.get("content-type", "").startswith("application/json")
            return answer.status, json.loads(text) if is_json else text.decode(), given
        finally:
            connection.close()

    def post(self, key: str, events: Any, content_type: str = BATCH) -> tuple[int, Any]:
        """Send events with a key."""
        body = events if isinstance(events, bytes) else json.dumps(events).encode()
        status, answer, _ = self.ask(
            "POST",
            "/v1/events",
            body,
            authorization=f"Bearer {key}",
            content_type=content_type,
        )
        return status, answer

    def _is_ready(self) -> bool:
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except OSError:
            return False


@contextmanager
def web_process(database_url: str) -> Iterator[Web]:
    """A web process that is ended with the block."""
    (port,) = free_ports(1)
    web = Web(database_url=database_url, port=port)
    try:
        web.start()
        yield web
    finally:
        web.end(signal.SIGKILL)


def a_key(
    conn: psycopg.Connection[Any],
    tenant_id: UUID | None = None,
    bot_id: UUID | None = None,
    scopes: tuple[str, ...] = ("usage:write",),
) -> str:
    """Register a key and return its bearer."""
    key = IngestKey(
        key_id=str(uuid4()),
        tenant_id=tenant_id or uuid4(),
        bot_id=bot_id,
        secret_hash=secret_hash("secret"),
        scopes=scopes,
    )
    register_keys(conn, [key], datetime.now(UTC))
    return f"{key.key_id}.secret"


def an_event(number: int = 1, **more: Any) -> dict[str, Any]:
    """Return a CloudEvent that happened just now."""
    event = {
        "specversion": "1.0",
        "id": f"e-{number}",
        "source": "bot",
        "type": "ai_units",
        "time": datetime.now(UTC).isoformat(),
        "data": {"value": str(number)},
    }
    return event | more


def events(numbers: Iterable[int], **more: Any) -> list[dict[str, Any]]:
    """Return CloudEvents with these numbers, which are their values as well."""
    return [an_event(number, **more) for number in numbers]
