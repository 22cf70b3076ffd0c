"""Where tenants stand now, read from the same intervals and prices that invoices use."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from psycopg.rows import class_row

from botplane.errors import Rejected
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import Connection

SQL = load_queries(__package__)
NO_BOT = UUID(int=0)
"""Stands in the sums for usage that no bot reported."""


@dataclass(frozen=True, kw_only=True)
class BotUsage:
    """What the bots of one name used in one period.

    Attributes:
        bot: Name of the BotDeployment; empty for usage that no bot reported.
        pods: Pods that ran in the period.
        seconds: Running time of the container `bot`, all replicas together.
        running: Containers `bot` that run now.
        cost: Unrounded share of the usage charges, in the major unit of the tenant's currency.
    """

    bot: str
    pods: int
    seconds: int
    running: int
    cost: Decimal


@dataclass(frozen=True, kw_only=True)
class UsageSummary:
    """Where one tenant stands in the period that runs now.

    Attributes:
        period_start: First moment of the period, UTC.
        bot_seconds: Running time of all bots.
        rpc_calls: Calls so far.
        cost: Fee of the period and usage charges so far, unrounded, in the major unit.
        metered_time: Until when metering has recorded all runs; None: it never reported.
    """

    period_start: datetime
    bot_seconds: int
    rpc_calls: int
    cost: Decimal
    metered_time: datetime | None


class BotTotal(NamedTuple):
    """What one bot used so far in the period that runs now."""

    seconds: int
    """Running time of the container `bot`, all replicas together."""
    cost: Decimal
    """Unrounded share of the usage charges, in the major unit."""


def usage_by_bot(
    conn: Connection[Any], tenant_name: str, period: str | None, now: datetime
) -> list[BotUsage]:
    """Return what each bot of a tenant used up to now, by name.

    Args:
        conn: Connection without an open transaction.
        tenant_name: Name of the Tenant.
        period: Such as `2026-10`; None for the one that runs now.
        now: Containers that still run count until then.

    Raises:
        Rejected: There is no such tenant or period.
        Retryable: Postgres is away.
    """
    names = {"tenant": tenant_name, "period": period, "now": now.replace(microsecond=0)}
    with translated_errors(), conn.transaction():
        conn.execute(SQL["ensure_periods"], names)
        row = conn.execute(SQL["named_period"], names).fetchone()
        if row is None:
            raise _not_found(tenant_name, period, conn.execute(SQL["period_names"], names))
        names |= {"tenant_id": row[0], "period": row[1]}
        with conn.cursor(row_factory=class_row(BotUsage)) as cursor:
            return cursor.execute(SQL["usage_by_bot"], names).fetchall()


def usage_summaries(
    conn: Connection[Any], now: datetime
) -> tuple[dict[UUID, UsageSummary], dict[UUID, BotTotal]]:
    """Return where every open tenant and its bots stand now, in a fixed number of statements.

    Raises:
        Retryable: Postgres is away.
    """
    moment = now.replace(microsecond=0)
    with translated_errors(), conn.transaction():
        conn.execute(SQL["ensure_periods"], {"now": moment})
        current = conn.execute(SQL["current_periods"], {"now": moment}).fetchall()
        watermark = conn.execute(SQL["metered_time"]).fetchone()
        rows = conn.execute(
            SQL["standing"],
            {
                "tenants": [tenant_id for tenant_id, _, _ in current],
                "periods": [period for _, period, _ in current],
                "now": moment,
            },
        ).fetchall()
    metered_time = None if watermark is None else watermark[0].astimezone(UTC)
    seconds, calls = defaultdict[UUID, Decimal](Decimal), defaultdict[UUID, Decimal](Decimal)
    costs: dict[UUID, Decimal] = {}
    bots: dict[UUID, BotTotal] = {}
    for tenant_id, bot_id, bot_seconds, rpc_calls, cost in rows:
        if bot_id is None:
            costs[tenant_id] = cost
            continue
        if bot_id != NO_BOT:
            bots[bot_id] = BotTotal(int(bot_seconds), cost)
        seconds[tenant_id] += bot_seconds
        calls[tenant_id] += rpc_calls
    summaries = {
        tenant_id: UsageSummary(
            period_start=starts_at.astimezone(UTC),
            bot_seconds=int(seconds[tenant_id]),
            rpc_calls=int(calls[tenant_id]),
            cost=costs.get(tenant_id, Decimal(0)),
            metered_time=metered_time,
        )
        for tenant_id, _, starts_at in current
    }
    return summaries, bots


def _not_found(tenant_name: str, period: str | None, known: Any) -> Rejected:
    bounds = known.fetchone()
    if bounds is None:
        return Rejected("TenantNotFound", f"No tenant {tenant_name} was registered for billing.")
    span = "none yet" if bounds[0] is None else f"{bounds[0]} to {bounds[1]}"
    return Rejected(
        "PeriodNotFound",
        f"Tenant {tenant_name} has no billing period {period or 'now'}; it has {span}.",
    )
