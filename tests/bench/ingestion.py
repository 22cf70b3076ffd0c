"""Where ten thousand tenants stand, and their events: by SQL, by HTTP, beside plain COPY.

`python -m tests.bench.ingestion` prints the rows; seconds of SQL are processor time of the backend,
so that neighbours on the machine do not count.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import psycopg

from botplane.billing.store import publish_plan
from botplane.metering.events.policy import UsageEvent
from botplane.metering.events.store import Batch, ingest
from botplane.usage.store import enforce_limits, standings, totals_that_differ
from tests.bench.alone import a_database, run_alone
from tests.bench.rows import Row
from tests.events.server import BATCH, Web, a_key, web_process
from tests.support.billing import a_plan, per_hour
from tests.support.controlplane import postgres

EVENTS = 100_000
PER_TRANSACTION = 20_000
SESSIONS = 2
PER_REQUEST = 500
SENDERS = 16
TENANTS = int(os.environ.get("BOTPLANE_BENCH_TENANTS", "10000"))
METERS = ("rpc_calls", "bandwidth_gb", "ai_units")
SQL_BAR, HTTP_BAR = 25_000, 8_000
PRICES: list[dict[str, Any]] = [
    per_hour("0.05", included="1440"),
    {
        "meter": "rpc_calls",
        "model": "Graduated",
        "included": "1000000",
        "tiers": [{"upTo": "1000000", "unitPrice": "0.00002"}, {"unitPrice": "0.000015"}],
    },
    {"meter": "storage_gb_hours", "model": "PerUnit", "tiers": [{"unitPrice": "0.0001"}]},
    {
        "meter": "bandwidth_gb",
        "model": "PerUnit",
        "included": "100",
        "tiers": [{"unitPrice": "0.08"}],
    },
    {"meter": "ai_units", "model": "Package", "unitSize": "1000", "tiers": [{"unitPrice": "0.5"}]},
]
FLEET = """
INSERT INTO tenant SELECT md5('t' || i)::uuid, 't-' || i, 'tenant-t-' || i, 'USD', 'UTC', 1,
    CASE WHEN mod(i, 2) = 0 THEN 300 END, '2026-09-01' FROM generate_series(1, %(tenants)s) i;
INSERT INTO subscription_phase SELECT tenant_id, '2026-09-01', NULL, 'basic' FROM tenant;
INSERT INTO bot SELECT tenant_id, md5(tenant_id::text || b)::uuid, 'bot-' || b, '2026-09-01'
    FROM tenant, generate_series(1, 3) b;
INSERT INTO runtime_interval SELECT b.tenant_id, md5(b.bot_id::text || r)::uuid, 'bot', 0, 0,
    b.bot_id, 'n', s.at, CASE WHEN r < 3 THEN s.at + interval '108 hours' END,
    '2026-11-20 12:00Z', 500, 1073741824, CASE WHEN r < 3 THEN 'terminated' END,
    CASE WHEN r < 3 THEN 'exact' END
    FROM bot b, generate_series(0, 3) r, LATERAL (SELECT '2026-11-01'::timestamptz
        + r * interval '110 hours' + mod(hashtext(b.bot_id::text), 3600) * interval '1 second')
        AS s (at);
INSERT INTO usage_hourly SELECT tenant_id, m, '2026-11-01'::timestamptz + h * interval '5 hours',
    md5(tenant_id::text || (1 + mod(h, 3)))::uuid, '{}',
    (1 + mod(abs(hashtext(tenant_id::text || h)), 5000)) / 1000.0, 10
    FROM tenant, unnest(ARRAY['rpc_calls', 'bandwidth_gb', 'ai_units', 'storage_gb_hours']) m,
        generate_series(0, 89) h;
INSERT INTO source_watermark VALUES ('metering', '2026-11-20 11:59Z', '2026-11-20 11:59Z');
"""
PASS_AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Events per second, with the processor time of the backend for each thousand of them."""

    what: str
    per_second: float
    backend_ms: float | None = None

    def __str__(self) -> str:
        """Return one line."""
        cost = "" if self.backend_ms is None else f"{self.backend_ms:8.2f} ms CPU/1,000"
        return f"{self.what:<58} {self.per_second:>10,.0f}/s {cost}"


