"""Invoices as values: lines, totals, the document that is hashed, and the ledger entries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from botplane.billing.money import Rounding, minor_units, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

_KINDS = ("subscription", "usage", "commitment", "commission", "one_off", "correction")
_REVENUE = {
    "subscription": "revenue_subscription",
    "commission": "revenue_commission",
    "one_off": "revenue_one_off",
}


class Status(StrEnum):
    """Where an invoice stands; after draft only the status itself can change."""

    DRAFT = "draft"
    FINALIZED = "finalized"
    PAID = "paid"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"


@dataclass(frozen=True, kw_only=True)
class BilledPeriod:
    """Whose invoice, and for which half-open time `[starts_at, ends_at)` in UTC.

    Attributes:
        revision: How many invoices of the period were made void.
        replaces: Number of the last of them.
    """

    tenant_id: UUID
    tenant: str
    organization: str
    currency: str
    time_zone: str
    period: str
    starts_at: datetime
    ends_at: datetime
    revision: int = 0
    replaces: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One charge: `exact` in the major unit, rounded once to `amount_minor`.

    Attributes:
        key: Unique in the invoice, such as `usage/bot_seconds/2026-10-01T00:00:00Z`.
        kind: subscription, usage, commitment, commission, one_off or correction.
        quantity: In the unit of the meter; of a commission the trades, those that won or, where
            losses count, all; else 1.
        detail: What the price was: plan, version, model, included, tiers.
        discount_minor: Share of the coupons.
        corrects_invoice: Invoice that a correction belongs to.
        corrects_key: Line of it. The amount is what that line would be now, less what was billed.
    """

    key: str
    kind: str
    meter: str | None
    starts_at: datetime
    ends_at: datetime
    quantity: Decimal
    exact: Decimal
    amount_minor: int
    detail: Mapping[str, Any]
    discount_minor: int = 0
    corrects_invoice: UUID | None = None
    corrects_key: str | None = None

    @property
    def net_minor(self) -> int:
        """Amount less discount, before tax."""
        return self.amount_minor - self.discount_minor

    @property
    def charge_kind(self) -> str:
        """Kind of the charge; of a correction, that of the corrected line."""
        return self.kind if self.corrects_key is None else self.corrects_key.partition("/")[0]

    @property
    def rounding(self) -> Rounding:
        """How `exact` was rounded; of a correction, the two amounts that it is between were."""
        said = self.detail.get("rounding")
        return Rounding.HALF_EVEN if said is None else Rounding(said)


@dataclass(frozen=True, kw_only=True)
class Discount:
    """What one coupon took off."""

    code: str
    target: str
    percent: Decimal | None
    amount_minor: int


@dataclass(frozen=True, kw_only=True)
class Tax:
    """Tax of one name and rate on the net amounts of its lines."""

    name: str
    rate: Decimal
    reason: str | None
    base_minor: int
    amount_minor: int


