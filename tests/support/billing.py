"""Given a plan, a tenant and what it used: the smallest words to say it in a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from botplane.api.plan import PlanSpec
from botplane.billing.pricebook import PriceBook, price_book
from botplane.billing.trades.store import Recorded, Trade, record_trades
from botplane.tenants.accounts import TenantAccount

GIB = 2**30
NO_BOT = UUID(int=0)


def at(text: str) -> datetime:
    """Return the moment that an RFC 3339 text or date names, in UTC."""
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def a_plan(
    name: str = "basic",
    *,
    fee: str = "0",
    currency: str = "USD",
    prices: Iterable[Mapping[str, Any]] = (),
    **more: Any,
) -> PriceBook:
    """Return the price book of a Plan with these prices, written as in its YAML."""
    spec = PlanSpec.model_validate(
        {
            "currency": currency,
            "fee": fee,
            "quota": {"cpu": "20", "memory": "64Gi"},
            "maxBots": 10,
            "bot": {"maxCPU": "4", "maxMemory": "8Gi"},
            "prices": list(prices),
            **more,
        }
    )
    return price_book(name, spec)


def per_hour(price: str, meter: str = "bot_seconds", **more: Any) -> dict[str, Any]:
    """Return the price of an hour of a meter in seconds."""
    return {
        "meter": meter,
        "model": "PerUnit",
        "unitSize": "3600",
        "tiers": [{"unitPrice": price}],
        **more,
    }


def an_account(name: str = "acme", **more: Any) -> TenantAccount:
    """Return the account of a tenant on plan `basic`, in USD and UTC, since October 2026."""
    account = TenantAccount(
        tenant_id=uuid4(),
        name=name,
        namespace=f"tenant-{name}",
        currency="USD",
        time_zone="UTC",
        anchor_day=1,
        organization_name=f"{name.title()} Trading",
        admin_email=f"ops@{name}.example",
        plan="basic",
        subscription_start=at("2026-10-01"),
        spend_limit=None,
    )
    return replace(account, **more)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a container; without an end it still runs."""

    start: datetime
    end: datetime | None
    container: str = "bot"
    restart: int = 0
    seg: int = 0
    cpu_milli: int = 1000
    mem_bytes: int = GIB
    storage_bytes: int = 0
    pod_uid: UUID = field(default_factory=uuid4)
    bot_id: UUID = NO_BOT


def a_volume(size: int, start: datetime, end: datetime | None, **more: Any) -> Run:
    """Return the time that a volume of so many bytes was bound."""
    return Run(
        start=start,
        end=end,
        container="volume",
        cpu_milli=0,
        mem_bytes=0,
        storage_bytes=size,
        **more,
    )


def record_runs(conn: psycopg.Connection[Any], tenant_id: UUID, runs: Iterable[Run]) -> None:
    """Store intervals as metering does."""
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO runtime_interval VALUES (%(tenant)s, %(pod_uid)s, %(container)s,"
            " %(restart)s, %(seg)s, %(bot_id)s, 'node-1', %(start)s, %(end)s, %(seen)s,"
            " %(cpu_milli)s, %(mem_bytes)s, %(reason)s, %(quality)s, %(storage_bytes)s)",
            [
                {
                    **vars(run),
                    "tenant": tenant_id,
                    "seen": run.end or run.start,
                    "reason": run.end and "terminated",
                    "quality": run.end and "exact",
                }
                for run in runs
            ],
        )


def record_usage(
    conn: psycopg.Connection[Any],
    tenant_id: UUID,
    usage: Iterable[tuple[datetime, str, Decimal]],
    bot_id: UUID = NO_BOT,
) -> None:
    """Store usage events (moment, meter, quantity) with their hourly sums, as the gateway does."""
    rows = [
        {
            "tenant": tenant_id,
            "id": str(uuid4()),
            "meter": meter,
            "bot": bot_id,
            "moment": moment,
            "hour": moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0),
            "quantity": quantity,
        }
        for moment, meter, quantity in usage
    ]
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO usage_event (tenant_id, source, event_id, meter, bot_id, occurred_at,"
            " received_at, quantity) VALUES (%(tenant)s, 'test', %(id)s, %(meter)s, %(bot)s,"
            " %(moment)s, %(moment)s, %(quantity)s)",
            rows,
        )
        cursor.executemany(
            "INSERT INTO usage_hourly AS u (tenant_id, meter, hour, bot_id, quantity, events)"
            " VALUES (%(tenant)s, %(meter)s, %(hour)s, %(bot)s, %(quantity)s, 1)"
            " ON CONFLICT (tenant_id, meter, hour, bot_id, dims) DO UPDATE"
            " SET quantity = u.quantity + excluded.quantity, events = u.events + 1",
            rows,
        )


def record_won_and_lost(
    conn: psycopg.Connection[Any],
    tenant_id: UUID,
    trades: Iterable[tuple[datetime, Decimal, Decimal]],
) -> None:
    """Store trades (closed at, profit or loss, volume) in the tenant's currency."""
    given = [
        Trade(
            tenant_id=tenant_id,
            trade_id=str(uuid4()),
            bot_id=None,
            closed_at=closed_at,
            pnl=pnl,
            volume=volume,
        )
        for closed_at, pnl, volume in trades
    ]
    assert set(record_trades(conn, given, at("2026-01-01"))) <= {Recorded.ACCEPTED}


def complete_until(
    conn: psycopg.Connection[Any], moment: datetime, source: str = "metering"
) -> None:
    """Let a source say that everything before a moment is recorded."""
    conn.execute(
        "INSERT INTO source_watermark VALUES (%s, %s, %s) ON CONFLICT (source) DO UPDATE"
        " SET complete_until = excluded.complete_until",
        [source, moment, moment],
    )


def whole_content(conn: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    """Return every row of every table with the transaction that wrote it.

    An update to equal values shows as well: it writes the row anew.
    """
    names = conn.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'public' AND c.relkind = 'r' ORDER BY 1"
    ).fetchall()
    return {
        name: conn.execute(
            sql.SQL("SELECT t.xmin::text, t::text FROM {} t ORDER BY 2").format(
                sql.Identifier(name)
            )
        ).fetchall()
        for (name,) in names
    }


LATER = timedelta(days=400)
"""Long after everything that a test describes."""


def waits_for_a_lock(conn: psycopg.Connection[Any]) -> bool:
    """Tell whether a session of this database waits for another, and only one does."""
    waiting = conn.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    return waiting == (1,)
