"""The payment run: open outcomes are looked up, due invoices are charged, late ones given up."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from botplane.billing.dunning.store import give_notices
from botplane.billing.payments import store
from botplane.billing.payments.policy import (
    KEY_LIFETIME,
    AttemptStatus,
    Charge,
    Processor,
    Result,
    Step,
    Unanswered,
    next_step,
)
from botplane.billing.payments.webhooks import Signed, invoice_of, read_body, verify_signature

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from psycopg import Connection


@dataclass(frozen=True, kw_only=True)
class CollectReport:
    """How many invoices a run tried to collect, found unanswered and gave up."""

    charged: int
    unanswered: int
    given_up: int


def collect(conn: Connection[Any], processor: Processor | None, now: datetime) -> CollectReport:
    """Bring every unpaid invoice one step on; repeating it, or two at once, collects nothing twice.

    Without a processor invoices are paid by transfer, and only the term of payment is watched.

    Raises:
        Retryable: Postgres is away; what is written down is taken up by the next run.
    """
    if processor is not None:
        read_events(conn, processor, now)
    counts = dict.fromkeys(Step, 0)
    unanswered = 0
    for invoice in _unpaid(conn, processor):
        step = next_step(invoice.unpaid, now)
        counts[step] += 1
        try:
            _take(conn, processor, (invoice, step), now)
        except Unanswered:
            unanswered += 1
    give_notices(conn, _unpaid(conn, processor), now)
    return CollectReport(
        charged=counts[Step.CHARGE] + counts[Step.REPLACE],
        unanswered=unanswered,
        given_up=counts[Step.GIVE_UP],
    )


def _unpaid(conn: Connection[Any], processor: Processor | None) -> list[store.UnpaidInvoice]:
    """Return what is unpaid; without a processor no payment method can be charged."""
    found = store.unpaid_invoices(conn)
    if processor is not None:
        return found
    return [replace(one, unpaid=replace(one.unpaid, method_since=None)) for one in found]


def _take(
    conn: Connection[Any],
    processor: Processor | None,
    what: tuple[store.UnpaidInvoice, Step],
    now: datetime,
) -> None:
    invoice, step = what
    if step is Step.GIVE_UP:
        store.give_up(conn, invoice, now)
    elif processor is not None and step is Step.CHARGE:
        _charge(conn, processor, invoice, now)
    elif processor is not None and step is Step.REPLACE:
        _replace(conn, processor, invoice, now)
    elif processor is not None and step is Step.LOOK_UP:
        _resolve(conn, processor, invoice, now)


def _charge(
    conn: Connection[Any], processor: Processor, invoice: store.UnpaidInvoice, now: datetime
) -> None:
    charge = store.begin_attempt(conn, invoice, processor.name, now)
    if charge is not None:
        _send(conn, processor, charge, now)


def _replace(
    conn: Connection[Any], processor: Processor, invoice: store.UnpaidInvoice, now: datetime
) -> None:
    """Try the new payment method in place of an attempt that waits for its payer.

    Only once the processor says that the old one can no more succeed.
    """
    key = (invoice.tenant_id, invoice.invoice_id)
    old = _adopt(conn, processor, key, now).get(invoice.unpaid.attempts[-1].attempt_no)
    if old is not None and old.status is AttemptStatus.REQUIRES_ACTION:
        old = processor.cancel(old)
        store.record_result(conn, key, old, now)
    if old is not None and old.status is AttemptStatus.FAILED:
        _charge(conn, processor, invoice, now)


def _send(conn: Connection[Any], processor: Processor, charge: Charge, now: datetime) -> None:
    key = (charge.tenant_id, charge.invoice_id)
    try:
        result = processor.charge(charge)
    except Unanswered:
        unknown = Result(
            attempt_no=charge.attempt_no, status=AttemptStatus.UNKNOWN, processor_ref=None
        )
        store.record_result(conn, key, unknown, now)
        raise
    store.record_result(conn, key, result, now)


def _resolve(
    conn: Connection[Any], processor: Processor, invoice: store.UnpaidInvoice, now: datetime
) -> None:
    """Find out what became of an open attempt before anything else is tried.

    What the processor does not know is sent again under the same key while it remembers keys;
    after that it has not happened.
    """
    charge, last = store.open_charge(conn, invoice), invoice.unpaid.attempts[-1]
    if charge is None or charge.attempt_no != last.attempt_no:
        return  # a run beside this one has found it out, or has begun the next attempt
    key = (invoice.tenant_id, invoice.invoice_id)
    if charge.attempt_no in _adopt(conn, processor, key, now):
        return
    if now < last.created_at + KEY_LIFETIME:
        _send(conn, processor, charge, now)
        return
    lost = Result(
        attempt_no=charge.attempt_no,
        status=AttemptStatus.FAILED,
        processor_ref=None,
        decline_code="never_arrived",
    )
    store.record_result(conn, key, lost, now)


def _adopt(
    conn: Connection[Any], processor: Processor, invoice: tuple[UUID, UUID], now: datetime
) -> dict[int, Result]:
    """Record what the processor knows of an invoice; return it by number of the attempt."""
    results = processor.lookup(invoice[1])
    for result in results:
        store.record_result(conn, invoice, result, now)
    return {result.attempt_no: result for result in results}


def receive_webhook(conn: Connection[Any], processor: str, signed: Signed, now: datetime) -> None:
    """Keep a webhook that one of the secrets has signed; the next run acts on it.

    Raises:
        Rejected: The signature or the body is not valid.
        Retryable: Postgres is away: the sender will try again.
    """
    verify_signature(signed.body, signed.header, signed.secrets, now)
    store.store_event(conn, processor, read_body(signed.body), now)


def read_events(conn: Connection[Any], processor: Processor, now: datetime) -> None:
    """Act on stored webhooks: they only say which invoice to look up, in whatever order they came.

    One that cannot be looked up now stays for the next run.
    """
    for event_id, body in store.open_events(conn, processor.name):
        with suppress(Unanswered):
            _read_event(conn, processor, body, now)
            store.close_event(conn, processor.name, event_id, now)


def _read_event(conn: Connection[Any], processor: Processor, body: Any, now: datetime) -> None:
    invoice_id = invoice_of(body)
    tenant_id = None if invoice_id is None else store.tenant_of(conn, invoice_id)
    if invoice_id is not None and tenant_id is not None:
        _adopt(conn, processor, (tenant_id, invoice_id), now)
