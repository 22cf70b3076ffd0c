"""Commission on new highs: what is kept of each period holds, whatever comes late or breaks."""

from __future__ import annotations

import threading
from contextlib import suppress
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from botplane.billing.proof.store import reconcile
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.billing.trades.store import Trade, record_trades
from botplane.billing.voids.store import VoidTerms, void_invoice
from botplane.errors import Retryable
from botplane.tenants.store import register_tenant
from botplane.usage.forecast.store import forecast_of
from botplane.usage.store import standing_of
from tests.support.billing import (
    a_plan,
    an_account,
    at,
    complete_until,
    record_won_and_lost,
    waits_for_a_lock,
    whole_content,
)
from tests.support.cut_connection import CutConnection
from tests.support.until import until

NOV, DEC, JAN = at("2026-11-02"), at("2026-12-02"), at("2027-01-02")
TERMS = {"rate": "0.10", "netting": "HighWaterMark"}


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> UUID:
    """A tenant that won 1000 and lost 400 in October, lost 300 in November, won 500 in December."""
    publish_plan(conn, a_plan(fee="1.00", commission=TERMS), at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    trade(conn, account.tenant_id, ("2026-10-03", "1000"), ("2026-10-04", "-400"))
    trade(conn, account.tenant_id, ("2026-11-04", "-300"), ("2026-12-04", "500"))
    return account.tenant_id


def trade(conn: psycopg.Connection[Any], tenant_id: UUID, *trades: tuple[str, str]) -> None:
    given = [(at(f"{day}T12:00:00Z"), Decimal(won), Decimal(1)) for day, won in trades]
    record_won_and_lost(conn, tenant_id, given)


def bill(conn: psycopg.Connection[Any], *moments: Any) -> None:
    for moment in moments:
        complete_until(conn, moment)
        billing_run(conn, moment)


def marks(conn: psycopg.Connection[Any]) -> list[tuple[str, int, int]]:
    """Return what is kept of each period: won less lost, and the mark."""
    return conn.execute(
        "SELECT period, cumulative::integer, mark::integer FROM commission_mark ORDER BY period"
    ).fetchall()


def commissions(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """Return the commission of each period with all that corrects it."""
    rows = conn.execute(
        "SELECT i.period, sum(l.amount_minor)::integer FROM invoice i JOIN invoice_line l"
        " ON l.corrects_invoice = i.invoice_id"
        " OR l.invoice_id = i.invoice_id AND l.corrects_key IS NULL"
        " JOIN invoice o ON o.invoice_id = l.invoice_id AND o.status <> 'void'"
        " WHERE COALESCE(l.corrects_key, l.line_key) LIKE 'commission/%' GROUP BY 1"
    )
    return dict(rows.fetchall())


KEPT = [("2026-10", 600, 600), ("2026-11", 300, 600), ("2026-12", 800, 800)]
BILLED = {"2026-10": 6000, "2026-11": 0, "2026-12": 2000}


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("moments", [[NOV, DEC, JAN], [JAN], [NOV, JAN]])
def test_month_by_month_and_all_at_once_are_the_same(
    conn: psycopg.Connection[Any], moments: list[Any]
) -> None:
    bill(conn, *moments)

    assert (marks(conn), commissions(conn)) == (KEPT, BILLED)
    [line] = [li for li in invoice(conn, "acme", "2026-12", JAN).lines if li.kind == "commission"]
    said = {name: line.detail[name] for name in ("net", "cumulative", "markBefore", "mark")}
    assert said == {"net": "500", "cumulative": "800", "markBefore": "600", "mark": "800"}
    before = whole_content(conn)
    billing_run(conn, JAN)
    assert whole_content(conn) == before
    assert reconcile(conn, at("2026-10-01"), JAN) == []


def test_draft_of_a_running_period_tells_of_its_trades_so_far(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    trade(conn, acme, ("2026-12-02", "100"))
    bill(conn, NOV, at("2026-12-03"))

    draft = invoice(conn, "acme", "2026-12", at("2026-12-03"))

    [line] = [line for line in draft.lines if line.kind == "commission"]
    said = {name: line.detail[name] for name in ("net", "cumulative", "markBefore", "mark")}
    assert said == {"net": "100", "cumulative": "400", "markBefore": "600", "mark": "600"}


def test_trade_in_another_currency_counts_at_its_rate(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    in_euro = Trade(
        tenant_id=acme,
        trade_id="eur",
        bot_id=None,
        closed_at=at("2026-12-05"),
        pnl=Decimal(100),
        volume=Decimal(1),
        currency="EUR",
        fx_rate=Decimal("1.25"),
        fx_source="ECB",
        fx_at=at("2026-12-05"),
    )
    record_trades(conn, [in_euro], at("2026-12-05"))
    bill(conn, NOV, DEC, JAN)

    assert marks(conn)[2:] == [("2026-12", 925, 925)]
    assert commissions(conn)["2026-12"] == 3250


def test_period_without_trades_keeps_the_mark(conn: psycopg.Connection[Any], acme: UUID) -> None:
    bill(conn, NOV, DEC, JAN, at("2027-02-02"))
    trade(conn, acme, ("2027-02-05", "50"))
    bill(conn, at("2027-03-02"))

    assert marks(conn)[3:] == [("2027-01", 800, 800), ("2027-02", 850, 850)]
    assert commissions(conn) == BILLED | {"2027-02": 500}


def test_late_trade_changes_its_period_and_those_after_it(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    bill(conn, NOV, DEC)
    trade(conn, acme, ("2026-10-20", "-500"))
    late = conn.execute("SELECT period FROM late_usage ORDER BY 1").fetchall()
    bill(conn, JAN)

    # October ends at 100, November at -200, December at 300: 200 beyond the mark of October.
    assert late == [("2026-10",), ("2026-11",)]
    kept = [("2026-10", 100, 100), ("2026-11", -200, 100), ("2026-12", 300, 300)]
    assert (marks(conn), commissions(conn)) == (kept, BILLED | {"2026-10": 1000})
    assert reconcile(conn, at("2026-10-01"), JAN) == []
    before = whole_content(conn)
    billing_run(conn, JAN)
    assert whole_content(conn) == before


def test_any_order_of_arrival_ends_in_the_same(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(commission=TERMS), at("2026-10-01"))
    random = Random(5)
    trades = [
        (f"2026-{random.choice([10, 11, 12])}-{random.randrange(1, 29):02}", f"{won}.25")
        for won in random.sample(range(-900, 1000), 24)
    ]
    ends = set()
    for number in range(4):
        account = an_account(f"t-{number}")
        register_tenant(conn, account, at("2026-10-01"))
        random.shuffle(trades)
        trade(conn, account.tenant_id, *trades[: 6 * number])
        bill(conn, [NOV, DEC, JAN][number % 3])
        trade(conn, account.tenant_id, *trades[6 * number :])
    bill(conn, at("2027-02-02"))

    for (tenant_id,) in conn.execute("SELECT tenant_id FROM tenant").fetchall():
        kept = conn.execute(
            "SELECT period, cumulative, mark FROM commission_mark WHERE tenant_id = %s ORDER BY 1",
            [tenant_id],
        ).fetchall()
        paid = conn.execute(
            "SELECT sum(amount_minor) FROM invoice_line WHERE tenant_id = %s"
            " AND COALESCE(corrects_key, line_key) LIKE 'commission/%%'",
            [tenant_id],
        ).fetchall()
        ends.add((*kept, *paid))
    assert len(ends) == 1
    [(*kept, (paid,))] = ends
    # All that was ever paid is the share of the highest mark; each of three periods rounds once.
    assert abs(paid - 10 * kept[-1][2]) <= Decimal("1.5")


@pytest.mark.parametrize("billed", [[], [NOV], [NOV, DEC]])
def test_where_a_tenant_stands_is_what_it_will_pay(
    conn: psycopg.Connection[Any], acme: UUID, billed: list[Any]
) -> None:
    bill(conn, *billed)
    trade(conn, acme, ("2026-10-21", "-100"))
    last = at("2026-12-31T23:59:59Z")

    stand = standing_of(conn, "acme", last)

    # 500 in October, 200 in November, 700 in December.
    assert stand.commission == 20
    ended = forecast_of(conn, stand, at("2027-01-01"))
    assert ended is not None
    assert ended.amount == ended.high == 21
    bill(conn, JAN)
    assert commissions(conn)["2026-12"] == 2000


@pytest.mark.usefixtures("acme")
def test_void_period_is_billed_again_by_the_same_mark(conn: psycopg.Connection[Any]) -> None:
    bill(conn, NOV, DEC)
    number = str(invoice(conn, "acme", "2026-10", NOV).number)
    void_invoice(conn, VoidTerms(invoice_number=number, reason="x"), "ana", DEC)
    stand = standing_of(conn, "acme", at("2026-12-31"))

    bill(conn, JAN)

    assert stand.commission == 20
    assert (marks(conn), commissions(conn)) == (KEPT, BILLED)


def test_mark_of_a_void_period_is_not_gone_on_from(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    bill(conn, NOV)
    number = str(invoice(conn, "acme", "2026-10", NOV).number)
    void_invoice(conn, VoidTerms(invoice_number=number, reason="x"), "ana", NOV)
    trade(conn, acme, ("2026-10-20", "-500"))

    draft = invoice(conn, "acme", "2026-11", DEC)

    [line] = [line for line in draft.lines if line.kind == "commission"]
    said = {name: line.detail[name] for name in ("cumulative", "markBefore")}
    assert said == {"cumulative": "-200", "markBefore": "100"}
    assert reconcile(conn, at("2026-10-01"), JAN) == []


def test_run_that_is_cut_anywhere_ends_in_the_same(
    conn: psycopg.Connection[Any], migrated: str, acme: UUID
) -> None:
    bill(conn, NOV, DEC)
    trade(conn, acme, ("2026-10-20", "-500"))
    complete_until(conn, JAN)
    for cut in range(1, 40):
        with (
            CutConnection(migrated, cut, every_statement=True) as wire,
            psycopg.connect(wire.url, autocommit=True) as broken,
            suppress(Retryable),
        ):
            billing_run(broken, JAN)
    billing_run(conn, JAN)

    assert [mark for _, _, mark in marks(conn)] == [100, 100, 300]
    assert commissions(conn) == BILLED | {"2026-10": 1000}
    assert reconcile(conn, at("2026-10-01"), JAN) == []


async def test_late_trade_that_is_written_while_a_later_period_is_billed_is_not_lost(
    conn: psycopg.Connection[Any], migrated: str, acme: UUID
) -> None:
    bill(conn, NOV, DEC)
    complete_until(conn, JAN)

    def bill_alone() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            invoice(mine, "acme", "2026-12", JAN)

    with psycopg.connect(migrated) as writer:
        billing = threading.Thread(target=bill_alone)
        with writer.transaction():
            trade(writer, acme, ("2026-10-20", "-500"))
            billing.start()
            await until(lambda: waits_for_a_lock(conn), seconds=20)
        billing.join()

    assert commissions(conn) == BILLED | {"2026-10": 1000}


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE commission_mark SET mark = mark + 1 WHERE period = '2026-11'",
        "UPDATE commission_mark SET cumulative = cumulative - 1 WHERE period = '2026-12'",
        "DELETE FROM trade_commission WHERE pnl = -400",
    ],
)
def test_proof_finds_a_mark_that_the_trades_do_not_make(
    conn: psycopg.Connection[Any], forgery: Any
) -> None:
    bill(conn, NOV, DEC, JAN)
    conn.execute("SET session_replication_role = replica")
    conn.execute(forgery)
    conn.execute("SET session_replication_role = origin")

    assert "marks = trades" in {one.check for one in reconcile(conn, at("2026-10-01"), JAN)}


@pytest.mark.usefixtures("acme")
def test_each_process_does_its_part_and_a_tenant_sees_its_own_marks(
    conn: psycopg.Connection[Any],
) -> None:
    complete_until(conn, JAN)
    conn.execute("SET ROLE botplane_billing")
    assert billing_run(conn, JAN).billed == 3
    conn.execute("SET ROLE botplane_web")
    assert standing_of(conn, "acme", JAN).commission == 0
    with pytest.raises(errors.InsufficientPrivilege):
        conn.execute("UPDATE commission_mark SET mark = 0")
    conn.execute("SET ROLE botplane_tenant")
    assert marks(conn) == []
