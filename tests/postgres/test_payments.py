"""Money is collected once, whatever answers are lost; who does not pay in time is overdue."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from botplane.billing.adjustments.store import NoteTerms, Order, issue_credit_note
from botplane.billing.payments.fake import FakeProcessor, Fault
from botplane.billing.payments.policy import Result
from botplane.billing.payments.run import collect, receive_webhook
from botplane.billing.payments.store import (
    overdue_tenants,
    record_transfer,
    set_payment_method,
)
from botplane.billing.payments.webhooks import Signed, signature
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.errors import Rejected
from botplane.tenants.store import register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until, whole_content

NOW = at("2026-11-02T09:00:00Z")
DAY = timedelta(days=1)
NEW_SECRET = "whsec_new"
NUMBER = "INV-2026-000001"
ORDER = Order(tenant="acme", actor="ana", now=at("2026-10-01"))


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> UUID:
    """A tenant that owes 284.38 for October and has given a card."""
    publish_plan(conn, a_plan(fee="284.38"), at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    set_payment_method(conn, ORDER, "cus_1", "card_ok")
    complete_until(conn, NOW)
    assert billing_run(conn, NOW).billed == 1
    return account.tenant_id


def status(conn: psycopg.Connection[Any]) -> str:
    return invoice(conn, "acme", "2026-10", NOW).status.value


def attempts(conn: psycopg.Connection[Any]) -> list[Any]:
    return conn.execute("SELECT status FROM payment_attempt ORDER BY attempt_no").fetchall()


def balance(conn: psycopg.Connection[Any], account: str) -> int:
    row = conn.execute(
        "SELECT COALESCE(sum(amount_minor), 0)::bigint FROM ledger_entry WHERE account = %s",
        [account],
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.usefixtures("acme")
def test_payment_pays_the_invoice_and_enters_the_ledger_once(
    conn: psycopg.Connection[Any],
) -> None:
    processor = FakeProcessor()
    collect(conn, processor, NOW)
    before = whole_content(conn)

    collect(conn, processor, NOW + DAY)

    assert whole_content(conn) == before
    assert status(conn) == "paid"
    assert (balance(conn, "cash"), balance(conn, "receivable")) == (28438, 0)
    assert [charge.amount_minor for charge in processor.captured.values()] == [28438]


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    "faults",
    [
        [Fault.LOST_ANSWER],
        [Fault.LOST_REQUEST],
        [Fault.LOST_ANSWER, Fault.LOST_ANSWER],
        [Fault.LOST_REQUEST, None, Fault.LOST_ANSWER],
        [Fault.LOST_REQUEST, None, Fault.LOST_REQUEST, Fault.LOST_REQUEST],
    ],
)
def test_lost_answers_are_looked_up_and_nothing_is_paid_twice(
    conn: psycopg.Connection[Any], faults: list[Fault | None]
) -> None:
    processor = FakeProcessor(faults=faults)
    for hour in range(6):
        collect(conn, processor, NOW + timedelta(hours=hour))

    assert status(conn) == "paid"
    assert attempts(conn) == [("succeeded",)]
    assert len(processor.captured) == 1
    assert balance(conn, "cash") == 28438


@pytest.mark.usefixtures("acme")
def test_captured_payment_is_found_after_the_processor_has_forgotten_its_key(
    conn: psycopg.Connection[Any],
) -> None:
    processor = FakeProcessor(faults=[Fault.LOST_ANSWER])
    assert collect(conn, processor, NOW).unanswered == 1
    processor.forget_keys()

    collect(conn, processor, NOW + 2 * DAY)

    assert status(conn) == "paid"
    assert len(processor.captured) == 1


@pytest.mark.usefixtures("acme")
def test_request_that_never_arrived_is_tried_anew_when_its_key_is_too_old(
    conn: psycopg.Connection[Any],
) -> None:
    processor = FakeProcessor(faults=[Fault.LOST_REQUEST])
    collect(conn, processor, NOW)
    collect(conn, processor, NOW + DAY)
    assert attempts(conn) == [("failed",)]

    collect(conn, processor, NOW + 4 * DAY)

    assert attempts(conn) == [("failed",), ("succeeded",)]


@pytest.mark.usefixtures("acme")
def test_second_attempt_is_looked_up_although_the_first_is_known(
    conn: psycopg.Connection[Any],
) -> None:
    processor = FakeProcessor(declines={"card_ok": "insufficient_funds"})
    collect(conn, processor, NOW)
    processor.declines.clear()
    processor.faults = [Fault.LOST_REQUEST]
    collect(conn, processor, NOW + 3 * DAY)

    collect(conn, processor, NOW + 3 * DAY + timedelta(hours=1))

    assert attempts(conn) == [("failed",), ("succeeded",)]


def test_declined_payment_is_retried_given_up_and_resumed_with_a_new_card(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    processor = FakeProcessor(declines={"card_ok": "insufficient_funds"})
    for day in range(15):
        collect(conn, processor, NOW + day * DAY)
    assert (attempts(conn), status(conn)) == ([("failed",)] * 3, "finalized")
    assert overdue_tenants(conn) == set()

    collect(conn, processor, NOW + 15 * DAY)
    assert collect(conn, processor, NOW + 15 * DAY).given_up == 1

    assert (attempts(conn), status(conn)) == ([("failed",)] * 4, "uncollectible")
    assert overdue_tenants(conn) == {acme}
    assert (balance(conn, "receivable"), balance(conn, "bad_debt")) == (0, 28438)

    set_payment_method(conn, replace(ORDER, now=NOW + 20 * DAY), "cus_1", "card_new")
    collect(conn, processor, NOW + 20 * DAY)

    assert status(conn) == "paid"
    assert overdue_tenants(conn) == set()
    assert (balance(conn, "bad_debt"), balance(conn, "cash")) == (0, 28438)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    "faults",
    [
        [],
        [None, Fault.LOST_REQUEST],
        [None, Fault.LOST_ANSWER],
        [None, None, Fault.LOST_ANSWER],
        [Fault.LOST_ANSWER, None, Fault.LOST_ANSWER, None, None, Fault.LOST_REQUEST],
    ],
)
def test_new_card_replaces_a_payment_that_waits_for_its_payer(
    conn: psycopg.Connection[Any], faults: list[Fault | None]
) -> None:
    processor = FakeProcessor(declines={"card_ok": "requires_action"})
    collect(conn, processor, NOW)
    set_payment_method(conn, replace(ORDER, now=NOW + DAY), "cus_1", "card_new")
    processor.faults = faults

    for hour in range(6):
        collect(conn, processor, NOW + DAY + timedelta(hours=hour))

    assert (attempts(conn), status(conn)) == ([("failed",), ("succeeded",)], "paid")
    assert [charge.method_ref for charge in processor.captured.values()] == ["card_new"]
    assert balance(conn, "cash") == 28438


def test_payer_who_confirms_after_giving_a_new_card_pays_once(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    processor = FakeProcessor(declines={"card_ok": "requires_action"})
    collect(conn, processor, NOW)
    set_payment_method(conn, replace(ORDER, now=NOW + DAY), "cus_1", "card_new")
    [invoice_id] = conn.execute("SELECT invoice_id FROM invoice").fetchall()[0]

    processor.confirm(invoice_id)
    collect(conn, processor, NOW + DAY)

    assert (attempts(conn), status(conn)) == ([("succeeded",)], "paid")
    assert [charge.method_ref for charge in processor.captured.values()] == ["card_ok"]
    assert overdue_tenants(conn) == set()
    assert acme


def test_new_card_is_tried_when_a_waiting_payment_was_given_up(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    processor = FakeProcessor(declines={"card_ok": "requires_action"})
    for day in (0, 15):
        collect(conn, processor, NOW + day * DAY)
    assert overdue_tenants(conn) == {acme}

    set_payment_method(conn, replace(ORDER, now=NOW + 16 * DAY), "cus_1", "card_new")
    collect(conn, processor, NOW + 16 * DAY)

    assert (attempts(conn), status(conn)) == ([("failed",), ("succeeded",)], "paid")
    assert overdue_tenants(conn) == set()
    assert (balance(conn, "bad_debt"), balance(conn, "cash")) == (0, 28438)


def test_without_a_processor_an_invoice_is_overdue_after_its_term_and_paid_by_transfer(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    collect(conn, None, NOW + 14 * DAY)
    assert overdue_tenants(conn) == set()
    collect(conn, None, NOW + 15 * DAY)
    assert overdue_tenants(conn) == {acme}

    record_transfer(conn, NUMBER, "bank-77", "ana", NOW + 16 * DAY)

    assert overdue_tenants(conn) == set()
    assert (status(conn), balance(conn, "cash")) == ("paid", 28438)
    with pytest.raises(Rejected) as refused:
        record_transfer(conn, NUMBER, "bank-78", "ana", NOW + 16 * DAY)
    assert refused.value.reason == "NotPayable"
    assert "is paid: nothing is owed" in refused.value.message


@pytest.mark.usefixtures("acme")
def test_transfer_that_cannot_be_recorded_is_told_why(conn: psycopg.Connection[Any]) -> None:
    record_transfer(conn, NUMBER, "bank-77", "ana", NOW)
    later = at("2026-12-02T09:00:00Z")
    complete_until(conn, later)
    assert billing_run(conn, later).billed == 1
    second = "INV-2026-000002"

    with pytest.raises(Rejected) as refused:
        record_transfer(conn, second, "bank-77", "ana", later)
    assert refused.value.reason == "ReferenceUsed"
    assert f"bank-77 has paid invoice {NUMBER}" in refused.value.message

    collect(conn, FakeProcessor(faults=[Fault.LOST_ANSWER]), later)
    with pytest.raises(Rejected, match=r"outcome of a payment .* is open"):
        record_transfer(conn, second, "bank-78", "ana", later)


@pytest.mark.usefixtures("acme")
def test_two_runs_at_once_collect_once(conn: psycopg.Connection[Any], migrated: str) -> None:
    processor, start = FakeProcessor(), threading.Barrier(3)

    def work() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            start.wait()
            collect(mine, processor, NOW)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    collect(conn, processor, NOW)

    assert (status(conn), attempts(conn)) == ("paid", [("succeeded",)])
    assert len(processor.captured) == 1


@dataclass
class Slow(FakeProcessor):
    """Lets other things happen before it answers the first look-up."""

    meanwhile: Callable[[], None] = lambda: None

    def lookup(self, invoice_id: UUID) -> Sequence[Result]:
        """Return what was decided about an invoice, later."""
        first, self.meanwhile = self.meanwhile, lambda: None
        first()
        return super().lookup(invoice_id)


@pytest.mark.usefixtures("acme")
def test_attempt_that_another_run_has_just_made_is_not_taken_for_a_lost_old_one(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    december, new_card = at("2026-12-02T09:00:00Z"), at("2026-12-04T09:00:00Z")
    later = december + 2 * DAY
    complete_until(conn, december)
    assert billing_run(conn, december).billed == 1
    processor = Slow(declines={"card_ok": "insufficient_funds"})
    processor.faults = [Fault.LOST_ANSWER, Fault.LOST_ANSWER]
    assert collect(conn, processor, december).unanswered == 2

    def another_run() -> None:
        with psycopg.connect(migrated, autocommit=True) as other:
            collect(other, processor, later)
            set_payment_method(other, replace(ORDER, now=new_card), "cus_1", "new_card")
            processor.faults = [Fault.LOST_REQUEST, Fault.LOST_REQUEST]
            collect(other, processor, later)

    processor.meanwhile = another_run
    collect(conn, processor, later)
    collect(conn, processor, later + timedelta(hours=1))

    assert attempts(conn) == 2 * [("failed",)] + 2 * [("succeeded",)]


def a_webhook(invoice_id: UUID, event_id: str, kind: str = "payment_intent.succeeded") -> bytes:
    metadata = {"invoice_id": str(invoice_id), "attempt": "1"}
    event = {"id": event_id, "type": kind, "data": {"object": {"metadata": metadata}}}
    return json.dumps(event).encode()


def sent(body: bytes, secret: str = NEW_SECRET) -> Signed:
    at_second = int(NOW.timestamp())
    header = f"t={at_second},v1={signature(body, at_second, secret)}"
    return Signed(body=body, header=header, secrets=("whsec_new", "whsec_old"))


def test_webhooks_twice_and_out_of_order_only_cause_a_look_up(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    processor = FakeProcessor(faults=[Fault.LOST_ANSWER])
    collect(conn, processor, NOW)
    [invoice_id] = conn.execute("SELECT invoice_id FROM invoice").fetchall()[0]
    for event_id, kind, secret in (
        ("evt_2", "payment_intent.succeeded", "whsec_old"),
        ("evt_2", "payment_intent.succeeded", "whsec_new"),
        ("evt_1", "payment_intent.payment_failed", "whsec_new"),
    ):
        receive_webhook(conn, "fake", sent(a_webhook(invoice_id, event_id, kind), secret), NOW)
    receive_webhook(conn, "fake", sent(b'{"id": "evt_3"}'), NOW)

    collect(conn, processor, NOW)

    assert (status(conn), attempts(conn)) == ("paid", [("succeeded",)])
    assert balance(conn, "cash") == 28438
    seen = conn.execute("SELECT count(*), count(processed_at) FROM webhook_inbox").fetchone()
    assert seen == (3, 3)
    assert acme


@pytest.mark.usefixtures("acme")
def test_webhook_that_nobody_signed_is_not_kept(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(Rejected):
        receive_webhook(conn, "fake", sent(b'{"id": "evt_1"}', "whsec_other"), NOW)

    assert conn.execute("SELECT count(*) FROM webhook_inbox").fetchone() == (0,)


@pytest.mark.usefixtures("acme")
def test_credit_note_during_a_payment_does_not_change_its_amount(
    conn: psycopg.Connection[Any],
) -> None:
    processor = FakeProcessor(faults=[Fault.LOST_ANSWER])
    collect(conn, processor, NOW)
    terms = NoteTerms(invoice_number=NUMBER, reference="r", amount="10.00", reason="Outage")
    issue_credit_note(conn, terms, "ana", NOW)

    collect(conn, processor, NOW)

    assert status(conn) == "paid"
    assert (balance(conn, "receivable"), balance(conn, "customer_credit")) == (0, -1000)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE payment_attempt SET status = 'failed'",
        "UPDATE payment_attempt SET amount_minor = 1",
        "DELETE FROM payment_attempt",
        "TRUNCATE payment_attempt CASCADE",
    ],
)
def test_payment_that_was_made_never_changes(conn: psycopg.Connection[Any], statement: Any) -> None:
    collect(conn, FakeProcessor(), NOW)

    with pytest.raises(errors.RestrictViolation):
        conn.execute(statement)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(("first", "second"), [("created", "unknown"), ("succeeded", "succeeded")])
def test_database_refuses_a_second_open_or_successful_attempt(
    conn: psycopg.Connection[Any], first: str, second: str
) -> None:
    insert = (
        "INSERT INTO payment_attempt SELECT tenant_id, invoice_id, %(n)s, 'x', %(n)s::text, NULL,"
        " %(status)s, 1, NULL, now(), now() FROM invoice"
    )
    conn.execute(insert, {"n": 1, "status": first})

    with pytest.raises(errors.UniqueViolation):
        conn.execute(insert, {"n": 2, "status": second})
