"""Where tenants stand now: the figures of their next invoice, by bot and in sum."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from botplane.billing.run import invoice
from botplane.billing.store import publish_plan
from botplane.errors import Rejected
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.store import close_tenant, register_tenant
from botplane.usage.store import BotUsage, standings, usage_by_bot
from tests.support.billing import (
    Run,
    a_plan,
    a_volume,
    an_account,
    at,
    complete_until,
    per_hour,
    record_runs,
    record_usage,
)

NOW = at("2026-11-10T12:00:00Z")
MONTH, METERED = at("2026-11-01"), at("2026-11-10T11:59:40Z")


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> TenantAccount:
    """A tenant with bot `arb` (two pods, one runs), `grid` (was deleted) and `idle`."""
    calls = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}
    publish_plan(conn, a_plan(fee="30.00", prices=[per_hour("0.06"), calls]), at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    arb, grid = uuid4(), uuid4()
    conn.cursor().executemany(
        "INSERT INTO bot VALUES (%s, %s, %s, '2026-10-01', %s)",
        [
            (account.tenant_id, arb, "arb", None),
            (account.tenant_id, grid, "grid", at("2026-11-05")),
            (account.tenant_id, uuid4(), "idle", None),
        ],
    )
    runs = [
        Run(start=at("2026-10-31T23:00:00Z"), end=at("2026-11-01T01:00:00Z"), bot_id=arb),
        Run(start=at("2026-11-10T11:00:00Z"), end=None, bot_id=arb),
        Run(start=at("2026-11-10T11:00:00Z"), end=None, bot_id=arb, container="sidecar"),
        a_volume(10**10, at("2026-11-10T11:40:00Z"), None, bot_id=arb),
        Run(start=at("2026-11-03T00:00:00Z"), end=at("2026-11-03T03:00:00Z"), bot_id=grid),
    ]
    record_runs(conn, account.tenant_id, runs)
    record_usage(
        conn, account.tenant_id, [(at("2026-11-09T00:30:00Z"), "rpc_calls", Decimal(25))], arb
    )
    record_usage(conn, account.tenant_id, [(at("2026-11-09T00:30:00Z"), "rpc_calls", Decimal(75))])
    return account


def a_bot(
    bot: str, *, gb_hours: str = "0", cost: str = "0", pods: int = 0, **counts: int
) -> BotUsage:
    return BotUsage(
        bot=bot,
        pods=pods,
        seconds=counts.get("seconds", 0),
        running=counts.get("running", 0),
        storage_gb_hours=Decimal(gb_hours),
        cost=Decimal(cost),
    )


@pytest.mark.usefixtures("acme")
def test_usage_by_bot_counts_pods_and_volumes_up_to_now(
    conn: psycopg.Connection[Any],
) -> None:
    rows = usage_by_bot(conn, "acme", None, NOW)

    assert rows == [
        a_bot("", cost="0.75"),
        a_bot("arb", pods=3, seconds=7200, running=1, gb_hours="3.333333333333", cost="0.37"),
        a_bot("grid", pods=1, seconds=10800, cost="0.18"),
        a_bot("idle"),
    ]


@pytest.mark.usefixtures("acme")
def test_usage_by_bot_adds_up_to_the_invoice(conn: psycopg.Connection[Any]) -> None:
    rows = usage_by_bot(conn, "acme", "2026-11", NOW)

    usage = [line for line in invoice(conn, "acme", "2026-11", NOW).lines if line.kind == "usage"]
    assert sum(row.cost for row in rows) == sum(line.exact for line in usage)


def test_standings_tell_where_each_open_tenant_stands(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    idle, closed = an_account("idle"), an_account("closed")
    for account in (idle, closed):
        register_tenant(conn, account, at("2026-10-01"))
    close_tenant(conn, closed.tenant_id, at("2026-11-02"))
    complete_until(conn, METERED)

    stands, _ = standings(conn, NOW)

    assert {
        tenant_id: (
            stand.starts_at,
            int(stand.quantity("bot_seconds")),
            int(stand.quantity("rpc_calls")),
            stand.cost,
            stand.metered_time,
        )
        for tenant_id, stand in stands.items()
    } == {
        acme.tenant_id: (MONTH, 18000, 100, Decimal("31.30"), METERED),
        idle.tenant_id: (MONTH, 0, 0, Decimal("30.00"), METERED),
    }


def test_nobody_stands_anywhere_before_anything_exists(conn: psycopg.Connection[Any]) -> None:
    assert standings(conn, NOW) == ({}, {})


@pytest.mark.usefixtures("acme")
def test_each_bot_has_its_share_of_the_cost(conn: psycopg.Connection[Any]) -> None:
    _, bots = standings(conn, NOW)

    names = dict(conn.execute("SELECT bot_id, name FROM bot").fetchall())
    assert {names[bot_id]: tuple(total) for bot_id, total in bots.items()} == {
        "arb": (7200, Decimal("0.37")),
        "grid": (10800, Decimal("0.18")),
    }


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("tenant", "period", "reason"),
    [("nobody", None, "TenantNotFound"), ("acme", "2026-09", "PeriodNotFound")],
)
def test_unknown_tenant_or_period_is_refused(
    conn: psycopg.Connection[Any],
    tenant: str,
    period: str | None,
    reason: str,
) -> None:
    with pytest.raises(Rejected) as refused:
        usage_by_bot(conn, tenant, period, NOW)

    assert refused.value.reason == reason
