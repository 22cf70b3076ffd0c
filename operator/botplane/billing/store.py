"""Billing in Postgres: the price book and the invoices."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from botplane.billing import rows
from botplane.billing.adjustments import store as adjustments
from botplane.billing.invoices import BilledPeriod, Invoice, Line, Settled, draft, finalize
from botplane.billing.settlement import NO_LIMITS, Account, ChargeLimits, after, settle
from botplane.errors import Rejected, Retryable
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg import Connection, Cursor

    from botplane.billing.pricebook import PriceBook

SQL = load_queries(__package__)
_UNBILLABLE = (psycopg.DataError, psycopg.IntegrityError, psycopg.InternalError, ArithmeticError)
"""What one tenant's data can do to its bill; the bills of the others go on."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The next periods to bill: ended before `complete_until`, after the cursor, at most `limit`.

    The cursor is the last (ends_at, tenant_id) that the run has seen.
    """

    complete_until: datetime
    after: tuple[datetime, UUID]
    limit: int


@dataclass(frozen=True, kw_only=True)
class Issue:
    """When invoices are issued, and what can be collected, by currency."""

    now: datetime
    charge_limits: Mapping[str, ChargeLimits]


@dataclass(frozen=True, kw_only=True)
class Parked:
    """A period that could not be billed, and why."""

    billed: BilledPeriod
    reason: str


def publish_plan(conn: Connection[Any], book: PriceBook, now: datetime) -> int:
    """Record the prices of a plan and return their revision; change no row for equal content.

    The first revision holds for all time before, so that a subscription may start in the past;
    each later one holds from now, to the second.

    Raises:
        Rejected: The currency of a published plan would change.
        Retryable: Another revision was published in this second, or Postgres is away.
    """
    moment = now.replace(microsecond=0)
    with translated_errors(), conn.transaction():
        names = {"plan": book.plan, "currency": book.currency, "now": moment}
        conn.execute(SQL["insert_plan"], names)
        row = conn.execute(SQL["plan_currency"], names).fetchone()
        if row != (book.currency,):
            raise Rejected(
                "CurrencyFixed",
                f"Plan {book.plan} is published in {row and row[0]}; create another plan for "
                f"{book.currency}.",
            )
        latest = conn.execute(SQL["latest_version"], names).fetchone()
        if latest is None:
            return _insert_version(conn, book, names | {"version": 1, "effective_from": None})
        version, content, since = latest
        if content == book.content_hash:
            return int(version)
        if since is not None and since >= moment:
            raise Retryable(
                "PlanJustPublished", f"Plan {book.plan} got revision {version} at {since}.", 1.0
            )
        conn.execute(SQL["end_version"], names)
        return _insert_version(
            conn, book, names | {"version": version + 1, "effective_from": moment}
        )


def _insert_version(conn: Connection[Any], book: PriceBook, version: dict[str, Any]) -> int:
    terms = book.commission
    conn.execute(
        SQL["insert_version"],
        version
        | {
            "fee_minor": book.fee_minor,
            "minimum_commitment_minor": book.minimum_commitment_minor,
            "rate": terms.rate,
            "cap_per_trade_minor": terms.cap_per_trade_minor,
            "cap_per_period_minor": terms.cap_per_period_minor,
            "content_hash": book.content_hash,
        },
    )
    conn.execute(SQL["audit_plan"], version | {"revision": Jsonb({"version": version["version"]})})
    discounts = [
        version | {"from_volume_minor": volume, "discount": discount}
        for volume, discount in terms.volume_discounts
    ]
    with conn.cursor() as cursor:
        cursor.executemany(SQL["insert_volume_discount"], discounts)
        cursor.executemany(SQL["insert_price"], [version | vars(price) for price in book.prices])
        cursor.executemany(
            SQL["insert_tier"],
            [
                version | {"meter": price.meter} | vars(tier)
                for price in book.prices
                for tier in price.tiers
            ],
        )
    return int(version["version"])


def prepare(conn: Connection[Any], now: datetime) -> None:
    """Make the periods and the partitions that the moment needs, where they are missing."""
    with translated_errors(), conn.transaction():
        conn.execute(SQL["ensure_partitions"], {"now": now})
        conn.execute(SQL["ensure_periods"], {"now": now})


def complete_until(conn: Connection[Any]) -> datetime | None:
    """Return the moment before which all usage is here; None while metering never reported."""
    with translated_errors(), conn.transaction():
        row = conn.execute(SQL["complete_until"]).fetchone()
    return None if row is None else row[0]


def waiting_periods(conn: Connection[Any], complete: datetime | None, now: datetime) -> int:
    """Count the ended periods whose usage is not complete yet."""
    with translated_errors(), conn.transaction():
        row = conn.execute(
            SQL["waiting_periods"], {"complete_until": complete, "now": now}
        ).fetchone()
    return 0 if row is None else int(row[0])


def find_period(
    conn: Connection[Any], tenant: str, period: str | None, now: datetime
) -> BilledPeriod:
    """Return a period of a tenant by name, or the one that holds the moment.

    Raises:
        Rejected: There is no such tenant, or it has no such period.
    """
    names = {"tenant": tenant, "period": period, "now": now}
    with translated_errors(), conn.transaction():
        conn.execute(SQL["ensure_periods"], names)
        with conn.cursor(row_factory=class_row(BilledPeriod)) as cursor:
            found = cursor.execute(SQL["named_period"], names).fetchone()
        bounds = conn.execute(SQL["period_names"], names).fetchone()
    if found is not None:
        return in_utc(found)
    if bounds is None:
        raise Rejected("TenantNotFound", f"No tenant {tenant} was ever registered for billing.")
    known = "none yet" if bounds[0] is None else f"{bounds[0]} to {bounds[1]}"
    raise Rejected(
        "PeriodNotFound",
        f"Tenant {tenant} has no billing period {period or 'now'}; it has {known}.",
    )


def draft_invoice(
    conn: Connection[Any], billed: BilledPeriod, until: datetime, reason: str
) -> Invoice:
    """Return what the invoice would be with the usage up to a moment; store nothing."""
    with translated_errors(), conn.transaction():
        lines = _charges(conn, [billed], until).get((billed.tenant_id, billed.period), ())
        account = adjustments.accounts(conn, [billed.tenant_id])[billed.tenant_id]
    return draft(billed, settle(billed, lines, account), reason)


def stored_invoice(conn: Connection[Any], billed: BilledPeriod) -> Invoice | None:
    """Return the invoice of a period as it was issued, or None."""
    key = {"tenant_id": billed.tenant_id, "period": billed.period}
    with translated_errors(), conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(SQL["stored_invoice"], key).fetchone()
        if row is None:
            return None
        parts = stored_parts(cursor, key | row)
    return rows.read_invoice(billed, row, parts)


def stored_parts(
    cursor: Cursor[dict[str, Any]], key: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that an invoice consists of, in the caller's transaction."""
    return {
        name: cursor.execute(SQL[f"stored_{name}"], key).fetchall()
        for name in ("lines", "discounts", "taxes", "credits")
    }


