"""Coupons, taxes and credits in Postgres; each grant is in the audit chain of its tenant."""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from botplane.billing.absent import no_such_invoice, no_such_tenant
from botplane.billing.adjustments.notes import Creditable, Note, credit_note
from botplane.billing.money import decimal, to_minor
from botplane.billing.pricebook import METERS
from botplane.billing.settlement import CREDIT_KINDS, Account, Coupon, Credit, TaxRule
from botplane.errors import Rejected
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from psycopg import Connection

SQL = load_queries(__package__)
_RULES = {
    "coupon_grant_check": "give either a percentage or an amount",
    "coupon_grant_check1": "it would end before it starts",
    "coupon_grant_percent_check": "a percentage is more than 0 and at most 100",
    "coupon_grant_amount_minor_check": "an amount is more than 0",
    "coupon_grant_uses_check": "it lowers at least one invoice",
    "coupon_grant_code_check": "a code is 1 to 63 letters, digits, '-', '_' and '.'",
    "coupon_grant_target_check": "it can be on invoice, subscription, usage, usage/<meter>, "
    "commission or one_off",
    "credit_grant_amount_minor_check": "an amount is more than 0",
    "credit_grant_check": "only a promotional credit can expire",
    "one_off_amount_minor_check": "an amount is more than 0",
    "one_off_reference_check": "a reference is 1 to 63 letters, digits, '-', '_' and '.'",
    "one_off_description_check": "a description is 1 to 80 letters on one line",
    "tenant_tax_check1": "a rate of 0 needs a reason",
    "tenant_tax_name_check": "a tax has a name",
    "tenant_tax_rate_check": "a rate is a share from 0 to 1: 0.19 is 19 percent",
    "tenant_tax_target_check": "it can be on all, subscription, usage, commitment, commission or "
    "one_off",
}
"""What is not possible, by the constraint that says so."""
_CREDIT_ID = re.compile(r"[^/\x00-\x1f\x7f]{1,64}")
"""Those with a slash are of credits that invoices and credit notes make."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Who asks for a change of whose account, and when."""

    tenant: str
    actor: str
    now: datetime


@dataclass(frozen=True, kw_only=True)
class CouponTerms:
    """A coupon as finance people write it: `percent`, or `amount` of the major unit.

    Attributes:
        target: `invoice`, `subscription`, `usage`, `commission`, `one_off`, or a meter as
            `usage/rpc_calls`.
        uses: Invoices that it lowers; None is every one while it is valid.
        starts_at: None is now.
    """

    code: str
    percent: str | None = None
    amount: str | None = None
    target: str = "invoice"
    uses: int | None = 1
    starts_at: datetime | None = None
    ends_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class CreditTerms:
    """A credit as finance people write it; its id makes a repeated grant one grant."""

    credit_id: str
    amount: str
    kind: str = "promotional"
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class TaxTerms:
    """A tax rate from a moment on (None: from now); `reason` says why a rate is 0."""

    name: str
    rate: str
    target: str = "all"
    reason: str | None = None
    starts_at: datetime | None = None


def accounts(conn: Connection[Any], tenants: Sequence[UUID]) -> Mapping[UUID, Account]:
    """Return what lowers and raises the next invoice of each tenant; runs in a transaction."""
    found: dict[str, dict[UUID, list[Any]]] = {}
    for name, kind in (("coupons", Coupon), ("taxes", TaxRule), ("credits", Credit)):
        of_tenant = found[name] = defaultdict(list)
        with conn.cursor(row_factory=dict_row) as cursor:
            for row in cursor.execute(SQL[name], {"tenants": list(tenants)}):
                values = {field.name: row[field.name] for field in fields(kind)}
                of_tenant[row["tenant_id"]].append(kind(**values))
    carried: dict[UUID, int] = dict(
        conn.execute(SQL["carried"], {"tenants": list(tenants)}).fetchall()
    )
    return {
        tenant_id: Account(
            coupons=tuple(found["coupons"][tenant_id]),
            taxes=tuple(found["taxes"][tenant_id]),
            credits=tuple(found["credits"][tenant_id]),
            carried_minor=carried.get(tenant_id, 0),
        )
        for tenant_id in tenants
    }


def grant_coupon(conn: Connection[Any], order: Order, terms: CouponTerms) -> None:
    """Grant a coupon to a tenant.

    Raises:
        Rejected: There is no such tenant, the code was granted to it before, or the terms are
            not possible.
    """
    kind, _, meter = terms.target.partition("/")
    if kind == "usage" and meter and meter not in METERS:
        raise Rejected("MeterUnknown", f"Meter {meter} is not one of {', '.join(METERS)}.")
    with granting(conn, order, f"Coupon {terms.code}") as (tenant_id, currency):
        row = vars(terms) | {
            "tenant_id": tenant_id,
            "percent": None if terms.percent is None else decimal(terms.percent, 4),
            "amount_minor": None if terms.amount is None else to_minor(terms.amount, currency),
            "starts_at": terms.starts_at or order.now,
            "now": order.now,
        }
        conn.execute(SQL["grant_coupon"], row)
        record(conn, order, tenant_id, ("coupon.grant", terms.code, _said(terms)))


