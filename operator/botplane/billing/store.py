"""Billing in Postgres: the price book and the invoices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import orjson
import psycopg
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from botplane.billing import rows
from botplane.billing.absent import no_such_tenant
from botplane.billing.adjustments import store as adjustments
from botplane.billing.invoices import (
    BilledPeriod,
    Invoice,
    Line,
    Settled,
    draft,
    finalize,
    last_rounding,
)
from botplane.billing.settlement import NO_LIMITS, Account, ChargeLimits, after, settle
from botplane.errors import Rejected, Retryable
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

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
            "tier_scope": book.tier_scope,
            "rounding": book.rounding.value,
            "netting": terms.netting,
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
        raise no_such_tenant(tenant)
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
        with conn.cursor(row_factory=dict_row) as cursor:
            asked = {"tenants": [billed.tenant_id], "periods": [billed.period], "until": until}
            lines = [rows.read_line(row) for row in cursor.execute(SQL["charges"], asked)]
        account = adjustments.accounts(conn, [billed.tenant_id])[billed.tenant_id]
    account = replace(account, rounding=last_rounding(lines))
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
        conn.execute(SQL["make_stage"])
        if conn.execute(SQL["lock_due_period"], vars(billed)).rowcount:
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
        conn.execute(SQL["make_stage"])
        conn.execute(SQL["read_at_once"])
        due = _due_periods(conn, batch)
        return due, _issue_or_park(conn, due, issue)


def _issue_or_park(
    conn: Connection[Any], due: Sequence[BilledPeriod], issue: Issue
) -> list[Parked]:
    try:
        with conn.transaction():
            _issue(conn, due, issue)
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


def _issue(conn: Connection[Any], periods: Sequence[BilledPeriod], issue: Issue) -> None:
    """Rate, settle, number, write and close; a period with nothing subscribed gets no invoice."""
    if not periods:
        return
    names = {
        "tenants": [billed.tenant_id for billed in periods],
        "periods": [billed.period for billed in periods],
    }
    charges = _charges(conn, periods, names)
    corrections = _corrections(conn, periods, charges)
    for n, lines in corrections.items():
        charges[n] += lines
    conn.execute(SQL["keep_marks"], names)
    moment = issue.now.replace(microsecond=0)
    settled = _settled(conn, periods, charges, issue)
    numbers = _take_numbers(conn, len(settled), issue.now)
    issued = [
        rows.Issued(
            n=n,
            invoice_id=invoice_id,
            invoice=finalize(periods[n - 1], content, number, moment),
            account=account,
        )
        for (n, invoice_id, content, account), number in zip(settled, numbers, strict=True)
    ]
    _insert_invoices(conn, issued)
    if corrections:
        conn.execute(SQL["audit_corrections"], {"now": moment})
    conn.execute(SQL["close_periods"], names)


def _charges(
    conn: Connection[Any], periods: Sequence[BilledPeriod], names: Mapping[str, Any]
) -> dict[int, list[Line]]:
    """Rate all periods at once and return the lines by their position, from 1 on.

    The lines stay in Postgres, where the invoices take them from.
    """
    within = {
        "since": min(billed.starts_at for billed in periods),
        "until": max(billed.ends_at for billed in periods),
    }
    # Postgres plans for these very periods; a plan for any periods would read them row by row.
    conn.execute(SQL["rate"], {**names, **within}, prepare=False)
    return rows.read_lines(conn.execute(SQL["rated_lines"]))


def _corrections(
    conn: Connection[Any], periods: Sequence[BilledPeriod], billable: Container[int]
) -> dict[int, list[Line]]:
    """Return what the first invoice of each tenant corrects of those issued before."""
    first: dict[UUID, tuple[int, datetime]] = {}
    for n, billed in enumerate(periods, 1):
        if n in billable:
            first.setdefault(billed.tenant_id, (n, billed.starts_at))
    marks = {"tenants": list(first), "starts": [starts_at for _, starts_at in first.values()]}
    late = conn.execute(SQL["take_late"], marks).fetchall()
    if not late:
        return {}
    names = {
        "tenants": [tenant_id for tenant_id, _ in late],
        "periods": [period for _, period in late],
        "billed": list(first),
        "first": [n for n, _ in first.values()],
    }
    lines = rows.read_lines(conn.execute(SQL["rate_corrections"], names))
    conn.execute(SQL["keep_marks"], names)
    return lines


def _settled(
    conn: Connection[Any],
    periods: Sequence[BilledPeriod],
    charges: Mapping[int, Sequence[Line]],
    issue: Issue,
) -> list[tuple[int, UUID, Settled, Account]]:
    """Settle in the order of time: what one invoice leaves over is there for the next."""
    tenants = list({billed.tenant_id for billed in periods})
    accounts = dict(adjustments.accounts(conn, tenants))
    settled = []
    for n, billed in enumerate(periods, 1):
        if n not in charges:
            continue
        limits = issue.charge_limits.get(billed.currency, NO_LIMITS)
        rounding = last_rounding(charges[n])
        account = replace(accounts[billed.tenant_id], limits=limits, rounding=rounding)
        invoice_id, content = uuid4(), settle(billed, charges[n], account)
        credit = rows.refund_credit(invoice_id, content, issue.now)
        accounts[billed.tenant_id] = after(account, content, credit)
        settled.append((n, invoice_id, content, account))
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
    now = issued[0].invoice.issued_at
    ids = {
        "numbers": [one.n for one in issued],
        "tenants": [one.invoice.billed.tenant_id for one in issued],
        "invoice_ids": [one.invoice_id for one in issued],
    }
    conn.execute(SQL["stage_invoices"], ids)
    for name, records in rows.records(issued).items():
        if records:
            conn.execute(SQL[name], {"rows": Jsonb(records, dumps=orjson.dumps), "now": now})
    conn.execute(SQL["insert_lines"], rows.discounted(issued))
    entries = rows.postings(issued)
    conn.execute(SQL["insert_ledger_txns"], {**entries, "now": now})
    conn.execute(SQL["insert_ledger_entries"], entries)
    conn.execute(SQL["finalize_invoices"])
    conn.execute(SQL["settle_empty_invoices"])


def in_utc(billed: BilledPeriod) -> BilledPeriod:
    """Return the period with its bounds in UTC."""
    return replace(
        billed,
        starts_at=billed.starts_at.astimezone(UTC),
        ends_at=billed.ends_at.astimezone(UTC),
    )
