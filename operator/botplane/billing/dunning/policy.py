"""What a tenant is told of an unpaid invoice, and when. Pure.

Every attempt that fails is told. Where nothing is tried without the tenant (there is no payment
method, it is refused for good, or the payment waits for a confirmation), it is asked, and reminded
on the days on which others are tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from botplane.api.conditions import Finding
from botplane.billing.invoices import amount_text
from botplane.billing.payments.policy import (
    GRACE,
    RETRY_AFTER,
    AttemptStatus,
    Unpaid,
    next_try,
)

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

REMIND_AFTER_DAYS = tuple(
    days for days in (0, *(t.days for t in accumulate(RETRY_AFTER))) if days < GRACE.days
)
"""0, 3 and 8 days after an invoice was issued."""


class NoticeKind(StrEnum):
    """What a tenant is told."""

    DECLINED = "declined"
    """A payment failed and is tried again by itself."""
    METHOD_NEEDED = "method_needed"
    """A payment failed and is not tried again with this payment method."""
    CONFIRMATION_NEEDED = "confirmation_needed"
    """A payment waits for its payer."""
    DUE = "due"
    """The invoice has to be paid, and no payment method is known."""
    GIVEN_UP = "given_up"
    """The invoice was written off: the tenant is overdue."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One notice; its name makes a repeated one the same."""

    name: str
    kind: NoticeKind
    decline_code: str | None = None
    next_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A notice as it was given."""

    tenant_id: UUID
    number: str
    currency: str
    step: str
    kind: NoticeKind
    amount_minor: int
    decline_code: str | None
    next_at: datetime | None
    noticed_at: datetime


def steps(unpaid: Unpaid, now: datetime) -> list[Step]:
    """Return what the tenant must have been told by now; of reminders only the latest."""
    last = unpaid.attempts[-1] if unpaid.attempts else None
    if unpaid.is_given_up:
        return [Step(name="given-up", kind=NoticeKind.GIVEN_UP)]
    if last is None or (unpaid.method_since is None and last.status is AttemptStatus.FAILED):
        return [] if next_try(unpaid) is not None else [_reminder(unpaid, NoticeKind.DUE, now)]
    name = f"attempt-{last.attempt_no}"
    if last.status is AttemptStatus.REQUIRES_ACTION:
        kind, next_at = NoticeKind.CONFIRMATION_NEEDED, None
    elif last.status is AttemptStatus.FAILED:
        next_at = next_try(unpaid)
        kind = NoticeKind.METHOD_NEEDED if next_at is None else NoticeKind.DECLINED
    else:
        return []
    told = Step(name=name, kind=kind, decline_code=last.decline_code, next_at=next_at)
    reminder = _reminder(unpaid, kind, now)
    is_news = kind is not NoticeKind.DECLINED and _day(unpaid, last.created_at) != reminder.name
    return [told, reminder] if is_news else [told]


def _reminder(unpaid: Unpaid, kind: NoticeKind, now: datetime) -> Step:
    return Step(name=_day(unpaid, now), kind=kind)


def _day(unpaid: Unpaid, moment: datetime) -> str:
    """Return the last reminder that was due at a moment."""
    passed = (moment - unpaid.issued_at).days
    return f"day-{max((days for days in REMIND_AFTER_DAYS if days <= passed), default=0)}"


def text(notice: Notice) -> str:
    """Return what a notice says to people."""
    amount = f"{amount_text(notice.amount_minor, notice.currency)} {notice.currency}"
    why = "" if notice.decline_code is None else f" ({notice.decline_code})"
    match notice.kind:
        case NoticeKind.DECLINED:
            again = "" if notice.next_at is None else f" on {notice.next_at:%Y-%m-%d}"
            what = f"the payment was declined{why} and is tried again{again}"
        case NoticeKind.METHOD_NEEDED:
            what = f"the payment was declined{why}; give another payment method"
        case NoticeKind.CONFIRMATION_NEEDED:
            what = "the payment waits for your confirmation at the payment processor"
        case NoticeKind.DUE:
            what = "it has to be paid, by transfer or with a payment method"
        case NoticeKind.GIVEN_UP:
            what = "it was not paid in time; bots are suspended until it is"
    return f"Invoice {notice.number} over {amount}: {what}"


def notice_document(notice: Notice) -> dict[str, Any]:
    """Return a notice for JSON."""
    return {
        "invoice": notice.number,
        "step": notice.step,
        "kind": notice.kind.value,
        "amount": amount_text(notice.amount_minor, notice.currency),
        "currency": notice.currency,
        "declineCode": notice.decline_code,
        "nextAttemptAt": None if notice.next_at is None else _utc(notice.next_at),
        "noticedAt": _utc(notice.noticed_at),
        "message": text(notice),
    }


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def notice_finding(notice: Notice) -> Finding:
    """Return what the Event of a notice says."""
    return Finding(_REASONS[notice.kind], text(notice))


_REASONS = {
    NoticeKind.DECLINED: "PaymentDeclined",
    NoticeKind.METHOD_NEEDED: "PaymentMethodNeeded",
    NoticeKind.CONFIRMATION_NEEDED: "PaymentConfirmationNeeded",
    NoticeKind.DUE: "PaymentDue",
    NoticeKind.GIVEN_UP: "InvoiceUncollectible",
}
