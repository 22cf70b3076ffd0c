"""Paying back: what a person asks for, and the outcomes that are still open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botplane.billing.payments.policy import AttemptStatus, RefundResult, Unanswered
from botplane.billing.refunds import store

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import Connection

    from botplane.billing.payments.policy import Processor, Refund


def refund(
    conn: Connection[Any],
    terms: store.RefundTerms,
    processor: Processor | None,
    order: tuple[str, datetime],
) -> store.Outcome:
    """Pay back what a person (actor, now) asks for; the same reference again is the same refund.

    Where the processor does not answer, the outcome is `unknown` and the next run finds it out.

    Raises:
        Rejected: It cannot be paid back.
        Retryable: Postgres is away; what is written down is taken up by the next run.
    """
    name = None if processor is None else processor.name
    tenant_id = store.request_refund(conn, terms, name, order)
    if processor is not None:
        for one in store.open_refunds(conn, processor.name, (tenant_id, terms.reference)):
            _settle(conn, processor, one, order[1])
    return store.outcome_of(conn, tenant_id, terms.reference)


def settle_refunds(conn: Connection[Any], processor: Processor | None, now: datetime) -> int:
    """Find out what became of open refunds, make those that were not, return how many stay open.

    Raises:
        Retryable: Postgres is away.
    """
    if processor is None:
        return 0
    for one in store.open_refunds(conn, processor.name):
        _settle(conn, processor, one, now)
    return len(store.open_refunds(conn, processor.name))


def _settle(conn: Connection[Any], processor: Processor, one: Refund, now: datetime) -> None:
    """Look up first: a processor forgets keys after a day, and never what it has paid back."""
    invoice = (one.tenant_id, one.invoice_id)
    try:
        known = [r for r in processor.refunds(one.payment_ref) if r.reference == one.reference]
        result = known[0] if known else processor.refund(one)
    except Unanswered:
        result = RefundResult(
            reference=one.reference, status=AttemptStatus.UNKNOWN, processor_ref=None
        )
    store.record_result(conn, invoice, result, now)