@dataclass(frozen=True, kw_only=True)
class CreditUse:
    """What one credit paid."""

    credit_id: str
    kind: str
    amount_minor: int


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Lines with their discounts, and all that leads from them to the amount due.

    Attributes:
        carried_in_minor: Owed from earlier periods.
        carried_out_minor: Too little to collect: goes to the next invoice.
        refunded_minor: Owed to the tenant: becomes a credit.
    """

    lines: tuple[Line, ...]
    discounts: tuple[Discount, ...] = ()
    taxes: tuple[Tax, ...] = ()
    credits: tuple[CreditUse, ...] = ()
    carried_in_minor: int = 0
    carried_out_minor: int = 0
    refunded_minor: int = 0

    @cached_property
    def subtotal_minor(self) -> int:
        """Sum of the lines before discounts."""
        return sum(line.amount_minor for line in self.lines)

    @cached_property
    def discount_minor(self) -> int:
        """Sum of the discounts."""
        return sum(discount.amount_minor for discount in self.discounts)

    @cached_property
    def tax_minor(self) -> int:
        """Sum of the taxes."""
        return sum(tax.amount_minor for tax in self.taxes)

    @cached_property
    def total_minor(self) -> int:
        """What the period costs, with tax; below zero when corrections outweigh the rest."""
        return self.subtotal_minor - self.discount_minor + self.tax_minor

    @cached_property
    def credit_minor(self) -> int:
        """Sum of the credits used."""
        return sum(use.amount_minor for use in self.credits)

    @cached_property
    def carried_minor(self) -> int:
        """Balances that come from other periods, less those that go to other periods."""
        return self.carried_in_minor - self.carried_out_minor + self.refunded_minor

    @cached_property
    def due_minor(self) -> int:
        """What is to be paid; never below zero."""
        return self.total_minor - self.credit_minor + self.carried_minor


@dataclass(frozen=True, kw_only=True)
class Invoice(Settled):
    """One invoice of one tenant and period; a draft has no number and says why it is one."""

    billed: BilledPeriod
    status: Status
    number: str | None = None
    issued_at: datetime | None = None
    draft_reason: str | None = None
    content_hash: bytes | None = None


def draft(billed: BilledPeriod, settled: Settled, reason: str) -> Invoice:
    """Return a provisional invoice, with the reason why it is not final."""
    return _invoice(billed, settled, status=Status.DRAFT, draft_reason=reason)


def finalize(billed: BilledPeriod, settled: Settled, number: str, issued_at: datetime) -> Invoice:
    """Return the final invoice with its content hash; one with nothing due is paid at once."""
    status = Status.FINALIZED if settled.due_minor else Status.PAID
    invoice = _invoice(billed, settled, status=status, number=number, issued_at=issued_at)
    # A copy by `replace` would have to add everything up again.
    object.__setattr__(invoice, "content_hash", content_hash(invoice))
    return invoice


def _invoice(billed: BilledPeriod, settled: Settled, **more: Any) -> Invoice:
    return Invoice(
        billed=billed,
        lines=in_order(settled.lines),
        discounts=settled.discounts,
        taxes=settled.taxes,
        credits=settled.credits,
        carried_in_minor=settled.carried_in_minor,
        carried_out_minor=settled.carried_out_minor,
        refunded_minor=settled.refunded_minor,
        **more,
    )


def content_hash(invoice: Invoice) -> bytes:
    """Return the SHA-256 of the canonical document: keys sorted, no spaces, UTF-8."""
    canonical = orjson.dumps(document(invoice), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).digest()


def document(invoice: Invoice) -> dict[str, Any]:
    """Return what the invoice says; its status can change and is no part of it."""
    billed = invoice.billed

    def money(minor: int) -> str:
        return amount_text(minor, billed.currency)

    # Documents without it have no such key: their hashes are older than it.
    replaced = {} if billed.replaces is None else {"replaces": billed.replaces}
    return replaced | {
        "number": invoice.number,
        "issuedAt": None if invoice.issued_at is None else _utc(invoice.issued_at),
        "tenant": billed.tenant,
        "tenantId": str(billed.tenant_id),
        "organization": billed.organization,
        "period": billed.period,
        "start": _utc(billed.starts_at),
        "end": _utc(billed.ends_at),
        "timeZone": billed.time_zone,
        "currency": billed.currency,
        "lines": [_line_document(line, billed.currency) for line in invoice.lines],
        "subtotal": money(invoice.subtotal_minor),
        "discounts": [
            {
                "code": discount.code,
                "target": discount.target,
                "percent": None if discount.percent is None else plain(discount.percent),
                "amount": money(discount.amount_minor),
            }
            for discount in invoice.discounts
        ],
        "discount": money(invoice.discount_minor),
        "taxes": [
            {
                "name": tax.name,
                "rate": plain(tax.rate),
                "reason": tax.reason,
                "base": money(tax.base_minor),
                "amount": money(tax.amount_minor),
            }
            for tax in invoice.taxes
        ],
        "tax": money(invoice.tax_minor),
        "total": money(invoice.total_minor),
        "credits": [
            {"id": use.credit_id, "kind": use.kind, "amount": money(use.amount_minor)}
            for use in invoice.credits
        ],
        "credit": money(invoice.credit_minor),
        "carriedIn": money(invoice.carried_in_minor),
        "carriedOut": money(invoice.carried_out_minor),
        "refunded": money(invoice.refunded_minor),
        "due": money(invoice.due_minor),
    }


def ledger_entries(invoice: Settled) -> dict[str, dict[str, int]]:
    """Return the ledger transactions of an invoice by kind: `invoice`, `credit`, `carried`.

    Each holds debits (positive) and credits (negative) in minor units by account; they sum to 0.
    """
    charges = {"receivable": invoice.total_minor, "discount_given": invoice.discount_minor}
    for line in invoice.lines:
        account = _REVENUE.get(line.charge_kind, "revenue_usage")
        charges[account] = charges.get(account, 0) - line.amount_minor
    charges["tax_payable"] = -invoice.tax_minor
    transactions = {
        "invoice": charges,
        "credit": {"customer_credit": invoice.credit_minor, "receivable": -invoice.credit_minor},
        "carried": {
            "receivable": invoice.carried_minor,
            "carried": invoice.carried_out_minor - invoice.carried_in_minor,
            "customer_credit": -invoice.refunded_minor,
        },
    }
    return {
        kind: nonzero
        for kind, entries in transactions.items()
        if (nonzero := {account: minor for account, minor in entries.items() if minor})
    }


@lru_cache(maxsize=4096)
def amount_text(minor: int, currency: str) -> str:
    """Write minor units as an amount of the major unit with all its decimals."""
    digits = minor_units(currency)
    sign, whole = ("-", -minor) if minor < 0 else ("", minor)
    if not digits:
        return f"{sign}{whole}"
    major, rest = divmod(whole, 10**digits)
    return f"{sign}{major}.{rest:0{digits}d}"


def last_rounding(lines: Iterable[Line]) -> Rounding:
    """Return how the prices that are in force at the end of the period round."""
    cuts = (line for line in lines if line.kind == "subscription")
    last = max(cuts, key=lambda line: line.starts_at, default=None)
    return Rounding.HALF_EVEN if last is None else last.rounding


def in_order(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Return lines as documents list them: by kind, then by key."""
    return tuple(sorted(lines, key=lambda line: (_KINDS.index(line.kind), line.key)))


def _line_document(line: Line, currency: str) -> dict[str, Any]:
    text = {
        "key": line.key,
        "kind": line.kind,
        "meter": line.meter,
        "start": _utc(line.starts_at),
        "end": _utc(line.ends_at),
        "quantity": plain(line.quantity),
        "exact": plain(line.exact),
        "amount": amount_text(line.amount_minor, currency),
        "discount": amount_text(line.discount_minor, currency),
        "detail": line.detail,
    }
    if line.corrects_key is not None:
        text["corrects"] = {"invoice": str(line.corrects_invoice), "key": line.corrects_key}
    return text


@lru_cache(maxsize=1024)
def _utc(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")[:19] + "Z"