def end_coupon(conn: Connection[Any], order: Order, code: str) -> None:
    """Let a coupon count for no period that has not begun; what it lowered stays.

    Raises:
        Rejected: There is no such tenant, or it has no such coupon that is valid.
    """
    with granting(conn, order, f"Coupon {code}") as (tenant_id, _):
        row = {"tenant_id": tenant_id, "code": code, "now": order.now}
        if not conn.execute(SQL["end_coupon"], row).rowcount:
            raise Rejected("CouponNotFound", f"Tenant {order.tenant} has no valid coupon {code}.")
        record(conn, order, tenant_id, ("coupon.end", code, {}))


def grant_credit(conn: Connection[Any], order: Order, terms: CreditTerms) -> None:
    """Grant money in advance.

    Raises:
        Rejected: There is no such tenant, the id was granted before, or the terms are not
            possible.
    """
    if terms.kind not in CREDIT_KINDS[:2]:
        raise Rejected("TermsInvalid", f"A credit is promotional or purchased, not {terms.kind}.")
    if not _CREDIT_ID.fullmatch(terms.credit_id):
        raise Rejected(
            "TermsInvalid", f"{terms.credit_id!r} is not an id of 1 to 64 letters without '/'."
        )
    with granting(conn, order, f"Credit {terms.credit_id}") as (tenant_id, currency):
        amount = to_minor(terms.amount, currency)
        row = vars(terms) | {"tenant_id": tenant_id, "amount_minor": amount, "now": order.now}
        conn.execute(SQL["grant_credit"], row)
        record(conn, order, tenant_id, ("credit.grant", terms.credit_id, _said(terms)))


@dataclass(frozen=True, kw_only=True)
class OneOffTerms:
    """A charge beside the plan as finance people write it; `reference` makes a repeated one one."""

    reference: str
    amount: str
    description: str


def charge_one_off(conn: Connection[Any], order: Order, terms: OneOffTerms) -> str:
    """Put a line on the next invoice of a tenant, once, and return the period of that invoice.

    Raises:
        Rejected: There is no such tenant, it has no period that is still to be billed, the
            reference belongs to another charge, or the terms are not possible.
        Retryable: Postgres is away.
    """
    with granting(conn, order, f"One-off charge {terms.reference}") as (tenant_id, currency):
        amount = to_minor(terms.amount, currency)
        row = vars(terms) | {"tenant_id": tenant_id, "amount_minor": amount, "now": order.now}
        conn.execute(SQL["ensure_periods"], row)
        coming = conn.execute(SQL["lock_open_periods"], row).fetchall()
        known = conn.execute(SQL["one_off"], row).fetchone()
        if known is not None:
            if known[:2] != (amount, terms.description):
                raise Rejected(
                    "ReferenceUsed", f"{terms.reference} is another charge of {order.tenant}."
                )
            return str(known[2])
        if not coming:
            raise Rejected("NoPeriod", f"Tenant {order.tenant} gets no invoice any more.")
        [period] = coming[0]
        conn.execute(SQL["charge_one_off"], row | {"period": period})
        said = {"amount": terms.amount, "description": terms.description, "period": period}
        record(conn, order, tenant_id, ("one_off.charge", terms.reference, said))
        return str(period)


def set_tax(conn: Connection[Any], order: Order, terms: TaxTerms) -> None:
    """Set the rate of a tax from a moment on; a rate that is so already changes nothing.

    Raises:
        Rejected: There is no such tenant, or the rate would change the past.
    """
    with granting(conn, order, f"Tax {terms.name}") as (tenant_id, _):
        row = vars(terms) | {
            "tenant_id": tenant_id,
            "rate": decimal(terms.rate, 6),
            "starts_at": terms.starts_at or order.now,
        }
        current = conn.execute(SQL["current_tax"], row).fetchone()
        if current is not None and current[:2] == (row["rate"], terms.reason):
            return
        if current is not None and current[2] >= row["starts_at"]:
            raise Rejected(
                "TaxFixed",
                f"{terms.name} of {order.tenant} is set from {current[2]} on; choose a later day.",
            )
        conn.execute(SQL["end_tax"], row)
        conn.execute(SQL["begin_tax"], row)
        record(conn, order, tenant_id, ("tax.set", terms.name, _said(terms)))


@dataclass(frozen=True, kw_only=True)
class NoteTerms:
    """A credit note as finance people write it; `reference` makes a repeated one the same note."""

    invoice_number: str
    reference: str
    amount: str
    reason: str