def bill_period(conn: Connection[Any], billed: BilledPeriod, issue: Issue) -> None:
    """Issue the invoice of one ended period whose usage is complete; a second call does nothing."""
    with translated_errors(), conn.transaction():
        key = {"tenant_id": billed.tenant_id, "period": billed.period}
        if conn.execute(SQL["lock_due_period"], key).rowcount:
            _issue(conn, [billed], issue)


def bill_batch(
    conn: Connection[Any], batch: Batch, issue: Issue
) -> tuple[list[BilledPeriod], list[Parked]]:
    """Issue the invoices of the next due periods in one transaction.

    A period that cannot be billed is parked with the reason, the others are billed; a later run
    tries it again.

    Returns:
        The periods of the batch, none at the end, and those of them that were parked.
    """
    with translated_errors(), conn.transaction():
        due = _due_periods(conn, batch)
        return due, _issue_or_park(conn, due, issue)


def _issue_or_park(
    conn: Connection[Any], due: Sequence[BilledPeriod], issue: Issue
) -> list[Parked]:
    try:
        with conn.transaction():
            _issue(conn, due, issue)
            conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
    except _UNBILLABLE as error:
        if len(due) > 1:
            return [parked for billed in due for parked in _issue_or_park(conn, [billed], issue)]
        parked = Parked(billed=due[0], reason=f"{type(error).__name__}: {error}")
        conn.execute(
            SQL["park_period"],
            {
                "tenant_id": parked.billed.tenant_id,
                "period": parked.billed.period,
                "reason": parked.reason,
            },
        )
        return [parked]
    return []


def _due_periods(conn: Connection[Any], batch: Batch) -> list[BilledPeriod]:
    after_ends_at, after_tenant_id = batch.after
    with conn.cursor(row_factory=class_row(BilledPeriod)) as cursor:
        due = cursor.execute(
            SQL["due_periods"],
            {
                "complete_until": batch.complete_until,
                "after_ends_at": after_ends_at,
                "after_tenant_id": after_tenant_id,
                "limit": batch.limit,
            },
        ).fetchall()
    return [in_utc(row) for row in due]


