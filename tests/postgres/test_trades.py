"""Trades come in any order, more than once and in other currencies; each counts once."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from botplane.billing.run import invoice
from botplane.billing.store import publish_plan
from botplane.billing.trades.store import Recorded, Trade, held_trades, record_trades
from botplane.tenants.store import register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until, whole_content

NOW = at("2026-11-02")
TERMS = {"rate": "0.10", "volumeDiscounts": [{"fromVolume": "10000", "discount": "0.05"}]}


@pytest.fixture
def tenant_id(conn: psycopg.Connection[Any]) -> UUID:
    publish_plan(conn, a_plan(commission=TERMS), at("2026-10-01"))
    register_tenant(conn, an_account(), at("2026-10-01"))
    complete_until(conn, NOW)
    return conn.execute("SELECT tenant_id FROM tenant").fetchall()[0][0]  # type: ignore[no-any-return]


def a_trade(tenant_id: UUID, trade_id: str, pnl: str, **more: Any) -> Trade:
    trade = Trade(
        tenant_id=tenant_id,
        trade_id=trade_id,
        bot_id=None,
        closed_at=at("2026-10-05T10:00:00Z"),
        pnl=Decimal(pnl),
        volume=Decimal(4000),
    )
    return replace(trade, **more)


def test_order_and_repetition_of_trades_do_not_change_the_commission(
    conn: psycopg.Connection[Any], tenant_id: UUID
) -> None:
    trades = [a_trade(tenant_id, f"t{n}", f"{n}.333333") for n in range(20)] * 3
    Random(7).shuffle(trades)

    outcomes = [*record_trades(conn, trades[:25], NOW), *record_trades(conn, trades[25:], NOW)]

    assert outcomes.count(Recorded.ACCEPTED) == 20
    assert outcomes.count(Recorded.DUPLICATE) == 40
    [_, line] = invoice(conn, "acme", "2026-10", NOW).lines
    assert (line.kind, str(line.quantity)) == ("commission", "20.000000000000")
    assert str(line.exact) == "18.683332700000000000"


def test_known_id_with_other_content_is_a_conflict_and_changes_nothing(
    conn: psycopg.Connection[Any], tenant_id: UUID
) -> None:
    record_trades(conn, [a_trade(tenant_id, "t", "5")], NOW)
    before = whole_content(conn)

    outcomes = record_trades(
        conn, [a_trade(tenant_id, "t", "6"), a_trade(tenant_id, "t", "5")], NOW
    )

    assert outcomes == [Recorded.CONFLICT, Recorded.DUPLICATE]
    assert whole_content(conn) == before


def test_trade_in_another_currency_is_held_until_its_rate_is_known(
    conn: psycopg.Connection[Any], tenant_id: UUID
) -> None:
    held = a_trade(tenant_id, "eur", "100", currency="EUR")
    record_trades(conn, [held, a_trade(tenant_id, "usd", "10")], NOW)
    assert held_trades(conn) == 1
    assert invoice(conn, "acme", None, at("2026-10-20")).total_minor == 100

    known = replace(held, fx_rate=Decimal("1.25"), fx_source="ECB", fx_at=at("2026-10-05"))
    assert record_trades(conn, [known], NOW) == [Recorded.ACCEPTED]

    assert held_trades(conn) == 0
    assert invoice(conn, "acme", "2026-10", NOW).total_minor == 1350
    other = replace(known, fx_rate=Decimal(2))
    assert record_trades(conn, [other], NOW) == [Recorded.DUPLICATE]


@pytest.mark.parametrize(
    "statement",
    ["UPDATE trade_commission SET pnl = 0", "DELETE FROM trade_commission"],
)
def test_recorded_trade_never_changes(
    conn: psycopg.Connection[Any], tenant_id: UUID, statement: Any
) -> None:
    record_trades(conn, [a_trade(tenant_id, "t", "5")], NOW)

    with pytest.raises(errors.RestrictViolation):
        conn.execute(statement)
