"""A month of ten thousand tenants, rated and finalised, beside the bare sums of its usage.

Twice: of tenants that used each meter in every eighth hour, where most of the work is invoices, and
in 500 hours, where most of it is usage. `python -m tests.bench.month` prints the rows. Seconds are
processor time of the backend and of this process together, one session each, so that neighbours on
the machine do not count.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psutil
import psycopg
from psycopg import sql

from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from tests.bench.alone import a_database, run_alone
from tests.bench.ingestion import PRICES, Backend
from tests.bench.rows import Row
from tests.support.billing import a_plan
from tests.support.controlplane import postgres

TENANTS = int(os.environ.get("BOTPLANE_BENCH_TENANTS", "10000"))
HOURS = (90, 500)
"""In how many of the month's 720 hours each meter was used."""
BAR = 3.0
WRITTEN = ("invoice", "invoice_line", "ledger_txn", "ledger_entry")
FLEET = """
INSERT INTO tenant SELECT md5('t' || i)::uuid, 't-' || i, 'tenant-t-' || i, 'USD', 'UTC', 1,
    NULL, '2026-11-01' FROM generate_series(1, %(tenants)s) i;
INSERT INTO subscription_phase SELECT tenant_id, '2026-11-01', NULL, 'basic' FROM tenant;
INSERT INTO bot SELECT tenant_id, md5(tenant_id::text || b)::uuid, 'bot-' || b, '2026-11-01'
    FROM tenant, generate_series(1, 3) b;
INSERT INTO runtime_interval SELECT b.tenant_id, md5(b.bot_id::text || r)::uuid, 'bot', 0, 0,
    b.bot_id, 'n', s.at, CASE WHEN r < 3 THEN s.at + interval '170 hours' END,
    '2026-12-01 00:05Z', 500, 1073741824, CASE WHEN r < 3 THEN 'terminated' END,
    CASE WHEN r < 3 THEN 'exact' END
    FROM bot b, generate_series(0, 3) r, LATERAL (SELECT '2026-11-01'::timestamptz
        + r * interval '175 hours' + mod(hashtext(b.bot_id::text), 3600) * interval '1 second')
        AS s (at);
INSERT INTO usage_hourly SELECT tenant_id, m,
    '2026-11-01'::timestamptz + h * (720 / %(hours)s) * interval '1 hour',
    md5(tenant_id::text || (1 + mod(h, 3)))::uuid, '{}',
    (1 + mod(abs(hashtext(tenant_id::text || h)), 5000)) / 1000.0, 10
    FROM tenant, unnest(ARRAY['rpc_calls', 'bandwidth_gb', 'ai_units', 'storage_gb_hours']) m,
        generate_series(0, %(hours)s - 1) h;
INSERT INTO source_watermark VALUES ('metering', '2026-11-30 23:59Z', '2026-11-30 23:59Z')
"""
SUMS = """
SELECT tenant_id, meter, sum(quantity) FROM usage_hourly
WHERE hour >= '2026-11-01' AND hour < '2026-12-01' GROUP BY tenant_id, meter
UNION ALL
SELECT tenant_id, 'bot_seconds', sum(extract(epoch FROM
    least(ended_at, '2026-12-01') - greatest(started_at, '2026-11-01')))
FROM runtime_interval
WHERE tstzrange(started_at, ended_at) && tstzrange('2026-11-01', '2026-12-01') GROUP BY tenant_id
"""
MIDNIGHT, ISSUED = datetime(2026, 12, 1, tzinfo=UTC), datetime(2026, 12, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Processor seconds of backend and client, and seconds by the clock."""

    backend: float
    client: float
    clock: float

    @property
    def processor(self) -> float:
        """Both together."""
        return self.backend + self.client

    def __str__(self) -> str:
        text = f"{self.processor:.2f} s of processor ({self.backend:.2f} Postgres"
        return f"{text}, {self.client:.2f} Python), {self.clock:.2f} s by the clock"


def measure(server: postgres.Postgres) -> list[Row]:
    """Print what was spent on what and return the rows."""
    return [_measured(server, hours) for hours in HOURS]


def _measured(server: postgres.Postgres, hours: int) -> Row:
    with a_database(server) as url:
        backend = _prepared(url, hours)
        sums = min(
            (_spent(backend, lambda: backend.conn.execute(SUMS).fetchall()) for _ in range(3)),
            key=lambda cost: cost.processor,
        )
        run = _spent(backend, lambda: _bill(backend.conn, TENANTS))
        before = _writers(backend.conn)
        again = _spent(backend, lambda: _bill(backend.conn, 0))
        if _writers(backend.conn) != before:
            raise AssertionError("the second run has written")
        copied = _spent(backend, _copies(backend.conn))
        hourly = backend.conn.execute("SELECT count(*) FROM usage_hourly").fetchall()[0][0]
    print(f"{hourly:,} hourly sums of {TENANTS:,} tenants: summed in {sums}")
    print(f"the run: {run}")
    resident = psutil.Process().memory_info().rss / (1 << 20)
    print(f"again, writing nothing: {again}; {resident:.0f} MiB resident, the benchmark included")
    print(f"the same {', '.join(WRITTEN)} by COPY, without rules: {copied}")
    bare = sums.processor + copied.processor
    print(f"the run beside sums and COPY: {run.processor / bare:.2f} x")
    what = f"Month of {TENANTS:,} tenants, {hourly / 1e6:.1f} million hourly sums, billed"
    return Row(what=what, floor=sums.processor, measured=run.processor, bar=BAR)


def _prepared(url: str, hours: int) -> Backend:
    """Return a session on a month that is over, after the run of midnight, which has to wait."""
    backend = Backend(url)
    backend.conn.execute("SET max_parallel_workers_per_gather = 0")
    publish_plan(backend.conn, a_plan(fee="99", prices=PRICES), datetime(2026, 9, 1, tzinfo=UTC))
    # Nobody asks where these tenants stand: without what keeps that up to date.
    backend.conn.execute("SET session_replication_role = replica")
    for statement in FLEET.split(";\n"):
        asked = {"tenants": TENANTS, "hours": hours} if "%(" in statement else None
        backend.conn.execute(statement, asked)
    backend.conn.execute("RESET session_replication_role")
    report = billing_run(backend.conn, MIDNIGHT)
    if report.waiting != TENANTS:
        raise AssertionError(f"{report.waiting} periods wait")
    backend.conn.execute("UPDATE source_watermark SET complete_until = '2026-12-01 00:05Z'")
    backend.conn.execute("VACUUM ANALYZE")
    return backend


def _bill(conn: psycopg.Connection[Any], expected: int) -> None:
    report = billing_run(conn, ISSUED)
    if report.billed != expected or report.parked:
        raise AssertionError(f"{report.billed} billed, {len(report.parked)} parked")


def _writers(conn: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    """Return which transactions wrote the rows of a bill: an update to equal values shows too."""
    counted = sql.SQL(
        "SELECT count(*), count(DISTINCT xmin::text), sum(xmin::text::bigint) FROM {}"
    )
    return [
        conn.execute(counted.format(sql.Identifier(table))).fetchall()[0]
        for table in (*WRITTEN, "billing_period", "invoice_counter", "late_usage")
    ]


def _copies(conn: psycopg.Connection[Any]) -> Callable[[], None]:
    """Return what writes the same rows, with the same indexes and checks, but no triggers."""
    rows = []
    conn.execute("CREATE SCHEMA bare")
    for table in map(sql.Identifier, WRITTEN):
        twin = sql.SQL("CREATE TABLE bare.{} (LIKE public.{} INCLUDING ALL)")
        conn.execute(twin.format(table, table))
        out = sql.SQL("COPY public.{} TO STDOUT (FORMAT BINARY)").format(table)
        with conn.cursor().copy(out) as copy:
            rows.append((table, b"".join(copy)))

    def write() -> None:
        with conn.transaction(), conn.cursor() as cursor:
            for table, data in rows:
                into = sql.SQL("COPY bare.{} FROM STDIN (FORMAT BINARY)").format(table)
                with cursor.copy(into) as copy:
                    copy.write(data)

    return write


def _spent(backend: Backend, work: Callable[[], object]) -> Cost:
    clock, client, server = time.monotonic(), time.process_time(), backend.cpu_seconds()
    work()
    return Cost(
        backend=backend.cpu_seconds() - server,
        client=time.process_time() - client,
        clock=time.monotonic() - clock,
    )


if __name__ == "__main__":
    sys.exit(run_alone(measure))
