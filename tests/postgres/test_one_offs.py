"""A charge beside the plan is on the next invoice, once, with its coupons and taxes."""

from __future__ import annotations

import threading
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from botplane.billing.adjustments.store import (
    CouponTerms,
    OneOffTerms,
    Order,
    TaxTerms,
    charge_one_off,
    grant_coupon,
    set_tax,
)
from botplane.billing.invoices import Invoice
from botplane.billing.proof.store import reconcile, verify_audit
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.billing.voids.store import VoidTerms, void_invoice
from botplane.errors import Rejected, Retryable
from botplane.tenants.store import close_tenant, register_tenant
from botplane.usage.documents import standing_document
from botplane.usage.forecast.store import outlook
from botplane.usage.standing import LimitState
from botplane.usage.store import enforce_limits, standing_of
from tests.support.billing import (
    a_plan,
    an_account,
    at,
    complete_until,
    record_usage,
    waits_for_a_lock,
    whole_content,
)
from tests.support.cut_connection import CutConnection
from tests.support.until import until

OCT, NOV, DEC, JAN = at("2026-10-01"), at("2026-11-02"), at("2026-12-02"), at("2027-01-02")
CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}
ORDER = Order(tenant="acme", actor="ana", now=at("2026-10-20"))
SETUP = OneOffTerms(reference="setup-7", amount="250.05", description="Help with the first bots")


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> UUID:
    """A tenant that pays 10.00 a month."""
    publish_plan(conn, a_plan(fee="10.00", prices=[CALLS]), OCT)
    account = an_account()
    register_tenant(conn, account, OCT)
    return account.tenant_id


def bill(conn: psycopg.Connection[Any], moment: Any) -> None:
    complete_until(conn, moment)
    assert billing_run(conn, moment).parked == ()


def lines(issued: Invoice) -> list[tuple[str, int]]:
    return [(line.key.partition("/")[0], line.amount_minor) for line in issued.lines]


@pytest.mark.usefixtures("acme")
def test_charge_is_on_the_next_invoice_and_on_no_other(conn: psycopg.Connection[Any]) -> None:
    assert charge_one_off(conn, ORDER, SETUP) == "2026-10"
    coming = invoice(conn, "acme", "2026-10", ORDER.now)
    bill(conn, JAN)

    issued = [invoice(conn, "acme", f"2026-{month}", JAN) for month in (10, 11, 12)]

    assert lines(coming) == [("subscription", 1000), ("one_off", 25005)]
    assert [lines(one) for one in issued] == [
        [("subscription", 1000), ("one_off", 25005)],
        [("subscription", 1000)],
        [("subscription", 1000)],
    ]
    [line] = issued[0].lines[1:]
    assert (line.key, str(line.exact.normalize())) == ("one_off/setup-7", "250.05")
    assert line.detail == {"description": "Help with the first bots"}
    assert reconcile(conn, OCT, JAN) == []


@pytest.mark.usefixtures("acme")
def test_charge_counts_once_where_its_tenant_stands_and_in_what_is_foreseen(
    conn: psycopg.Connection[Any],
) -> None:
    charge_one_off(conn, replace(ORDER, now=NOV), replace(SETUP, reference="ended"))
    for _ in range(2):
        bill(conn, NOV)
        charge_one_off(conn, replace(ORDER, now=NOV), SETUP)
    charge_one_off(conn, replace(ORDER, now=NOV), replace(SETUP, reference="more", amount="4.95"))
    now = at("2026-11-16")

    stand = standing_of(conn, "acme", now)
    seen = outlook(conn, "acme", now)

    assert (stand.one_offs, stand.cost) == (Decimal(255), Decimal(265))
    assert standing_document(stand, None, now)["oneOffs"] == "255"
    assert seen is not None
    forecast = seen[1]
    assert forecast is not None
    amounts = {forecast.low, forecast.amount, forecast.high, forecast.run_rate}
    assert (amounts, forecast.projected_overage) == ({Decimal("265.00")}, Decimal(0))
    bill(conn, DEC)
    assert invoice(conn, "acme", "2026-11", DEC).total_minor == 26500
    assert standing_of(conn, "acme", DEC).one_offs == 0


@pytest.mark.usefixtures("acme")
def test_charge_uses_up_the_spend_limit(conn: psycopg.Connection[Any]) -> None:
    conn.execute("UPDATE tenant SET spend_limit = 260.05")
    charge_one_off(conn, ORDER, SETUP)

    stand = standing_of(conn, "acme", ORDER.now)
    told = enforce_limits(conn, [stand], ORDER.now)

    assert stand.limit_percent == 100
    assert [notice.percent for notice in told] == [50, 80, 90, 100]
    assert standing_of(conn, "acme", ORDER.now).limit_state is LimitState.BLOCKED


