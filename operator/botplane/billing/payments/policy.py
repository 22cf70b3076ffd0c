"""When to try a payment, when to wait and when to give up. Pure.

Day 0, then 3, 5 and 7 days after the attempt before, and only where trying again can help. A bill
that is not paid 15 days after it was issued is uncollectible, and its tenant is overdue.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from botplane.billing.settlement import ChargeLimits

RETRY_AFTER = (timedelta(days=3), timedelta(days=5), timedelta(days=7))
GRACE = timedelta(days=15)
KEY_LIFETIME = timedelta(hours=24)
"""How long a processor remembers an idempotency key (Stripe: it may forget after 24 hours)."""

HARD_DECLINES = frozenset({
    "stolen_card", "lost_card", "pickup_card", "fraudulent", "invalid_account", "expired_card",
    "restricted_card", "security_violation", "revocation_of_authorization",
    "authentication_required",
})  # fmt: skip
"""Trying the same card again does not help (and card networks fine for it)."""


CANCELED = "canceled"
"""Decline code of an attempt that was cancelled, by us or at the processor: it is over for good."""


class AttemptStatus(StrEnum):
    """Where one attempt stands."""

    CREATED = "created"
    PROCESSING = "processing"
    REQUIRES_ACTION = "requires_action"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


OPEN = frozenset({
    AttemptStatus.CREATED,
    AttemptStatus.PROCESSING,
    AttemptStatus.REQUIRES_ACTION,
    AttemptStatus.UNKNOWN,
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt to collect an invoice, as it was written down."""

    attempt_no: int
    status: AttemptStatus
    decline_code: str | None
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What a processor is asked to collect; the key makes a repeated request one payment."""

    tenant_id: UUID
    invoice_id: UUID
    attempt_no: int
    amount_minor: int
    currency: str
    idempotency_key: str
    customer_ref: str
    method_ref: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a processor says about one attempt."""

    attempt_no: int
    status: AttemptStatus
    processor_ref: str | None
    decline_code: str | None = None


@dataclass(frozen=True, kw_only=True)
class Refund:
    """What a processor is asked to pay back of a payment.

    Attributes:
        reference: Of who asked; unique for the tenant.
        payment_ref: The payment, by the processor's own name.
        idempotency_key: It makes a repeated request one refund.
    """

    tenant_id: UUID
    invoice_id: UUID
    reference: str
    payment_ref: str
    amount_minor: int
    idempotency_key: str


@dataclass(frozen=True, kw_only=True)
class RefundResult:
    """What a processor says about one refund."""

    reference: str
    status: AttemptStatus
    processor_ref: str | None
    decline_code: str | None = None


class Unanswered(Exception):  # noqa: N818 - not an error of ours, and the outcome is open
    """The processor did not answer, or not with an outcome: the payment may have happened."""


class Processor(Protocol):
    """Whoever collects money."""

    name: str
    charge_limits: Mapping[str, ChargeLimits]
    """What it can collect, by currency; nothing said is no limit."""

    def charge(self, charge: Charge) -> Result:
        """Collect once, however often it is called with one key.

        Raises:
            Unanswered: It is not known what happened.
        """

    def cancel(self, waiting: Result) -> Result:
        """Cancel an attempt that waits for its payer, and return what became of it.

        It has failed, or had succeeded before; calling it again changes nothing.

        Raises:
            Unanswered: It is not known what happened.
        """

    def lookup(self, invoice_id: UUID) -> Sequence[Result]:
        """Return every attempt that the processor knows of an invoice.

        Raises:
            Unanswered: The processor did not answer.
        """

    def refund(self, refund: Refund) -> RefundResult:
        """Pay back once, however often it is called with one key.

        Raises:
            Unanswered: It is not known what happened.
        """

    def refunds(self, payment_ref: str) -> Sequence[RefundResult]:
        """Return every refund that the processor knows of a payment.

        Raises:
            Unanswered: The processor did not answer.
        """


class Step(StrEnum):
    """What to do about an unpaid invoice."""

    LOOK_UP = "look_up"
    CHARGE = "charge"
    REPLACE = "replace"
    WAIT = "wait"
    GIVE_UP = "give_up"


@dataclass(frozen=True, kw_only=True)
class Unpaid:
    """An invoice that is not paid.

    Attributes:
        method_since: When the tenant gave the payment method in force; None: it has none.
    """

    issued_at: datetime
    is_given_up: bool
    attempts: tuple[Attempt, ...]
    method_since: datetime | None


def next_step(unpaid: Unpaid, now: datetime) -> Step:
    """Return what to do now; a new payment method starts the attempts anew."""
    last = unpaid.attempts[-1] if unpaid.attempts else None
    late = now >= unpaid.issued_at + GRACE and not unpaid.is_given_up
    if last is not None and last.status in OPEN:
        waits_for_tenant = last.status is AttemptStatus.REQUIRES_ACTION
        if waits_for_tenant and _is_outdated(unpaid, last):
            return Step.REPLACE
        return Step.GIVE_UP if late and waits_for_tenant else Step.LOOK_UP
    due = next_try(unpaid)
    if due is not None and now >= due:
        return Step.CHARGE
    return Step.GIVE_UP if late else Step.WAIT


def _is_outdated(unpaid: Unpaid, attempt: Attempt) -> bool:
    return unpaid.method_since is not None and unpaid.method_since > attempt.created_at


def next_try(unpaid: Unpaid) -> datetime | None:
    """Return when an invoice without an open attempt is charged by itself; None: not as it is."""
    if unpaid.method_since is None:
        return None
    tried = [attempt for attempt in unpaid.attempts if attempt.created_at >= unpaid.method_since]
    if not tried:
        return unpaid.method_since
    is_over = len(tried) > len(RETRY_AFTER) or tried[-1].decline_code in HARD_DECLINES
    if unpaid.is_given_up or is_over:
        return None
    return tried[-1].changed_at + RETRY_AFTER[len(tried) - 1]


def refund_key(tenant_id: UUID, reference: str) -> str:
    """Return the key of a refund: the same one whenever it is sent again."""
    return f"refund/{tenant_id}/{reference}"


def idempotency_key(invoice_id: UUID, attempt_no: int) -> str:
    """Return the key of an attempt: the same one whenever it is sent again."""
    return f"inv/{invoice_id}/{attempt_no}"