class Backend:
    """One connection and the processor time of its server process."""

    def __init__(self, url: str) -> None:
        self.conn = psycopg.connect(url, autocommit=True, options="-c timezone=UTC")

    def cpu_seconds(self) -> float:
        """Return the processor time so far."""
        path = Path(f"/proc/{self.conn.info.backend_pid}/stat")
        fields = path.read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sql(url: str) -> tuple[list[Rate], Row]:
    """Ingest batches of 20,000 of ten thousand tenants, and COPY the same rows.

    A web process writes with four sessions; what two of them do at once on two cores is judged.
    """
    backend, random_, now = Backend(url), random.Random(1), datetime.now(UTC)
    tenants = [t for (t,) in backend.conn.execute("SELECT tenant_id FROM tenant ORDER BY name")]

    groups, more = (
        [
            [_one(random_.choice(tenants), start + n, now) for n in range(PER_TRANSACTION)]
            for start in range(first, first + EVENTS, PER_TRANSACTION)
        ]
        for first in (0, EVENTS)
    )
    # The events that wait here are the benchmark's, not the writer's to look after.
    gc.freeze()
    backend.conn.execute("CREATE TABLE plain (LIKE usage_event INCLUDING DEFAULTS)")

    floor = _timed(backend, "plain COPY", lambda: _copy(backend.conn, groups, now))
    ours = _timed(
        backend, "key, event, hourly sum and total", lambda: _ingest(backend, groups, now)
    )
    what = f"as much from {SESSIONS} sessions at once"
    at_once = replace(
        _timed(backend, what, lambda: _ingest_at_once(url, more, now)), backend_ms=None
    )
    again = _timed(backend, "the same again", lambda: _ingest(backend, groups[:1], now))
    again = Rate(
        what=again.what,
        per_second=again.per_second * PER_TRANSACTION / EVENTS,
        backend_ms=(again.backend_ms or 0) * EVENTS / PER_TRANSACTION,
    )
    row = Row(
        what=f"Events by SQL: seconds for {SQL_BAR:,}",
        floor=None,
        measured=SQL_BAR / at_once.per_second,
        bar=1.0,
    )
    return [floor, ours, at_once, again], row


