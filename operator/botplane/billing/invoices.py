"""Invoices as values: lines, totals, the document that is hashed, and the ledger entries."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from botplane.billing.money import from_minor, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID


_KINDS = ("subscription", "usage", "commitment", "commission")
_REVENUE = {"subscription": "revenue_subscription", "commission": "revenue_commission"}


class Status(StrEnum):
    """Where an invoice stands; after draft only the status itself can change."""

    DRAFT = "draft"
    FINALIZED = "finalized"
    PAID = "paid"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"


@dataclass(frozen=True, kw_only=True)
class BilledPeriod:
    """Whose invoice, and for which half-open time `[starts_at, ends_at)` in UTC."""

    tenant_id: UUID
    tenant: str
    organization: str
    currency: str
    time_zone: str
    period: str
    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True, kw_only=True)
class Line:
    """One charge: `exact` in the major unit, rounded once to `amount_minor`.

    Attributes:
        key: Unique in the invoice, such as `usage/bot_seconds/2026-10-01T00:00:00Z`.
        kind: subscription, usage, commitment or commission.
        quantity: In the unit of the meter; 1 where there is no meter.
        detail: What the price was: plan, version, model, included, tiers.
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


@dataclass(frozen=True, kw_only=True)
class Invoice:
    """One invoice of one tenant and period; a draft has no number and says why it is one."""

    billed: BilledPeriod
    lines: tuple[Line, ...]
    status: Status
    number: str | None = None
    issued_at: datetime | None = None
    draft_reason: str | None = None
    content_hash: bytes | None = None

    @property
    def total_minor(self) -> int:
        """Sum of all lines in minor units."""
        return sum(line.amount_minor for line in self.lines)


def draft(billed: BilledPeriod, lines: tuple[Line, ...], reason: str) -> Invoice:
    """Return a provisional invoice, with the reason why it is not final."""
    return Invoice(billed=billed, lines=in_order(lines), status=Status.DRAFT, draft_reason=reason)


def finalize(
    billed: BilledPeriod, lines: tuple[Line, ...], number: str, issued_at: datetime
) -> Invoice:
    """Return the final invoice with its content hash; one over nothing is paid at once."""
    invoice = Invoice(
        billed=billed,
        lines=in_order(lines),
        status=Status.FINALIZED,
        number=number,
        issued_at=issued_at,
    )
    status = Status.FINALIZED if invoice.total_minor else Status.PAID
    return replace(invoice, status=status, content_hash=content_hash(invoice))


def content_hash(invoice: Invoice) -> bytes:
    """Return the SHA-256 of the canonical document: sorted keys, no spaces, decimals as text."""
    canonical = json.dumps(document(invoice), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


def document(invoice: Invoice) -> dict[str, Any]:
    """Return what the invoice says; its status can change and is no part of it."""
    billed = invoice.billed
    total = amount_text(invoice.total_minor, billed.currency)
    return {
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
        "subtotal": total,
        "total": total,
        "due": total,
    }


def ledger_entries(invoice: Invoice) -> dict[str, int]:
    """Return debits (positive) and credits (negative) in minor units by account; they sum to 0."""
    entries = {"receivable": invoice.total_minor}
    for line in invoice.lines:
        account = _REVENUE.get(line.kind, "revenue_usage")
        entries[account] = entries.get(account, 0) - line.amount_minor
    return {account: minor for account, minor in entries.items() if minor}


def amount_text(minor: int, currency: str) -> str:
    """Write minor units as an amount of the major unit with all its decimals."""
    return f"{from_minor(minor, currency):f}"


def in_order(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Return lines as documents list them: by kind, then by key."""
    return tuple(sorted(lines, key=lambda line: (_KINDS.index(line.kind), line.key)))


def _line_document(line: Line, currency: str) -> dict[str, Any]:
    return {
        "key": line.key,
        "kind": line.kind,
        "meter": line.meter,
        "start": _utc(line.starts_at),
        "end": _utc(line.ends_at),
        "quantity": plain(line.quantity),
        "exact": plain(line.exact),
        "amount": amount_text(line.amount_minor, currency),
        "detail": dict(line.detail),
    }


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
