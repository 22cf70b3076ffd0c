"""Money goes back once, never more than was paid, whatever answers are lost."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from botplane.billing.adjustments.store import (
    NoteTerms,
    Order,
    TaxTerms,
    issue_credit_note,
    set_tax,
)
from botplane.billing.payments.fake import FakeProcessor, Fault
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import record_transfer, set_payment_method
from botplane.billing.payments.stripe import StripeProcessor
from botplane.billing.proof.store import compare_processor, reconcile
from botplane.billing.refunds.run import refund, settle_refunds
from botplane.billing.refunds.store import RefundTerms
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.errors import Rejected, Retryable
from botplane.tenants.store import register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until, whole_content
from tests.support.cut_connection import CutConnection
from tests.support.stripe_standin import API_KEY, StripeStandIn, stripe_standin

OCT, NOW = at("2026-10-01"), at("2026-11-02T09:00:00Z")
HOUR = timedelta(hours=1)
FIRST = "INV-2026-000001"
ORDER = Order(tenant="acme", actor="ana", now=OCT)


@pytest.fixture
def owed(conn: psycopg.Connection[Any]) -> UUID:
    """A tenant that owes 119.00, of which 19.00 are tax."""
    publish_plan(conn, a_plan(fee="100.00"), OCT)
    account = an_account()
    register_tenant(conn, account, OCT)
    set_tax(conn, ORDER, TaxTerms(name="VAT", rate="0.19"))
    set_payment_method(conn, ORDER, "cus_1", "card_ok")
    complete_until(conn, NOW)
    assert billing_run(conn, NOW).billed == 1
    return account.tenant_id


@pytest.fixture
def fake(conn: psycopg.Connection[Any], owed: UUID) -> FakeProcessor:
    """The processor by which the tenant has paid."""
    processor = FakeProcessor()
    assert collect(conn, processor, NOW).charged == 1
    assert owed
    return processor


def a_refund(amount: str | None = None, reference: str = "r-1", **more: Any) -> RefundTerms:
    terms = {"invoice_number": FIRST, "reason": "Outage"}
    return RefundTerms(reference=reference, amount=amount, **terms | more)


def ask(
    conn: psycopg.Connection[Any], processor: Any, terms: RefundTerms
) -> tuple[str, str | None]:
    outcome = refund(conn, terms, processor, ("ana", NOW))
    return outcome.status.value, outcome.note


def balance(conn: psycopg.Connection[Any], account: str) -> int:
    row = conn.execute(
        "SELECT COALESCE(sum(amount_minor), 0)::bigint FROM ledger_entry WHERE account = %s",
        [account],
    ).fetchone()
    assert row is not None
    return int(row[0])


def paid_back(processor: FakeProcessor) -> int:
    return sum(made.amount_minor for made in processor.refunded.values())


def test_whole_refund_gives_back_all_with_a_credit_note(
    conn: psycopg.Connection[Any], fake: FakeProcessor
) -> None:
    assert ask(conn, fake, a_refund()) == ("succeeded", "CN-2026-000001")

    notes = conn.execute(
        "SELECT amount_minor, tax_minor, settled_by, reason FROM credit_note"
    ).fetchall()
    assert notes == [(11900, 1900, "refund", "Outage")]
    accounts = ("cash", "receivable", "tax_payable", "customer_credit")
    assert [balance(conn, account) for account in accounts] == [0, 0, 0, 0]
    assert conn.execute("SELECT status FROM invoice").fetchall() == [("paid",)]
    assert paid_back(fake) == 11900
    assert reconcile(conn, OCT, NOW) + compare_processor(conn, fake, OCT) == []


def test_same_reference_is_the_same_refund(
    conn: psycopg.Connection[Any], fake: FakeProcessor
) -> None:
    first = ask(conn, fake, a_refund("20.00"))
    before = whole_content(conn)

    assert ask(conn, fake, a_refund("20.00")) == first
    assert ask(conn, fake, a_refund()) == first
    assert settle_refunds(conn, fake, NOW) == 0
    with pytest.raises(Rejected, match="another refund"):
        ask(conn, fake, a_refund("21.00"))

    assert whole_content(conn) == before
    assert paid_back(fake) == 2000


def test_parts_add_up_to_what_was_paid_and_not_to_more(
    conn: psycopg.Connection[Any], fake: FakeProcessor
) -> None:
    ask(conn, fake, a_refund("100.00", "r-1"))
    with pytest.raises(Rejected, match=r"at most 19\.00 USD"):
        ask(conn, fake, a_refund("19.01", "r-2"))
    note = NoteTerms(invoice_number=FIRST, reference="n", amount="9.00", reason="Outage")
    issue_credit_note(conn, note, "ana", NOW)
    with pytest.raises(Rejected, match=r"at most 10\.00 USD"):
        ask(conn, fake, a_refund("10.01", "r-2"))

    assert ask(conn, fake, a_refund(reference="r-2"))[0] == "succeeded"

    assert paid_back(fake) == 11000
    assert (balance(conn, "cash"), balance(conn, "customer_credit")) == (900, -900)
    assert reconcile(conn, OCT, NOW) == []


@pytest.mark.parametrize(
    "faults",
    [
        [Fault.LOST_ANSWER],
        [None, Fault.LOST_REQUEST],
        [None, Fault.LOST_ANSWER],
        [None, Fault.LOST_ANSWER, Fault.LOST_ANSWER],
        [None, Fault.LOST_REQUEST, None, Fault.LOST_ANSWER],
        [None, Fault.LOST_REQUEST, None, Fault.LOST_REQUEST, Fault.LOST_REQUEST],
    ],
)
def test_lost_answers_are_looked_up_and_nothing_goes_back_twice(
    conn: psycopg.Connection[Any], fake: FakeProcessor, faults: list[Fault | None]
) -> None:
    fake.faults = faults
    assert ask(conn, fake, a_refund("20.00")) == ("unknown", None)

    for hour in range(4):
        settle_refunds(conn, fake, NOW + hour * HOUR)

    assert ask(conn, fake, a_refund("20.00")) == ("succeeded", "CN-2026-000001")
    assert (paid_back(fake), balance(conn, "cash")) == (2000, 9900)
    assert reconcile(conn, OCT, NOW) + compare_processor(conn, fake, OCT) == []


def test_what_a_refund_is_under_way_for_is_not_promised_again(
    conn: psycopg.Connection[Any], fake: FakeProcessor
) -> None:
    fake.faults = [None, Fault.LOST_REQUEST]
    ask(conn, fake, a_refund("100.00"))
    note = NoteTerms(invoice_number=FIRST, reference="n", amount="19.01", reason="Outage")

    with pytest.raises(Rejected, match=r"at most 19\.00 USD"):
        issue_credit_note(conn, note, "ana", NOW)
    with pytest.raises(Rejected, match=r"at most 19\.00 USD"):
        ask(conn, fake, a_refund("19.01", "r-2"))
    settle_refunds(conn, fake, NOW)

    assert paid_back(fake) == 10000
    assert reconcile(conn, OCT, NOW) == []


def test_refused_refund_changes_no_book_and_can_be_asked_for_anew(
    conn: psycopg.Connection[Any], fake: FakeProcessor
) -> None:
    fake.refuses_refunds = True
    assert ask(conn, fake, a_refund()) == ("failed", None)
    assert balance(conn, "cash") == 11900
    fake.refuses_refunds = False

    assert ask(conn, fake, a_refund()) == ("failed", None)
    assert ask(conn, fake, a_refund(reference="r-2"))[0] == "succeeded"

    assert (paid_back(fake), balance(conn, "cash")) == (11900, 0)
    assert reconcile(conn, OCT, NOW) == []


@pytest.mark.usefixtures("owed")
def test_what_was_not_paid_does_not_go_back(conn: psycopg.Connection[Any]) -> None:
    for terms, reason in (
        (a_refund(), "NotRefundable"),
        (a_refund("0"), "NotRefundable"),
        (a_refund("-5"), "NotRefundable"),
        (a_refund("0.001"), "AmountTooPrecise"),
        (a_refund(invoice_number="INV-1"), "InvoiceNotFound"),
    ):
        with pytest.raises(Rejected) as refused:
            ask(conn, FakeProcessor(), terms)
        assert refused.value.reason == reason
    assert conn.execute("SELECT count(*) FROM refund").fetchone() == (0,)


@pytest.mark.usefixtures("owed")
def test_transfer_is_paid_back_by_a_person_and_recorded_at_once(
    conn: psycopg.Connection[Any],
) -> None:
    record_transfer(conn, FIRST, "bank-1", "ana", NOW)

    assert ask(conn, FakeProcessor(), a_refund("19.00"))[0] == "succeeded"
    assert ask(conn, None, a_refund(reference="r-2"))[0] == "succeeded"

    assert balance(conn, "cash") == 0
    assert reconcile(conn, OCT, NOW) == []


@pytest.mark.usefixtures("fake")
def test_other_processor_than_the_one_that_collected_is_refused(
    conn: psycopg.Connection[Any],
) -> None:
    with pytest.raises(Rejected, match="set BOTPLANE_PAYMENT_PROCESSOR"):
        ask(conn, None, a_refund())


def test_refund_that_is_cut_at_any_statement_is_made_once(
    conn: psycopg.Connection[Any], migrated: str, fake: FakeProcessor
) -> None:
    cut, is_through = 0, False
    while not is_through:
        cut += 1
        terms = a_refund("1.00", f"r-{cut}")
        with (
            CutConnection(migrated, cut, every_statement=True) as wire,
            psycopg.connect(wire.url, autocommit=True) as broken,
        ):
            try:
                ask(broken, fake, terms)
                is_through = True
            except Retryable:
                pass
        settle_refunds(conn, fake, NOW)
        assert ask(conn, fake, terms)[0] == "succeeded"

    assert cut > 12
    assert paid_back(fake) == 100 * cut
    assert balance(conn, "cash") == 11900 - 100 * cut
    asked = conn.execute("SELECT count(*) FROM audit_log WHERE action = 'payment.refund'")
    assert asked.fetchone() == (cut,)
    assert reconcile(conn, OCT, NOW) + compare_processor(conn, fake, OCT) == []


def test_many_at_once_give_back_no_more_than_was_paid(
    conn: psycopg.Connection[Any], migrated: str, fake: FakeProcessor
) -> None:
    start = threading.Barrier(4)

    def work(number: int) -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            start.wait()
            with contextlib.suppress(Rejected, Retryable):
                ask(mine, fake, a_refund("50.00", f"r-{number // 2}"))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    settle_refunds(conn, fake, NOW)

    assert paid_back(fake) == 10000
    assert balance(conn, "cash") == 1900
    assert reconcile(conn, OCT, NOW) == []


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("UPDATE refund SET status = 'failed'", errors.RestrictViolation),
        ("UPDATE refund SET amount_minor = 1", errors.RestrictViolation),
        ("DELETE FROM refund", errors.RestrictViolation),
        ("TRUNCATE refund", errors.RestrictViolation),
        (
            (
                "INSERT INTO refund SELECT tenant_id, 'x', invoice_id, attempt_no, processor, NULL,"
                " 'created', 11801, reason, NULL, created_at, changed_at FROM refund"
            ),
            errors.CheckViolation,
        ),
    ],
)
def test_database_keeps_what_was_paid_back(
    conn: psycopg.Connection[Any], fake: FakeProcessor, statement: Any, error: Any
) -> None:
    ask(conn, fake, a_refund("1.00"))

    with pytest.raises(error):
        conn.execute(statement)


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    with stripe_standin() as standin:
        yield standin


@pytest.mark.usefixtures("owed")
@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["ok", "timeout"],
        ["ok", "lost", "ok", "timeout", "500"],
        ["429", "ok", "409", "ok", "timeout"],
    ],
)
def test_stripe_pays_back_once_whatever_it_answers(
    conn: psycopg.Connection[Any], stripe: StripeStandIn, faults: list[str]
) -> None:
    processor = StripeProcessor(API_KEY, stripe.url, timeout=2)
    collect(conn, processor, NOW)
    stripe.faults = faults

    ask(conn, processor, a_refund("20.00"))
    stripe.answers.clear()
    for hour in range(4):
        settle_refunds(conn, processor, NOW + hour * HOUR)

    assert ask(conn, processor, a_refund("20.00")) == ("succeeded", "CN-2026-000001")
    assert [made["amount"] for made in stripe.refunds.values()] == [2000]
    assert reconcile(conn, OCT, NOW) + compare_processor(conn, processor, OCT) == []


@pytest.mark.usefixtures("owed")
def test_refund_that_stripe_makes_later_is_booked_when_it_is_made(
    conn: psycopg.Connection[Any], stripe: StripeStandIn
) -> None:
    processor = StripeProcessor(API_KEY, stripe.url, timeout=2)
    collect(conn, processor, NOW)
    stripe.refund_status = "pending"
    assert ask(conn, processor, a_refund())[0] == "processing"
    assert balance(conn, "cash") == 11900

    [made] = stripe.refunds.values()
    made["status"] = "succeeded"

    assert settle_refunds(conn, processor, NOW) == 0
    assert balance(conn, "cash") == 0


@pytest.mark.usefixtures("owed")
def test_refund_that_was_made_at_stripe_itself_is_named(
    conn: psycopg.Connection[Any], stripe: StripeStandIn
) -> None:
    processor = StripeProcessor(API_KEY, stripe.url, timeout=2)
    collect(conn, processor, NOW)
    stripe.create("/v1/refunds", {"payment_intent": "pi_1", "amount": "5"}, "by hand")

    [difference] = compare_processor(conn, processor, OCT)

    assert (difference.expected, difference.found) == ("1 refunds", "0 recorded")
