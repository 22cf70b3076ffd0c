"""A void invoice leaves nothing but its number, and its period is billed again, right."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from botplane.billing.adjustments.store import (
    CouponTerms,
    CreditTerms,
    NoteTerms,
    Order,
    TaxTerms,
    grant_coupon,
    grant_credit,
    issue_credit_note,
    set_tax,
)
from botplane.billing.invoices import Invoice
from botplane.billing.payments.fake import FakeProcessor, Fault
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import overdue_tenants, set_payment_method, store_event
from botplane.billing.proof.store import reconcile, verify_audit
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.billing.voids.store import VoidTerms, void_invoice
from botplane.errors import Rejected, Retryable
from botplane.tenants.store import register_tenant
from botplane.usage.forecast.store import forecast_pass
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
DAY = timedelta(days=1)
FIRST, SECOND = "INV-2026-000001", "INV-2026-000002"
CALLS = {
    "meter": "rpc_calls",
    "model": "PerUnit",
    "included": "100",
    "tiers": [{"unitPrice": "0.01"}],
}
ORDER = Order(tenant="acme", actor="ana", now=OCT)
WRONG = VoidTerms(invoice_number=FIRST, reason="Wrong address")


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> UUID:
    """A tenant with a coupon, a credit and a tax, whose October is billed."""
    publish_plan(conn, a_plan(fee="100.00", prices=[CALLS]), OCT)
    account = an_account()
    register_tenant(conn, account, OCT)
    grant_coupon(conn, ORDER, CouponTerms(code="welcome", percent="10"))
    gift = CreditTerms(credit_id="gift", amount="30.00", expires_at=at("2026-11-15"))
    grant_credit(conn, ORDER, gift)
    set_tax(conn, ORDER, TaxTerms(name="VAT", rate="0.20"))
    calls(conn, account.tenant_id, "2026-10-05", 350)
    bill(conn, NOV)
    return account.tenant_id


def calls(conn: psycopg.Connection[Any], tenant_id: UUID, day: str, number: int) -> None:
    record_usage(conn, tenant_id, [(at(f"{day}T12:00:00Z"), "rpc_calls", Decimal(number))])


def bill(conn: psycopg.Connection[Any], moment: Any) -> None:
    complete_until(conn, moment)
    billing_run(conn, moment)


def void(conn: psycopg.Connection[Any], number: str = FIRST, now: Any = NOV) -> None:
    void_invoice(conn, replace(WRONG, invoice_number=number), "ana", now)


def issued(conn: psycopg.Connection[Any], period: str = "2026-10") -> Invoice:
    return invoice(conn, "acme", period, NOV)


def balances(conn: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(
        conn.execute(
            "SELECT account, sum(amount_minor)::bigint FROM ledger_entry GROUP BY account"
            " HAVING sum(amount_minor) <> 0"
        ).fetchall()
    )


def entries(conn: psycopg.Connection[Any], action: str) -> list[Any]:
    return conn.execute(
        "SELECT object, actor, payload FROM audit_log WHERE action = %s", [action]
    ).fetchall()


def prove(conn: psycopg.Connection[Any], now: Any = JAN) -> None:
    """Find no difference in the books and no gap in the numbers."""
    assert reconcile(conn, OCT, now) == []
    assert verify_audit(conn, []) == []
    issued_numbers = {number for (number,) in conn.execute("SELECT number FROM invoice")}
    assert issued_numbers == {
        f"{series}-{n:06d}"
        for series, last in conn.execute("SELECT series, last FROM invoice_counter")
        for n in range(1, last + 1)
    }


def test_void_takes_back_all_but_the_number_and_the_next_run_issues_the_same_again(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    first = issued(conn)
    assert (first.discount_minor, first.credit_minor, first.due_minor) == (1025, 3000, 8070)

    void(conn)
    assert balances(conn) == {"credit_given": 3000, "customer_credit": -3000}
    assert entries(conn, "invoice.void") == [(FIRST, "ana", {"reason": "Wrong address"})]
    billing_run(conn, NOV)

    again = issued(conn)
    assert (again.number, again.billed.replaces) == (SECOND, FIRST)
    assert first == replace(
        again, billed=first.billed, number=FIRST, content_hash=first.content_hash
    )
    assert conn.execute(
        "SELECT number, status, revision FROM invoice ORDER BY number"
    ).fetchall() == [(FIRST, "void", 0), (SECOND, "finalized", 1)]
    prove(conn, NOV)
    assert acme


@pytest.mark.usefixtures("acme")
def test_second_void_and_second_run_change_nothing(conn: psycopg.Connection[Any]) -> None:
    void(conn)
    voided = whole_content(conn)
    void(conn)
    assert whole_content(conn) == voided

    billing_run(conn, NOV)
    once = whole_content(conn)
    billing_run(conn, NOV)
    assert whole_content(conn) == once


@pytest.mark.usefixtures("acme")
def test_period_can_be_billed_wrong_twice(conn: psycopg.Connection[Any]) -> None:
    for number in (FIRST, SECOND):
        void(conn, number)
        billing_run(conn, NOV)

    again = issued(conn)
    assert (again.number, again.billed.replaces) == ("INV-2026-000003", SECOND)
    assert (again.billed.revision, again.due_minor) == (2, 8070)
    prove(conn, NOV)


def expired(conn: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(conn.execute("SELECT credit_id, expired_minor FROM credit_expired").fetchall())


@pytest.mark.usefixtures("acme")
def test_credit_that_expired_since_pays_its_period_again_and_the_rest_expires(
    conn: psycopg.Connection[Any],
) -> None:
    bill(conn, DEC)
    void(conn, now=DEC)
    grant_coupon(conn, ORDER, CouponTerms(code="sorry", amount="92.50"))

    billing_run(conn, DEC)

    again = issued(conn)
    assert (again.total_minor, again.credit_minor, again.due_minor) == (1080, 1080, 0)
    assert expired(conn) == {"gift": 1920}
    assert balances(conn)["credit_given"] == 1080
    prove(conn, DEC)


@pytest.mark.usefixtures("acme")
def test_expiry_is_taken_back_where_a_void_gives_the_credit_a_period_to_pay(
    conn: psycopg.Connection[Any],
) -> None:
    more = CreditTerms(credit_id="more", amount="200.00", expires_at=at("2026-11-15"))
    grant_credit(conn, ORDER, more)
    bill(conn, DEC)
    assert expired(conn) == {"more": 20000}

    void(conn, now=DEC)
    assert expired(conn) == {"more": 0}
    billing_run(conn, DEC)

    assert (issued(conn).credit_minor, issued(conn).status) == (11070, "paid")
    assert expired(conn) == {"more": 11930}
    assert balances(conn)["credit_given"] == 11070
    prove(conn, DEC)


async def test_forecast_is_judged_by_the_invoice_that_replaces_one_voided_meanwhile(
    conn: psycopg.Connection[Any], migrated: str, acme: UUID
) -> None:
    conn.execute(
        "INSERT INTO forecast VALUES (%s, '2026-10', 50, '2026-10-16', 100, 90, 110, 100)", [acme]
    )

    def fill_alone() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            forecast_pass(mine, NOV)

    filling = threading.Thread(target=fill_alone)
    with psycopg.connect(migrated) as voider:
        with voider.transaction():
            void(voider)
            filling.start()
            await until(lambda: waits_for_a_lock(conn), seconds=20)
        filling.join()
    calls(conn, acme, "2026-10-06", 50)
    bill(conn, NOV)
    forecast_pass(conn, NOV)

    assert conn.execute("SELECT actual_minor FROM forecast").fetchone() == (
        issued(conn).subtotal_minor,
    )


def test_written_off_invoice_that_is_void_suspends_nobody(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    collect(conn, None, NOV + 15 * DAY)
    assert overdue_tenants(conn) == {acme}

    void(conn)

    assert overdue_tenants(conn) == set()
    assert balances(conn) == {"credit_given": 3000, "customer_credit": -3000}
    bill(conn, DEC)
    prove(conn, DEC)


@pytest.mark.usefixtures("acme")
def test_invoice_that_is_paid_credited_or_being_paid_stays(conn: psycopg.Connection[Any]) -> None:
    def refusal(number: str = FIRST) -> str:
        before = whole_content(conn)
        with pytest.raises(Rejected) as refused:
            void(conn, number)
        assert whole_content(conn) == before
        return f"{refused.value.reason}: {refused.value.message}"

    assert refusal("INV-1").startswith("InvoiceNotFound")
    set_payment_method(conn, ORDER, "cus_1", "card_ok")
    processor = FakeProcessor(faults=[Fault.LOST_ANSWER])
    collect(conn, processor, NOV)
    assert "outcome is open" in refusal()
    collect(conn, processor, NOV)
    assert "is paid" in refusal()
    bill(conn, DEC)
    note = NoteTerms(invoice_number=SECOND, reference="r", amount="1.00", reason="Outage")
    issue_credit_note(conn, note, "ana", DEC)
    assert "credited in part" in refusal(SECOND)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE billing_period SET state = 'open', revision = revision + 1 WHERE state = 'closed'",
        "UPDATE billing_period SET revision = revision + 1",
    ],
)
@pytest.mark.usefixtures("acme")
def test_database_opens_no_period_whose_invoice_stands(
    conn: psycopg.Connection[Any], statement: Any
) -> None:
    with pytest.raises(errors.RestrictViolation):
        conn.execute(statement)


@pytest.mark.usefixtures("acme")
def test_database_makes_no_invoice_void_that_may_be_paid(conn: psycopg.Connection[Any]) -> None:
    set_payment_method(conn, ORDER, "cus_1", "card_ok")
    collect(conn, FakeProcessor(faults=[Fault.LOST_ANSWER]), NOV)

    with pytest.raises(errors.RestrictViolation):
        conn.execute("UPDATE invoice SET status = 'void'")


def test_usage_that_was_corrected_before_the_void_is_charged_once(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    calls(conn, acme, "2026-10-06", 1000)
    bill(conn, DEC)
    november = issued(conn, "2026-11")
    assert [line.amount_minor for line in november.lines if line.corrects_key] == [1000]

    void(conn, now=DEC)
    billing_run(conn, DEC)
    assert issued(conn).subtotal_minor == 10000 + 1250
    bill(conn, JAN)

    december = issued(conn, "2026-12")
    assert [line.amount_minor for line in december.lines if line.corrects_key] == [-1000]
    bill(conn, at("2027-02-02"))
    january = issued(conn, "2027-01")
    assert [line.key for line in january.lines if line.corrects_key] == []
    prove(conn, at("2027-02-02"))


def test_correction_on_a_void_invoice_is_on_the_one_that_replaces_it(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    calls(conn, acme, "2026-10-06", 1000)
    bill(conn, DEC)
    before = issued(conn, "2026-11")

    void(conn, SECOND, DEC)
    billing_run(conn, DEC)
    bill(conn, JAN)

    again = issued(conn, "2026-11")
    assert again.number == "INV-2026-000003"
    assert again.lines == before.lines
    assert [line.key for line in issued(conn, "2026-12").lines if line.corrects_key] == []
    prove(conn)


@pytest.mark.usefixtures("acme")
def test_payment_that_turns_out_well_after_the_void_becomes_a_credit(
    conn: psycopg.Connection[Any],
) -> None:
    set_payment_method(conn, ORDER, "cus_1", "card")
    processor = FakeProcessor(declines={"card": "insufficient_funds"})
    collect(conn, processor, NOV)
    void(conn)
    billing_run(conn, NOV)

    [(first,)] = conn.execute("SELECT invoice_id FROM invoice WHERE status = 'void'").fetchall()
    processor.confirm(first)
    about = {"object": {"metadata": {"invoice_id": str(first)}}}
    store_event(conn, "fake", {"id": "evt_1", "data": about}, NOV)
    collect(conn, processor, NOV + DAY)

    assert balances(conn)["cash"] == 8070
    assert conn.execute(
        "SELECT kind, left_minor FROM credit_left WHERE kind = 'credit_note'"
    ).fetchall() == [("credit_note", 8070)]
    prove(conn)


@pytest.mark.usefixtures("acme")
def test_void_that_is_cut_at_any_statement_happens_once(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    cut, is_through = 0, False
    while not is_through:
        cut += 1
        number = f"INV-2026-{cut:06d}"
        with (
            CutConnection(migrated, cut, every_statement=True) as wire,
            psycopg.connect(wire.url, autocommit=True) as broken,
        ):
            try:
                void(broken, number)
                is_through = True
            except Retryable:
                pass
        void(conn, number)
        billing_run(conn, NOV)

    assert cut > 8
    assert len(entries(conn, "invoice.void")) == cut
    assert issued(conn).due_minor == 8070
    prove(conn, NOV)


@pytest.mark.usefixtures("acme")
def test_two_voids_and_a_run_at_once_leave_one_invoice(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    start = threading.Barrier(3)

    def work(act: Any) -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            start.wait()
            act(mine)

    acts = (void, void, lambda mine: billing_run(mine, NOV))
    workers = [threading.Thread(target=work, args=(act,)) for act in acts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    billing_run(conn, NOV)

    assert len(entries(conn, "invoice.void")) == 1
    assert conn.execute("SELECT status FROM invoice ORDER BY number").fetchall() == [
        ("void",),
        ("finalized",),
    ]
    prove(conn, NOV)
