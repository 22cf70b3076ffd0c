"""The gateway process as a test has it: a database, a vendor, and bots that call."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from botplane.metering.events.store import IngestKey, register_keys, secret_hash
from tests.events.server import BOTPLANE, Serving
from tests.support.controlplane.ports import free_ports
from tests.support.controlplane.waiting import until

CHAIN = "solana-mainnet"
BODY = b'{"jsonrpc":"2.0","id":"a","method":"getSlot","params":[1]}'


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a bot gets."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        """The content as JSON."""
        return json.loads(self.content)

    @property
    def reason(self) -> str:
        """Why it was refused; empty for an answer."""
        data: Any = self.body.get("error", {}).get("data")
        return str(data["reason"]) if isinstance(data, dict) else ""


@dataclass(kw_only=True)
class Gateway(Serving):
    """One gateway process, with a second port for its health."""

    endpoints: Path
    log: Path
    health_port: int

    def start(self) -> None:
        """Start the process and return when it serves."""
        environment = os.environ | {
            "DATABASE_URL": self.database_url,
            "BOTPLANE_RPC_ENDPOINTS": str(self.endpoints),
            "BOTPLANE_GATEWAY_PORT": str(self.port),
            "BOTPLANE_GATEWAY_HEALTH_PORT": str(self.health_port),
            "BOTPLANE_LOG_FORMAT": "console",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BOTPLANE, "gateway"], env=environment, stdout=log, stderr=log
            )
        until(self._serves, what="the gateway is ready")

    def probe(self, path: str) -> tuple[int, str]:
        """Return status and text of a route that bots do not reach."""
        connection = http.client.HTTPConnection("127.0.0.1", self.health_port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def call(
        self,
        key: str,
        body: bytes = BODY,
        path: str = f"/{CHAIN}",
        method: str = "POST",
        **more: str,
    ) -> Reply:
        """Send a call with a key."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            given = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(status=answer.status, headers=given, content=answer.read())
        finally:
            connection.close()

    def _serves(self) -> bool:
        try:
            return self.probe("/readyz")[0] == 200 and self.call("none").status == 401
        except OSError:
            return False


@contextmanager
def gateway_process(database_url: str, vendor_url: str, folder: Path) -> Iterator[Gateway]:
    """A gateway in front of a vendor, ended with the block."""
    endpoints = folder / "rpc-endpoints.json"
    endpoints.write_text(json.dumps({CHAIN: vendor_url}))
    port, health_port = free_ports(2)
    gateway = Gateway(
        database_url=database_url,
        endpoints=endpoints,
        log=folder / "gateway.log",
        port=port,
        health_port=health_port,
    )
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.end(signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class Bot:
    """A bot with a key for RPC."""

    tenant_id: UUID
    bot_id: UUID
    key: str


def a_bot(
    conn: psycopg.Connection[Any], tenant_id: UUID | None = None, scope: str = "rpc:call"
) -> Bot:
    """Issue a key as the operator does."""
    bot_id, tenant_id = uuid4(), tenant_id or uuid4()
    key = IngestKey(
        key_id=f"{bot_id}-gateway",
        tenant_id=tenant_id,
        bot_id=bot_id,
        secret_hash=secret_hash(f"key-of-{bot_id}"),
        scopes=(scope,),
    )
    register_keys(conn, [key], datetime.now(UTC))
    return Bot(tenant_id=tenant_id, bot_id=bot_id, key=f"key-of-{bot_id}")


def known(gateway: Gateway, bot: Bot) -> Bot:
    """Return a bot when the gateway has heard of its key; nothing is called by that."""
    until(
        lambda: gateway.call(bot.key, path="/none").status == 404,
        what="the key is known",
    )
    return bot


def counted(conn: psycopg.Connection[Any], bot: Bot) -> int:
    """Return the calls of a bot that will be billed."""
    sums = conn.execute(
        "SELECT COALESCE(sum(quantity), 0) FROM usage_hourly"
        " WHERE tenant_id = %s AND bot_id = %s AND meter = 'rpc_calls'",
        [bot.tenant_id, bot.bot_id],
    ).fetchall()
    return int(sums[0][0])