async def http(url: str) -> tuple[list[Rate], Row]:
    """Send batches of 500 to one web process, from the same two cores."""
    with psycopg.connect(url, autocommit=True) as conn:
        tenants = conn.execute("SELECT tenant_id FROM tenant LIMIT %s", [SENDERS]).fetchall()
        keys = [a_key(conn, tenant_id) for (tenant_id,) in tenants]
    with web_process(url) as web:
        bodies = [_body(number) for number in range(EVENTS // PER_REQUEST)]
        started = time.monotonic()
        took = await _send_all(web, keys, bodies)
        rate = EVENTS / (time.monotonic() - started)
        memory = _resident_mib(web)
    p99 = sorted(took)[int(len(took) * 0.99)]
    what = f"over HTTP, {SENDERS} senders, p99 {p99:.2f} s, {memory:.0f} MiB resident"
    row = Row(
        what=f"Events by HTTP: seconds for {HTTP_BAR:,}",
        floor=None,
        measured=HTTP_BAR / rate,
        bar=1.0,
    )
    return [Rate(what=what, per_second=rate)], row


def status_pass(url: str) -> Row:
    """Ask where all tenants stand; processor seconds of the backend, the better of three."""
    backend = Backend(url)
    publish_plan(backend.conn, a_plan(fee="99", prices=PRICES), datetime(2026, 9, 1, tzinfo=UTC))
    for statement in FLEET.split(";\n"):
        if statement.strip():
            backend.conn.execute(statement, {"tenants": TENANTS} if "%(" in statement else None)
    backend.conn.execute("VACUUM ANALYZE")
    standings(backend.conn, PASS_AT)
    backend.conn.execute("VACUUM ANALYZE")
    took = []
    for _ in range(3):
        before = backend.cpu_seconds()
        stands, bots = standings(backend.conn, PASS_AT)
        enforce_limits(backend.conn, list(stands.values()), PASS_AT)
        took.append(backend.cpu_seconds() - before)
    if len(stands) != TENANTS or len(bots) != 3 * TENANTS or totals_that_differ(backend.conn):
        raise AssertionError("the pass is not complete")
    what = f"Standing of {TENANTS:,} tenants, {len(bots):,} bots: seconds of SQL"
    return Row(what=what, floor=None, measured=min(took), bar=1.0)


def _one(tenant_id: UUID, number: int, now: datetime) -> Batch:
    event = UsageEvent(
        source="bench",
        event_id=str(number),
        meter=METERS[number % len(METERS)],
        occurred_at=now - timedelta(seconds=number * 7 % (5 * 86_400)),
        quantity=Decimal(number % 1000),
        dims="{}",
    )
    return Batch(tenant_id=tenant_id, bot_id=None, events=[event])


def _ingest(session: Backend, groups: Iterable[list[Batch]], now: datetime) -> None:
    for group in groups:
        ingest(session.conn, group, now)


def _ingest_at_once(url: str, groups: Iterable[list[Batch]], now: datetime) -> None:
    waiting = iter(groups)
    with ThreadPoolExecutor(SESSIONS) as threads:
        done = [threads.submit(_ingest, Backend(url), waiting, now) for _ in range(SESSIONS)]
    for session in done:
        session.result()


def _copy(conn: psycopg.Connection[Any], groups: Iterable[list[Batch]], now: datetime) -> None:
    statement = (
        "COPY plain (tenant_id, source, event_id, meter, occurred_at, received_at, quantity)"
        " FROM STDIN (FORMAT BINARY)"
    )
    for group in groups:
        with conn.transaction(), conn.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(
                ["uuid", "text", "text", "text", "timestamptz", "timestamptz", "numeric"]
            )
            for batch in group:
                e = batch.events[0]
                key = (batch.tenant_id, e.source, e.event_id)
                copy.write_row((*key, e.meter, e.occurred_at, now, e.quantity))


def _timed(backend: Backend, what: str, work: Any) -> Rate:
    started, cpu = time.monotonic(), backend.cpu_seconds()
    work()
    spent = (backend.cpu_seconds() - cpu) * 1000
    rate = EVENTS / (time.monotonic() - started)
    return Rate(what=what, per_second=rate, backend_ms=spent / (EVENTS / 1000))


def _body(number: int) -> bytes:
    now = datetime.now(UTC).isoformat()
    return json.dumps(
        [
            {
                "specversion": "1.0",
                "id": f"{number}-{i}",
                "source": "bench",
                "type": METERS[i % len(METERS)],
                "time": now,
                "data": {"value": "1.5"},
            }
            for i in range(PER_REQUEST)
        ]
    ).encode()


async def _send_all(web: Web, keys: Sequence[str], bodies: Sequence[bytes]) -> list[float]:
    waiting, took = iter(bodies), list[float]()

    async def send(session: aiohttp.ClientSession, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": BATCH}
        for body in waiting:
            started = time.monotonic()
            url = f"http://127.0.0.1:{web.port}/v1/events"
            async with session.post(url, data=body, headers=headers) as answer:
                told = await answer.json()
                if told.get("accepted") != PER_REQUEST:
                    raise AssertionError(f"status {answer.status}: {str(told)[:200]}")
            took.append(time.monotonic() - started)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(send(session, key) for key in keys))
    return took


def _resident_mib(web: Web) -> float:
    if web.process is None:
        return 0.0
    status = Path(f"/proc/{web.process.pid}/statm").read_text(encoding="ascii")
    return int(status.split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


def measure(server: postgres.Postgres) -> list[Row]:
    """Print the rates and return the rows."""
    with a_database(server) as url:
        rows = [status_pass(url)]
        rates, by_sql = sql(url)
        more, by_http = asyncio.run(http(url))
        with psycopg.connect(url, autocommit=True) as conn:
            if totals_that_differ(conn):
                raise AssertionError("totals are not what events say")
    print(*rates, *more, sep="\n")
    return [*rows, by_sql, by_http]


if __name__ == "__main__":
    sys.exit(run_alone(measure))