def _charges(
    conn: Connection[Any], periods: Sequence[BilledPeriod], until: datetime
) -> dict[tuple[UUID, str], tuple[Line, ...]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(
            SQL["charges"],
            {
                "tenants": [billed.tenant_id for billed in periods],
                "periods": [billed.period for billed in periods],
                "until": until,
            },
        ).fetchall()

    def period_key(row: dict[str, Any]) -> tuple[UUID, str]:
        return row["tenant_id"], row["period"]

    found.sort(key=period_key)
    return {
        key: tuple(rows.read_line(row) for row in group)
        for key, group in groupby(found, key=period_key)
    }


def _issue(conn: Connection[Any], periods: Sequence[BilledPeriod], issue: Issue) -> None:
    """Rate, settle, number, write and close; a period with nothing subscribed gets no invoice."""
    if not periods:
        return
    charges = _charges(conn, periods, max(billed.ends_at for billed in periods))
    billable = [billed for billed in periods if (billed.tenant_id, billed.period) in charges]
    for tenant_id, lines in _corrections(conn, billable).items():
        first = next(billed for billed in billable if billed.tenant_id == tenant_id)
        charges[tenant_id, first.period] += lines
    settled = _settled(conn, billable, charges, issue)
    moment = issue.now.replace(microsecond=0)
    numbers = _take_numbers(conn, len(settled), issue.now)
    issued = [
        rows.Issued(
            invoice_id=invoice_id,
            invoice=finalize(billed, content, number, moment),
            account=account,
        )
        for (billed, invoice_id, content, account), number in zip(settled, numbers, strict=True)
    ]
    _insert_invoices(conn, issued)
    conn.execute(
        SQL["close_periods"],
        {
            "tenants": [billed.tenant_id for billed in periods],
            "periods": [billed.period for billed in periods],
        },
    )


def _corrections(
    conn: Connection[Any], periods: Sequence[BilledPeriod]
) -> dict[UUID, tuple[Line, ...]]:
    """Return what the first of each tenant's periods corrects of those billed before."""
    first = {billed.tenant_id: billed.starts_at for billed in reversed(periods)}
    marks = {"tenants": list(first), "starts": list(first.values())}
    late = conn.execute(SQL["take_late"], marks).fetchall()
    if not late:
        return {}
    names = {"tenants": [row[0] for row in late], "periods": [row[1] for row in late]}
    lines: dict[UUID, tuple[Line, ...]] = {}
    with conn.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(SQL["corrections"], names):
            lines[row["tenant_id"]] = (*lines.get(row["tenant_id"], ()), rows.read_line(row))
    return lines


def _settled(
    conn: Connection[Any],
    periods: Sequence[BilledPeriod],
    charges: Mapping[tuple[UUID, str], tuple[Line, ...]],
    issue: Issue,
) -> list[tuple[BilledPeriod, UUID, Settled, Account]]:
    """Settle in the order of time: what one invoice leaves over is there for the next."""
    tenants = list({billed.tenant_id for billed in periods})
    accounts = dict(adjustments.accounts(conn, tenants))
    settled = []
    for billed in periods:
        limits = issue.charge_limits.get(billed.currency, NO_LIMITS)
        account = replace(accounts[billed.tenant_id], limits=limits)
        invoice_id, content = (
            uuid4(),
            settle(billed, charges[billed.tenant_id, billed.period], account),
        )
        credit = rows.refund_credit(invoice_id, content, issue.now)
        accounts[billed.tenant_id] = after(account, content, credit)
        settled.append((billed, invoice_id, content, account))
    return settled


def _take_numbers(conn: Connection[Any], count: int, now: datetime) -> list[str]:
    if not count:
        return []
    series = f"INV-{now.astimezone(UTC):%Y}"
    row = conn.execute(SQL["take_numbers"], {"series": series, "count": count}).fetchone()
    last = 0 if row is None else int(row[0])
    return [f"{series}-{n:06d}" for n in range(last - count + 1, last + 1)]


def _insert_invoices(conn: Connection[Any], issued: Sequence[rows.Issued]) -> None:
    if not issued:
        return
    for name, records in rows.records(issued).items():
        if records:
            given = {"rows": Jsonb(records, dumps=json.dumps), "now": issued[0].invoice.issued_at}
            conn.execute(SQL[name], given)
    keys = {
        "tenants": [one.invoice.billed.tenant_id for one in issued],
        "invoice_ids": [one.invoice_id for one in issued],
    }
    conn.execute(SQL["finalize_invoices"], keys)
    conn.execute(SQL["settle_empty_invoices"], keys)


def in_utc(billed: BilledPeriod) -> BilledPeriod:
    """Return the period with its bounds in UTC."""
    return replace(
        billed,
        starts_at=billed.starts_at.astimezone(UTC),
        ends_at=billed.ends_at.astimezone(UTC),
    )
