"""Payments in Postgres: attempts, their outcomes in the ledger, and who is overdue."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg import DataError
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from botplane.billing.absent import no_such_invoice
from botplane.billing.adjustments.store import Order, granting, post, record
from botplane.billing.payments.policy import (
    Attempt,
    AttemptStatus,
    Charge,
    Result,
    Unpaid,
    idempotency_key,
)
from botplane.errors import Rejected
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from psycopg import Connection

SQL = load_queries(__package__)


@dataclass(frozen=True, kw_only=True)
class UnpaidInvoice:
    """An unpaid invoice with what is needed to collect it."""

    tenant_id: UUID
    invoice_id: UUID
    currency: str
    customer_ref: str | None
    method_ref: str | None
    unpaid: Unpaid


def set_payment_method(
    conn: Connection[Any], order: Order, customer_ref: str, method_ref: str
) -> None:
    """Remember by which references the processor charges a tenant.

    Raises:
        Rejected: There is no such tenant.
    """
    with granting(conn, order, "The payment method") as (tenant_id, _):
        row = {
            "tenant_id": tenant_id,
            "customer_ref": customer_ref,
            "method_ref": method_ref,
            "now": order.now,
        }
        if conn.execute(SQL["set_method"], row).rowcount:
            record(conn, order, tenant_id, ("payment_method.set", "method", {}))


def overdue_tenants(conn: Connection[Any]) -> set[UUID]:
    """Return the tenants with an invoice that was not paid in time and still is not."""
    with translated_errors(), conn.transaction():
        return {row[0] for row in conn.execute(SQL["overdue_tenants"])}


def unpaid_invoices(conn: Connection[Any]) -> list[UnpaidInvoice]:
    """Return every invoice on which something is due, the oldest first."""
    attempts: dict[tuple[UUID, UUID], list[Attempt]] = defaultdict(list)
    with translated_errors(), conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(SQL["attempts"]):
            key = row.pop("tenant_id"), row.pop("invoice_id")
            attempts[key].append(Attempt(**row | {"status": AttemptStatus(row["status"])}))
        rows = cursor.execute(SQL["unpaid"]).fetchall()
    return [
        UnpaidInvoice(
            tenant_id=row["tenant_id"],
            invoice_id=row["invoice_id"],
            currency=row["currency"],
            customer_ref=row["customer_ref"],
            method_ref=row["method_ref"],
            unpaid=Unpaid(
                issued_at=row["issued_at"],
                is_given_up=row["status"] == "uncollectible",
                attempts=tuple(attempts[row["tenant_id"], row["invoice_id"]]),
                method_since=row["method_since"],
            ),
        )
        for row in rows
    ]


def begin_attempt(
    conn: Connection[Any], invoice: UnpaidInvoice, processor: str, now: datetime
) -> Charge | None:
    """Write down an attempt before it is made; None when another run was faster."""
    attempt_no = len(invoice.unpaid.attempts) + 1
    key = idempotency_key(invoice.invoice_id, attempt_no)
    row = {
        "tenant_id": invoice.tenant_id,
        "invoice_id": invoice.invoice_id,
        "attempt_no": attempt_no,
        "processor": processor,
        "idempotency_key": key,
        "now": now,
    }
    with translated_errors(), conn.transaction():
        conn.execute(SQL["lock_invoice"], row)
        begun = conn.execute(SQL["begin_attempt"], row).fetchone()
    return None if begun is None else _charge(invoice, attempt_no, begun[0], key)


def open_charge(conn: Connection[Any], invoice: UnpaidInvoice) -> Charge | None:
    """Return the attempt whose outcome is open, as it was sent."""
    row = {"tenant_id": invoice.tenant_id, "invoice_id": invoice.invoice_id}
    with translated_errors(), conn.transaction():
        found = conn.execute(SQL["open_attempt"], row).fetchone()
    return None if found is None else _charge(invoice, *found)


def _charge(invoice: UnpaidInvoice, attempt_no: int, amount_minor: int, key: str) -> Charge:
    return Charge(
        tenant_id=invoice.tenant_id,
        invoice_id=invoice.invoice_id,
        attempt_no=attempt_no,
        amount_minor=amount_minor,
        currency=invoice.currency,
        idempotency_key=key,
        customer_ref=invoice.customer_ref or "",
        method_ref=invoice.method_ref or "",
    )


def record_result(
    conn: Connection[Any], invoice: tuple[UUID, UUID], result: Result, now: datetime
) -> None:
    """Record what became of an attempt; a success pays the invoice and enters the ledger, once.

    What it brings beyond what is open (the invoice is void or credited since) becomes a credit.
    """
    tenant_id, invoice_id = invoice
    row = vars(result) | {"tenant_id": tenant_id, "invoice_id": invoice_id, "now": now}
    with translated_errors(), conn.transaction():
        status, currency = _locked(conn, row)
        open_minor = _open_minor(conn, row)
        changed = conn.execute(SQL["record_result"], row).fetchone()
        if changed is None or result.status is not AttemptStatus.SUCCEEDED:
            return
        applied = min(changed[0], open_minor)
        excess = changed[0] - applied
        row |= {"txn_key": f"payment/{invoice_id}/{result.attempt_no}", "currency": currency}
        entries = {
            "cash": changed[0],
            "bad_debt" if status == "uncollectible" else "receivable": -applied,
            "customer_credit": -excess,
        }
        post(conn, row, entries)
        if excess:
            conn.execute(SQL["credit_of_payment"], row | {"excess": excess})
        conn.execute(SQL["set_status"], row | {"status": "paid"})


def give_up(conn: Connection[Any], invoice: UnpaidInvoice, now: datetime) -> None:
    """Write an invoice off as uncollectible, which makes its tenant overdue; once."""
    row = {"tenant_id": invoice.tenant_id, "invoice_id": invoice.invoice_id, "now": now}
    with translated_errors(), conn.transaction():
        status, currency = _locked(conn, row)
        open_minor = _open_minor(conn, row)
        if status != "finalized" or not open_minor:
            return
        conn.execute(SQL["set_status"], row | {"status": "uncollectible"})
        row |= {"txn_key": f"writeoff/{invoice.invoice_id}", "currency": currency}
        post(conn, row, {"bad_debt": open_minor, "receivable": -open_minor})


def _open_minor(conn: Connection[Any], row: Mapping[str, Any]) -> int:
    """Return what is still to be paid on an invoice that is locked; nothing on a void one."""
    found = conn.execute(SQL["open_minor"], row).fetchone()
    return 0 if found is None else max(int(found[0]), 0)


def _locked(conn: Connection[Any], row: Mapping[str, Any]) -> tuple[str, str]:
    found = conn.execute(SQL["lock_invoice"], row).fetchone()
    if found is None:
        raise Rejected("InvoiceNotFound", f"There is no invoice {row['invoice_id']}.")
    return found[0], found[1]


def record_transfer(
    conn: Connection[Any], number: str, reference: str, actor: str, now: datetime
) -> None:
    """Record that the whole open amount of an invoice was paid outside of a processor, once.

    Raises:
        Rejected: There is no such invoice, it is paid, or the outcome of an attempt is open.
    """
    with translated_errors(), conn.transaction():
        row = conn.execute(SQL["invoice_by_number"], {"number": number}).fetchone()
        if row is None:
            raise no_such_invoice(number)
        tenant_id, tenant, invoice_id, status, attempts = row
        attempt = {
            "tenant_id": tenant_id,
            "invoice_id": invoice_id,
            "attempt_no": attempts + 1,
            "processor": "none",
            "idempotency_key": f"transfer/{reference}",
            "now": now,
        }
        if conn.execute(SQL["begin_attempt"], attempt).fetchone() is None:
            raise _not_payable(conn, attempt, number, status, reference)
        paid = Result(
            attempt_no=attempts + 1, status=AttemptStatus.SUCCEEDED, processor_ref=reference
        )
        record_result(conn, (tenant_id, invoice_id), paid, now)
        order = Order(tenant=tenant, actor=actor, now=now)
        record(conn, order, tenant_id, ("payment.record", number, {"reference": reference}))


def _not_payable(
    conn: Connection[Any], attempt: Mapping[str, Any], number: str, status: str, reference: str
) -> Rejected:
    named = conn.execute(SQL["invoice_of_key"], attempt).fetchone()
    if named is not None and named[0] != number:
        return Rejected(
            "ReferenceUsed",
            f"{reference} has paid invoice {named[0]}; give what it paid of {number} a reference"
            f" of its own, such as {reference}/2.",
        )
    if conn.execute(SQL["open_attempt"], attempt).fetchone() is not None:
        return Rejected(
            "NotPayable",
            f"The outcome of a payment of invoice {number} is open; the next `botplane billing"
            " run` looks for it.",
        )
    return Rejected("NotPayable", f"Invoice {number} is {status}: nothing is owed on it.")


def store_event(
    conn: Connection[Any], processor: str, event: Mapping[str, Any], now: datetime
) -> None:
    """Keep a webhook for the next run; a repeated one changes nothing.

    Raises:
        Rejected: It has characters that Postgres cannot keep.
        Retryable: Postgres is away.
    """
    row = {
        "processor": processor,
        "event_id": event["id"],
        "now": now,
        "body": Jsonb(dict(event)),
    }
    try:
        with translated_errors(), conn.transaction():
            conn.execute(SQL["store_event"], row)
    except DataError as error:
        raise Rejected("EventInvalid", f"The event cannot be kept: {error}") from error


def open_events(conn: Connection[Any], processor: str) -> Sequence[tuple[str, Any]]:
    """Return (id, body) of the webhooks that no run has seen, the oldest first."""
    with translated_errors(), conn.transaction():
        return conn.execute(SQL["open_events"], {"processor": processor}).fetchall()


def tenant_of(conn: Connection[Any], invoice_id: UUID) -> UUID | None:
    """Return the tenant of an invoice."""
    with translated_errors(), conn.transaction():
        row = conn.execute(SQL["invoice_tenant"], {"invoice_id": invoice_id}).fetchone()
    return None if row is None else row[0]


def close_event(conn: Connection[Any], processor: str, event_id: str, now: datetime) -> None:
    """Mark a webhook as seen."""
    row = {"processor": processor, "event_id": event_id, "now": now}
    with translated_errors(), conn.transaction():
        conn.execute(SQL["close_event"], row)
