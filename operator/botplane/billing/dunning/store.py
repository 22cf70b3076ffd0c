"""Notices of dunning in Postgres: each step once per invoice, read by people and the operator."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row

from botplane.billing.absent import no_such_tenant
from botplane.billing.dunning.policy import Notice, NoticeKind, steps
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from uuid import UUID

    from psycopg import Connection

    from botplane.billing.payments.store import UnpaidInvoice

SQL = load_queries(__package__)


def give_notices(conn: Connection[Any], unpaid: Iterable[UnpaidInvoice], now: datetime) -> int:
    """Tell tenants what happens to their unpaid invoices; return how many notices are new.

    Raises:
        Retryable: Postgres is away; the next run gives what is missing.
    """
    given = [(invoice, step) for invoice in unpaid for step in steps(invoice.unpaid, now)]
    if not given:
        return 0
    columns = {
        "tenants": [invoice.tenant_id for invoice, _ in given],
        "invoices": [invoice.invoice_id for invoice, _ in given],
        "steps": [step.name for _, step in given],
        "kinds": [step.kind.value for _, step in given],
        "codes": [step.decline_code for _, step in given],
        "next": [step.next_at for _, step in given],
        "now": now,
    }
    with translated_errors(), conn.transaction():
        return conn.execute(SQL["give"], columns).rowcount


def take_untold(conn: Connection[Any], now: datetime) -> list[Notice]:
    """Return the notices that were not posted yet, the oldest first; nobody gets them again.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        return _read(conn, "tell", {"now": now})


def notices_of(conn: Connection[Any], tenant_id: UUID) -> list[Notice]:
    """Return the notices to a tenant, the newest first, a hundred at most.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        return _read(conn, "notices", {"tenant_id": tenant_id})


def notices_by_name(conn: Connection[Any], tenant: str) -> list[Notice]:
    """Return the notices to a named tenant, as `notices_of` does.

    Raises:
        Rejected: There is no such tenant.
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        row = conn.execute(SQL["tenant"], {"tenant": tenant}).fetchone()
    if row is None:
        raise no_such_tenant(tenant)
    return notices_of(conn, row[0])


def _read(conn: Connection[Any], statement: str, asked: dict[str, Any]) -> list[Notice]:
    with conn.cursor(row_factory=class_row(Notice)) as cursor:
        rows = cursor.execute(SQL[statement], asked).fetchall()
    return [replace(row, kind=NoticeKind(row.kind)) for row in rows]