def issue_credit_note(conn: Connection[Any], terms: NoteTerms, actor: str, now: datetime) -> str:
    """Take back part of an issued invoice and return the number of the note.

    It lowers what is owed on the invoice; where that is less, it pays for coming invoices.

    Raises:
        Rejected: There is no such invoice, it cannot be credited with so much, or the reference
            belongs to another note.
    """
    with translated_errors(), conn.transaction():
        asked = {"number": terms.invoice_number}
        conn.execute(SQL["lock_invoice"], asked)
        with conn.cursor(row_factory=class_row(Creditable)) as cursor:
            invoice = cursor.execute(SQL["creditable_invoice"], asked).fetchone()
        if invoice is None:
            raise no_such_invoice(terms.invoice_number)
        row = vars(terms) | vars(invoice) | {"now": now}
        amount = to_minor(terms.amount, invoice.currency)
        known = conn.execute(SQL["credit_note"], row).fetchone()
        if known is not None:
            if known[1:] != (invoice.invoice_id, amount):
                raise Rejected(
                    "ReferenceUsed", f"{terms.reference} is another credit note already."
                )
            return str(known[0])
        note = credit_note(invoice, amount)
        number = insert_note(conn, note, row)
        entered = row | {"txn_key": f"note/{number}", "amount_minor": note.amount_minor}
        post(conn, entered, note.entries)
        if note.settled_by == "credit":
            conn.execute(SQL["credit_of_note"], entered)
        if note.closes:
            conn.execute(SQL["settle_invoice"], row)
        order = Order(tenant=invoice.tenant, actor=actor, now=now)
        said = {"invoice": terms.invoice_number, "amount": terms.amount, "reason": terms.reason}
        record(conn, order, invoice.tenant_id, ("credit_note.issue", number, said))
        return number


def insert_note(conn: Connection[Any], note: Note, row: Mapping[str, Any]) -> str:
    """Store a credit note and return its number; the ledger is the caller's.

    Args:
        conn: Connection with an open transaction.
        note: What it says.
        row: tenant_id, invoice_id, reference, reason and now.
    """
    series = f"CN-{row['now'].astimezone(UTC):%Y}"
    taken = conn.execute(SQL["take_number"], {"series": series}).fetchone()
    number = f"{series}-{taken[0] if taken else 0:06d}"
    conn.execute(SQL["insert_credit_note"], {**row, **vars(note), "number": number})
    return number


def record(
    conn: Connection[Any],
    order: Order,
    tenant_id: UUID,
    entry: tuple[str, str, Mapping[str, Any]],
) -> None:
    """Append (action, object, payload) to the audit chain of a tenant, in the same transaction."""
    action, subject, payload = entry
    conn.execute(
        SQL["audit"],
        {
            "chain": f"tenant/{tenant_id}",
            "actor": order.actor,
            "action": action,
            "object": subject,
            "payload": Jsonb(dict(payload)),
            "now": order.now,
        },
    )


def post(conn: Connection[Any], row: Mapping[str, Any], entries: Mapping[str, int]) -> None:
    """Enter a ledger transaction: debits and credits by account, in the same transaction.

    Args:
        conn: Connection with an open transaction.
        row: tenant_id, txn_key, currency and now.
        entries: Minor units by account; they sum to 0.
    """
    entered = {**row, "entries": Jsonb(dict(entries))}
    conn.execute(SQL["begin_txn"], entered)
    conn.execute(SQL["post"], entered)


def expire_credits(conn: Connection[Any], now: datetime, tenant_id: UUID | None = None) -> None:
    """Post what is left of expired credits, once; of all tenants unless one is named."""
    with translated_errors(), conn.transaction():
        conn.execute(SQL["expire_credits"], {"now": now, "tenant_id": tenant_id})


@contextmanager
def granting(conn: Connection[Any], order: Order, subject: str) -> Iterator[tuple[UUID, str]]:
    """Open one transaction on the account of a named tenant; yield its id and currency.

    Raises:
        Rejected: There is no such tenant, or the database refuses what was asked.
        Retryable: Postgres is away.
    """
    with translated_errors():
        try:
            with conn.transaction():
                row = conn.execute(SQL["open_tenant"], {"tenant": order.tenant}).fetchone()
                if row is None:
                    raise no_such_tenant(order.tenant)
                yield row[0], row[1]
        except errors.UniqueViolation as error:
            raise Rejected(
                "AlreadyGranted", f"{subject} was granted to {order.tenant} before."
            ) from error
        except (errors.CheckViolation, psycopg.DataError) as error:
            rule = _RULES.get(error.diag.constraint_name or "", error.diag.message_primary)
            message = f"{subject} is not possible: {rule}."
            raise Rejected("TermsInvalid", message) from error


def _said(terms: CouponTerms | CreditTerms | TaxTerms) -> dict[str, str]:
    return {name: str(value) for name, value in vars(terms).items() if value is not None}