@pytest.mark.usefixtures("acme")
def test_charge_after_the_period_but_before_its_invoice_is_on_that_invoice(
    conn: psycopg.Connection[Any],
) -> None:
    assert charge_one_off(conn, replace(ORDER, now=NOV), SETUP) == "2026-10"
    bill(conn, NOV)

    other = replace(SETUP, reference="setup-8")
    assert charge_one_off(conn, replace(ORDER, now=NOV), other) == "2026-11"


@pytest.mark.usefixtures("acme")
def test_coupons_and_taxes_count_as_for_every_line(conn: psycopg.Connection[Any]) -> None:
    order = replace(ORDER, now=OCT)
    grant_coupon(conn, order, CouponTerms(code="help", percent="50", target="one_off"))
    grant_coupon(conn, order, CouponTerms(code="all", amount="5.00"))
    set_tax(conn, order, TaxTerms(name="VAT", rate="0.19"))
    set_tax(conn, order, TaxTerms(name="VAT", rate="0.07", target="one_off"))
    charge_one_off(conn, ORDER, SETUP)
    bill(conn, NOV)

    issued = invoice(conn, "acme", "2026-10", NOV)

    # 125.025 is 125.02 to even: 125.03 and 10.00 are left, of which 5.00 is 4.63 and 0.37.
    assert [(d.code, d.amount_minor) for d in issued.discounts] == [("help", 12502), ("all", 500)]
    assert [(t.base_minor, t.amount_minor) for t in issued.taxes] == [(12040, 843), (963, 183)]
    assert issued.total_minor == 14029
    booked = conn.execute(
        "SELECT account, amount_minor FROM ledger_entry WHERE txn_key LIKE 'invoice/%' ORDER BY 1"
    ).fetchall()
    assert booked == [
        ("discount_given", 13002),
        ("receivable", 14029),
        ("revenue_one_off", -25005),
        ("revenue_subscription", -1000),
        ("tax_payable", -1026),
    ]


@pytest.mark.usefixtures("acme")
def test_repeated_charge_is_one_charge_and_is_audited_once(conn: psycopg.Connection[Any]) -> None:
    charge_one_off(conn, ORDER, SETUP)
    before = whole_content(conn)

    assert charge_one_off(conn, ORDER, SETUP) == "2026-10"
    bill(conn, NOV)
    assert charge_one_off(conn, replace(ORDER, now=NOV), SETUP) == "2026-10"

    said = conn.execute(
        "SELECT actor, object, payload FROM audit_log WHERE action = 'one_off.charge'"
    ).fetchall()
    payload = {"amount": "250.05", "description": SETUP.description, "period": "2026-10"}
    assert said == [("ana", "setup-7", payload)]
    assert before["one_off"] == whole_content(conn)["one_off"]
    assert verify_audit(conn, []) == []


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"amount": "250.06"}, "ReferenceUsed"),
        ({"description": "Something else"}, "ReferenceUsed"),
        ({"reference": "new", "amount": "0"}, "TermsInvalid"),
        ({"reference": "new", "amount": "-1.00"}, "TermsInvalid"),
        ({"reference": "new", "amount": "1.005"}, "AmountTooPrecise"),
        ({"reference": "new", "amount": "1" * 30}, "TermsInvalid"),
        ({"reference": "../new"}, "TermsInvalid"),
        ({"reference": "new", "description": "two\nlines"}, "TermsInvalid"),
        ({"reference": "new", "description": "nul \0"}, "TermsInvalid"),
        ({"reference": "new", "description": "x" * 81}, "TermsInvalid"),
        ({"reference": "new", "description": ""}, "TermsInvalid"),
    ],
)
def test_impossible_charge_is_refused(
    conn: psycopg.Connection[Any], terms: dict[str, str], reason: str
) -> None:
    charge_one_off(conn, ORDER, SETUP)
    before = whole_content(conn)

    with pytest.raises(Rejected) as refused:
        charge_one_off(conn, ORDER, replace(SETUP, **terms))

    assert refused.value.reason == reason
    assert whole_content(conn) == before


