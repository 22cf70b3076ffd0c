"""Refunds in Postgres: written down before they are made; what succeeds has a credit note."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row, dict_row

from botplane.billing.absent import no_such_invoice
from botplane.billing.adjustments.notes import TaxShare, refund_note
from botplane.billing.adjustments.store import Order, insert_note, post, record
from botplane.billing.invoices import amount_text
from botplane.billing.money import to_minor
from botplane.billing.payments.policy import AttemptStatus, Refund, RefundResult, refund_key
from botplane.billing.refunds.policy import BY_TRANSFER, Refundable, amount_to_refund
from botplane.errors import Rejected
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from psycopg import Connection

SQL = load_queries(__package__)


@dataclass(frozen=True, kw_only=True)
class RefundTerms:
    """A refund as finance people write it; `reference` makes a repeated one the same refund.

    Attributes:
        amount: In the major unit, tax included; None: all that was paid and is left.
    """

    invoice_number: str
    reference: str
    reason: str
    amount: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a refund; `note` is the number of its credit note."""

    status: AttemptStatus
    decline_code: str | None
    note: str | None


def request_refund(
    conn: Connection[Any], terms: RefundTerms, processor: str | None, order: tuple[str, datetime]
) -> UUID:
    """Write a refund down, once, and return whose it is; of a transfer it is made with that.

    Args:
        conn: Connection without an open transaction.
        terms: What is asked for.
        processor: The processor that is set.
        order: Who asks, and when.

    Raises:
        Rejected: There is no such invoice, so much of it was not paid, or the reference belongs
            to another refund.
        Retryable: Postgres is away.
    """
    actor, now = order
    with translated_errors(), conn.transaction():
        found = conn.execute(SQL["lock_invoice"], {"number": terms.invoice_number}).fetchone()
        if found is None:
            raise no_such_invoice(terms.invoice_number)
        key = {"tenant_id": found[0], "invoice_id": found[1], "reference": terms.reference}
        with conn.cursor(row_factory=class_row(Refundable)) as cursor:
            [invoice] = cursor.execute(SQL["refundable"], key).fetchall()
        asked = None if terms.amount is None else to_minor(terms.amount, invoice.currency)
        known = conn.execute(SQL["known"], key).fetchone()
        if known is not None:
            if known != (invoice.invoice_id, known[1] if asked is None else asked):
                raise Rejected("ReferenceUsed", f"{terms.reference} is another refund already.")
            return invoice.tenant_id
        amount = amount_to_refund(invoice, asked, processor)
        row = vars(terms) | vars(invoice) | {"amount_minor": amount, "now": now}
        conn.execute(SQL["begin_refund"], row)
        said = {
            "invoice": terms.invoice_number,
            "amount": amount_text(amount, invoice.currency),
            "reason": terms.reason,
        }
        entry = ("payment.refund", terms.reference, said)
        record(conn, Order(tenant=invoice.tenant, actor=actor, now=now), invoice.tenant_id, entry)
        if invoice.processor == BY_TRANSFER:
            done = RefundResult(
                reference=terms.reference, status=AttemptStatus.SUCCEEDED, processor_ref=None
            )
            record_result(conn, (invoice.tenant_id, invoice.invoice_id), done, now)
    return invoice.tenant_id


def open_refunds(
    conn: Connection[Any], processor: str, one: tuple[UUID, str] | None = None
) -> list[Refund]:
    """Return the refunds whose outcome is open, the oldest first; `one` is (tenant, reference)."""
    tenant_id, reference = one or (None, None)
    asked = {"processor": processor, "tenant_id": tenant_id, "reference": reference}
    with translated_errors(), conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(SQL["open_refunds"], asked).fetchall()
    return [
        Refund(**row, idempotency_key=refund_key(row["tenant_id"], row["reference"]))
        for row in rows
    ]


def record_result(
    conn: Connection[Any], invoice: tuple[UUID, UUID], result: RefundResult, now: datetime
) -> None:
    """Record what became of a refund; a success makes its credit note and enters the ledger."""
    key = {"tenant_id": invoice[0], "invoice_id": invoice[1], "now": now}
    row = vars(result) | key
    with translated_errors(), conn.transaction():
        refunded = conn.execute(SQL["lock_refunded"], row).fetchone()
        changed = conn.execute(SQL["record_result"], row).fetchone()
        if refunded is None or changed is None or result.status is not AttemptStatus.SUCCEEDED:
            return
        (currency, total_minor, tax_minor), (amount, reason) = refunded, changed
        [(credited, credited_tax)] = conn.execute(SQL["credited"], row).fetchall()
        share = TaxShare(
            total_minor=total_minor,
            tax_minor=tax_minor,
            credited_minor=credited,
            credited_tax_minor=credited_tax,
        )
        note = refund_note(share, amount)
        reference = f"refund/{result.reference}"
        insert_note(conn, note, key | {"reference": reference, "reason": reason})
        post(conn, key | {"txn_key": reference, "currency": currency}, note.entries)


def outcome_of(conn: Connection[Any], tenant_id: UUID, reference: str) -> Outcome:
    """Return what became of a refund that was written down."""
    with translated_errors(), conn.transaction():
        row = conn.execute(
            SQL["outcome"], {"tenant_id": tenant_id, "reference": reference}
        ).fetchone()
    if row is None:
        raise Rejected("RefundNotFound", f"There is no refund {reference}.")
    status, decline_code, note = row
    return Outcome(status=AttemptStatus(status), decline_code=decline_code, note=note)
