"""Void invoices in Postgres: the number stays, the books forget it, its period is billed anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row, dict_row

from botplane.billing.absent import no_such_invoice
from botplane.billing.adjustments.store import Order, expire_credits, post, record
from botplane.billing.invoices import Status
from botplane.billing.voids.policy import Standing, must_be_voidable, reversal
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import Connection

SQL = load_queries(__package__)


@dataclass(frozen=True, kw_only=True)
class VoidTerms:
    """Which invoice is wrong as a whole, and why: the reason is in the audit chain."""

    invoice_number: str
    reason: str


def void_invoice(conn: Connection[Any], terms: VoidTerms, actor: str, now: datetime) -> None:
    """Make an issued invoice void, once.

    What it used of coupons, credits and carried balances is there again, and the next billing run
    issues another invoice of its period from the usage, prices and grants that are stored then.

    Raises:
        Rejected: There is no such invoice, or it cannot be made void.
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        with conn.cursor(row_factory=dict_row) as cursor:
            number = {"number": terms.invoice_number}
            row = cursor.execute(SQL["lock_invoice"], number).fetchone()
        if row is None:
            raise no_such_invoice(terms.invoice_number)
        with conn.cursor(row_factory=class_row(Standing)) as cursor:
            invoice = cursor.execute(SQL["standing"], row).fetchone()
        if invoice is None or invoice.status == Status.VOID:
            return
        must_be_voidable(terms.invoice_number, invoice, now)
        booked: dict[str, int] = dict(conn.execute(SQL["booked"], row).fetchall())
        posting = row | {"txn_key": f"void/{row['invoice_id']}", "now": now}
        post(conn, posting, reversal(booked))
        for statement in ("void", "reopen", "mark_again", "forget_actual"):
            conn.execute(SQL[statement], row)
        expire_credits(conn, now, row["tenant_id"])
        order = Order(tenant=row["tenant"], actor=actor, now=now)
        said = {"reason": terms.reason}
        record(conn, order, row["tenant_id"], ("invoice.void", terms.invoice_number, said))
