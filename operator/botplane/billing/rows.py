"""Invoices as rows of Postgres and back. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from botplane.billing.invoices import (
    CreditUse,
    Discount,
    Invoice,
    Line,
    Status,
    Tax,
    in_order,
    ledger_entries,
)
from botplane.billing.money import Rounding, decimal, plain
from botplane.billing.settlement import Account, ChargeLimits, Coupon, Credit, TaxRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from uuid import UUID

    from botplane.billing.invoices import BilledPeriod, Settled

Row = dict[str, Any]
Columns = dict[str, list[Any]]

SUMS = (
    "subtotal_minor",
    "discount_minor",
    "tax_minor",
    "total_minor",
    "credit_minor",
    "carried_in_minor",
    "carried_out_minor",
    "refunded_minor",
    "carried_minor",
    "due_minor",
)
"""Columns of an invoice that its parts add up to."""


@dataclass(frozen=True, kw_only=True)
class Issued:
    """An invoice with its id and the account that it was settled with.

    Attributes:
        n: Position of its period in the batch.
    """

    n: int
    invoice_id: UUID
    invoice: Invoice
    account: Account


def records(issued: Sequence[Issued]) -> Mapping[str, list[Row]]:
    """Return the rows of issued invoices, by the statement that inserts them, in their order."""
    return {
        "insert_invoices": [_invoice(pair) for pair in issued],
        "insert_discounts": [
            row for pair in issued for row in _discounts(pair.invoice_id, pair.invoice)
        ],
        "insert_taxes": [row for pair in issued for row in _taxes(pair.invoice_id, pair.invoice)],
        "insert_credit_notes": [
            row for pair in issued for row in _refunds(pair.invoice_id, pair.invoice)
        ],
        "insert_credits": [
            row for pair in issued for row in _credits(pair.invoice_id, pair.invoice)
        ],
    }


def discounted(issued: Sequence[Issued]) -> Columns:
    """Return which lines, by number of their invoice and key, coupons lowered by how much."""
    lowered = [
        (pair.n, line.key, line.discount_minor)
        for pair in issued
        if pair.invoice.discounts
        for line in pair.invoice.lines
        if line.discount_minor
    ]
    return _columns(("numbers", "keys", "minors"), lowered)


def postings(issued: Sequence[Issued]) -> Columns:
    """Return the ledger entries by number of their invoice and kind of their transaction."""
    entries = [
        (pair.n, kind, account, minor)
        for pair in issued
        for kind, amounts in ledger_entries(pair.invoice).items()
        for account, minor in amounts.items()
    ]
    return _columns(("numbers", "kinds", "accounts", "minors"), entries)


def _columns(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Columns:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def inputs(account: Account) -> Row:
    """Return what an invoice was settled with, besides its lines, as JSON that rebuilds it."""
    return {
        "coupons": [_texts(coupon) for coupon in account.coupons],
        "taxes": [_texts(rule) for rule in account.taxes],
        "credits": [_texts(credit) for credit in account.credits],
        "carriedMinor": account.carried_minor,
        "limits": vars(account.limits),
        "rounding": account.rounding.value,
    }


def read_inputs(row: Row) -> Account:
    """Return the account that `inputs` wrote down."""
    return Account(
        coupons=tuple(Coupon(**_values(coupon)) for coupon in row["coupons"]),
        taxes=tuple(TaxRule(**_values(rule)) for rule in row["taxes"]),
        credits=tuple(Credit(**_values(credit)) for credit in row["credits"]),
        carried_minor=row["carriedMinor"],
        limits=ChargeLimits(**row["limits"]),
        # Invoices without it are older than it.
        rounding=Rounding(row.get("rounding", Rounding.HALF_EVEN)),
    )


def _texts(value: Coupon | TaxRule | Credit) -> Row:
    def text(field: Any) -> Any:
        if isinstance(field, Decimal):
            return plain(field)
        return field.astimezone(UTC).isoformat() if isinstance(field, datetime) else field

    return {name: text(field) for name, field in vars(value).items()}


def _values(row: Row) -> Row:
    def value(name: str, text: Any) -> Any:
        if text is not None and name.endswith("_at"):
            return datetime.fromisoformat(text)
        return decimal(text) if text is not None and name in {"percent", "rate"} else text

    return {name: value(name, text) for name, text in row.items()}


def refund_credit(invoice_id: UUID, settled: Settled, now: datetime) -> Credit | None:
    """Return the credit that an invoice below zero becomes."""
    if not settled.refunded_minor:
        return None
    return Credit(
        credit_id=f"invoice/{invoice_id}",
        kind="credit_note",
        left_minor=settled.refunded_minor,
        granted_at=now,
        expires_at=None,
    )


def read_invoice(billed: BilledPeriod, row: Row, parts: Mapping[str, list[Row]]) -> Invoice:
    """Return the invoice that its rows hold, under the names that it was issued to."""
    snapshot = row["snapshot"]
    names = {name: snapshot.get(name) for name in ("tenant", "organization", "replaces")}
    return Invoice(
        billed=replace(billed, **names),
        lines=in_order(read_line(line) for line in parts["lines"]),
        discounts=tuple(Discount(**discount) for discount in parts["discounts"]),
        taxes=tuple(Tax(**tax) for tax in parts["taxes"]),
        credits=tuple(CreditUse(**use) for use in parts["credits"]),
        carried_in_minor=row["carried_in_minor"],
        carried_out_minor=row["carried_out_minor"],
        refunded_minor=row["refunded_minor"],
        status=Status(row["status"]),
        number=row["number"],
        issued_at=row["issued_at"].astimezone(UTC),
        content_hash=row["content_hash"],
    )


def read_line(row: Row) -> Line:
    """Return the line that a row holds, its moments in UTC."""
    fields = {name: row[name] for name in Line.__dataclass_fields__ if name in row}
    moments = {name: row[name].astimezone(UTC) for name in ("starts_at", "ends_at")}
    return Line(**fields | moments)


def read_lines(rows: Iterable[tuple[Any, ...]]) -> dict[int, list[Line]]:
    """Return lines by their first column; the others are the fields of a line, in their order."""
    lines = defaultdict[int, list[Line]](list)
    for n, key, kind, meter, starts_at, ends_at, quantity, exact, minor, detail, *more in rows:
        lines[n].append(
            Line(
                key=key,
                kind=kind,
                meter=meter,
                starts_at=starts_at.astimezone(UTC),
                ends_at=ends_at.astimezone(UTC),
                quantity=quantity,
                exact=exact,
                amount_minor=minor,
                detail=detail,
                corrects_invoice=more[0] if more else None,
                corrects_key=more[1] if more else None,
            )
        )
    return lines


def _key(invoice_id: UUID, invoice: Invoice) -> Row:
    return {"tenant_id": str(invoice.billed.tenant_id), "invoice_id": str(invoice_id)}


def _invoice(issued: Issued) -> Row:
    invoice, billed = issued.invoice, issued.invoice.billed
    return {
        **_key(issued.invoice_id, invoice),
        **{name: getattr(invoice, name) for name in SUMS},
        "period": billed.period,
        "revision": billed.revision,
        "number": invoice.number,
        "currency": billed.currency,
        "issued_at": str(invoice.issued_at),
        "snapshot": {
            "tenant": billed.tenant,
            "organization": billed.organization,
            **({} if billed.replaces is None else {"replaces": billed.replaces}),
            "inputs": inputs(issued.account),
        },
        "content_hash": (invoice.content_hash or b"").hex(),
    }


def _discounts(invoice_id: UUID, invoice: Invoice) -> Iterator[Row]:
    for position, discount in enumerate(invoice.discounts):
        percent = None if discount.percent is None else plain(discount.percent)
        yield (
            vars(discount)
            | _key(invoice_id, invoice)
            | {
                "position": position,
                "percent": percent,
            }
        )


def _taxes(invoice_id: UUID, invoice: Invoice) -> Iterator[Row]:
    for position, tax in enumerate(invoice.taxes):
        yield (
            vars(tax)
            | _key(invoice_id, invoice)
            | {
                "position": position,
                "rate": plain(tax.rate),
            }
        )


def _refunds(invoice_id: UUID, invoice: Invoice) -> Iterator[Row]:
    if invoice.refunded_minor:
        yield _key(invoice_id, invoice) | {
            "credit_id": f"invoice/{invoice_id}",
            "amount_minor": invoice.refunded_minor,
        }


def _credits(invoice_id: UUID, invoice: Invoice) -> Iterator[Row]:
    for position, use in enumerate(invoice.credits):
        yield vars(use) | _key(invoice_id, invoice) | {"position": position}