def test_closed_tenant_is_charged_until_its_last_invoice(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    close_tenant(conn, acme, at("2026-10-25"))
    assert charge_one_off(conn, replace(ORDER, now=at("2026-10-28")), SETUP) == "2026-10"
    bill(conn, DEC)

    with pytest.raises(Rejected) as refused:
        charge_one_off(conn, replace(ORDER, now=DEC), replace(SETUP, reference="late"))

    assert refused.value.reason == "NoPeriod"


def test_void_invoice_gives_the_charge_to_the_one_that_replaces_it_and_late_usage_does_not(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    charge_one_off(conn, ORDER, SETUP)
    bill(conn, NOV)
    void_invoice(conn, VoidTerms(invoice_number="INV-2026-000001", reason="Wrong"), "ana", NOV)
    bill(conn, NOV)
    again = invoice(conn, "acme", "2026-10", NOV)
    record_usage(conn, acme, [(at("2026-10-10"), "rpc_calls", Decimal(100))])
    bill(conn, DEC)

    assert (again.number, lines(again)) == (
        "INV-2026-000002",
        [("subscription", 1000), ("one_off", 25005)],
    )
    assert lines(invoice(conn, "acme", "2026-11", DEC)) == [
        ("subscription", 1000),
        ("correction", 100),
    ]
    assert reconcile(conn, OCT, DEC) == []


@pytest.mark.usefixtures("acme")
async def test_charge_while_its_period_is_billed_is_on_the_invoice_after(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    complete_until(conn, NOV)
    told: list[str] = []

    def charge() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            told.append(charge_one_off(mine, replace(ORDER, now=NOV), SETUP))

    charging = threading.Thread(target=charge)
    with psycopg.connect(migrated) as biller, biller.transaction():
        billing_run(biller, NOV)
        charging.start()
        await until(lambda: waits_for_a_lock(conn), seconds=20)
    charging.join()
    bill(conn, DEC)

    assert told == ["2026-11"]
    assert lines(invoice(conn, "acme", "2026-11", DEC)) == [
        ("subscription", 1000),
        ("one_off", 25005),
    ]


async def test_database_refuses_a_charge_for_a_period_that_is_billed_meanwhile(
    conn: psycopg.Connection[Any], migrated: str, acme: UUID
) -> None:
    charge_one_off(conn, ORDER, SETUP)
    complete_until(conn, NOV)
    refused: list[errors.RestrictViolation] = []

    def charge() -> None:
        try:
            with psycopg.connect(migrated) as mine:
                row = [acme, NOV]
                mine.execute("INSERT INTO one_off VALUES (%s, 'x', '2026-10', 'x', 1, %s)", row)
        except errors.RestrictViolation as error:
            refused.append(error)

    charging = threading.Thread(target=charge)
    with psycopg.connect(migrated) as biller, biller.transaction():
        billing_run(biller, NOV)
        charging.start()
        await until(lambda: waits_for_a_lock(conn), seconds=20)
    charging.join()

    assert len(refused) == 1


@pytest.mark.usefixtures("acme")
def test_charges_beside_a_billing_run_are_on_one_invoice_each(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    complete_until(conn, NOV)
    start = threading.Barrier(3)

    def charge() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            start.wait()
            for number in range(20):
                terms = replace(SETUP, reference=f"c-{number}", amount="1.00")
                charge_one_off(mine, replace(ORDER, now=NOV), terms)

    workers = [threading.Thread(target=charge) for _ in range(2)]
    for worker in workers:
        worker.start()
    start.wait()
    billing_run(conn, NOV)
    for worker in workers:
        worker.join()
    bill(conn, DEC)

    charged = conn.execute(
        "SELECT line_key FROM invoice_line WHERE kind = 'one_off' ORDER BY line_key"
    ).fetchall()
    assert charged == sorted((f"one_off/c-{number}",) for number in range(20))


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("nth_commit", [1, 2])
def test_charge_whose_answer_was_lost_is_asked_for_again(
    conn: psycopg.Connection[Any], migrated: str, nth_commit: int
) -> None:
    def charge_twice(connection: psycopg.Connection[Any]) -> None:
        for number in range(2):
            charge_one_off(connection, ORDER, replace(SETUP, reference=f"c-{number}"))

    with (
        CutConnection(migrated, nth_commit) as wire,
        psycopg.connect(wire.url, autocommit=True) as broken,
        pytest.raises(Retryable),
    ):
        charge_twice(broken)

    charge_twice(conn)

    assert conn.execute("SELECT reference FROM one_off ORDER BY 1").fetchall() == [
        ("c-0",),
        ("c-1",),
    ]
    said = conn.execute("SELECT count(*) FROM audit_log WHERE action = 'one_off.charge'")
    assert said.fetchone() == (2,)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE one_off SET amount_minor = 1",
        "DELETE FROM one_off",
        "TRUNCATE one_off",
        "INSERT INTO one_off SELECT tenant_id, 'x', period, 'x', 1, charged_at FROM one_off",
    ],
)
def test_charge_never_changes_and_a_billed_period_gets_none(
    conn: psycopg.Connection[Any], statement: Any
) -> None:
    charge_one_off(conn, ORDER, SETUP)
    bill(conn, NOV)

    with pytest.raises(errors.RestrictViolation):
        conn.execute(statement)
