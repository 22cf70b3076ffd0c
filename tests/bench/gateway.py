"""What a call through the gateway costs, and how soon a tenant is refused that has used all.

`python -m tests.bench.gateway` prints the first. It is processor time of the gateway alone: client
and vendor do not count.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import psutil
import psycopg
import uvloop

from tests.bench.alone import a_database, run_alone
from tests.bench.rows import Row
from tests.events.gateway import BODY, CHAIN, Gateway, a_bot, counted, gateway_process, known
from tests.support import world as worlds
from tests.support.controlplane import postgres
from tests.support.controlplane.ports import free_ports
from tests.support.controlplane.waiting import until
from tests.support.installation import Installation
from tests.support.rpc_vendor import rpc_vendor

CALLS = 32_000
BOTS = 16
OTHER_KEYS = 10_000
PROCESSOR_BAR = 200.0
REFUSED_BAR = 60.0
INCLUDED = 50
KEYS = """
INSERT INTO ingest_key SELECT gen_random_uuid(), i || '-gateway', gen_random_uuid(),
    sha256(i::text::bytea), ARRAY['rpc:call'], now() FROM generate_series(1, %s) i
"""


def measure(server: postgres.Postgres) -> list[Row]:
    """Print what the gateway used and return the rows."""
    (port,) = free_ports(1)
    with (
        a_database(server) as url,
        tempfile.TemporaryDirectory() as folder,
        psycopg.connect(url, autocommit=True) as conn,
    ):
        bot = a_bot(conn)
        conn.execute(KEYS, [OTHER_KEYS])
        with gateway_process(url, f"http://127.0.0.1:{port}/", Path(folder)) as gateway:
            known(gateway, bot)
            process = psutil.Process(gateway.process.pid if gateway.process else 0)
            before, started = _processor(process), time.monotonic()
            uvloop.run(_ask_all(port, gateway, bot.key))
            took = time.monotonic() - started
            spent = _processor(process) - before
            rss = process.memory_info().rss / (1 << 20)
            gateway.end()
        if counted(conn, bot) != CALLS:
            raise AssertionError(f"{counted(conn, bot)} calls are counted")
    print(f"the gateway: {CALLS / took:,.0f} calls/s, RSS {rss:.0f} MiB with {OTHER_KEYS:,} keys")
    what = f"a call through the gateway, its processor, {BOTS} connections"
    used = spent / CALLS * 1e6
    return [Row(what=what, floor=None, measured=used, bar=PROCESSOR_BAR, unit="µs")]


def refusal(installed: Installation) -> Row:
    """Return how long a tenant that has used all is still served: until it is seen everywhere."""
    world = worlds.World(installed)
    strict = worlds.a_name("strict")
    price = {"meter": "rpc_calls", "model": "PerUnit", "included": str(INCLUDED), "tiers": [{}]}
    world.create(worlds.a_plan(strict, prices=[price | {"onExceed": "Block"}]))
    tenant = world.tenant(planRef={"name": strict})
    world.bot(tenant)
    key = world.issued_key(tenant, "gateway-key")
    with (
        rpc_vendor() as vendor,
        tempfile.TemporaryDirectory() as folder,
        gateway_process(installed.database_url, vendor.url, Path(folder)) as gateway,
    ):
        until(lambda: gateway.call(key).status == 200, within=30, what="the key is known")
        for _ in range(INCLUDED):
            gateway.call(key)
        started = time.monotonic()
        until(lambda: gateway.call(key).status == 402, within=120, what="it is refused")
        took = time.monotonic() - started
    what = "all included calls are made -> the gateway refuses"
    return Row(what=what, floor=None, measured=took, bar=REFUSED_BAR)


class Vendor(asyncio.Protocol):
    """Answers each call, which comes in one piece on loopback."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to answer."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer a call with 200 bytes."""
        number = data.rpartition(b'"id":')[2].partition(b",")[0]
        body = b'{"jsonrpc":"2.0","id":%s,"result":"%s"}' % (number, b"x" * 200)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


async def _ask_all(port: int, gateway: Gateway, key: str) -> None:
    vendor = await asyncio.get_running_loop().create_server(Vendor, "127.0.0.1", port)
    head = f"POST /{CHAIN} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    await asyncio.gather(*(_ask(gateway.port, head.encode() + BODY) for _ in range(BOTS)))
    vendor.close()


async def _ask(port: int, call: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(CALLS // BOTS):
        writer.write(call)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(head.decode())
        await reader.readexactly(int(head.rpartition(b": ")[2]))
    writer.close()


def _processor(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


if __name__ == "__main__":
    sys.exit(run_alone(measure))
