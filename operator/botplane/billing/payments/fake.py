"""A processor for demonstrations and tests: it remembers, declines and fails as it is told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from botplane.billing.payments.policy import (
    CANCELED,
    AttemptStatus,
    RefundResult,
    Result,
    Unanswered,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from botplane.billing.payments.policy import Charge, Refund
    from botplane.billing.settlement import ChargeLimits


class Fault(StrEnum):
    """What goes wrong with one call."""

    LOST_REQUEST = "lost_request"
    """It never arrives."""
    LOST_ANSWER = "lost_answer"
    """It is done, and the answer does not come back."""


@dataclass
class FakeProcessor:
    """Collects without money.

    Attributes:
        faults: What goes wrong with the next calls, in their order; None: nothing.
        declines: Decline codes by payment method.
        captured: Every payment that was made, by idempotency key.
        refunded: Every refund that was made, by idempotency key.
        refuses_refunds: Whether it makes none.
    """

    name: str = "fake"
    charge_limits: Mapping[str, ChargeLimits] = field(default_factory=dict)
    faults: list[Fault | None] = field(default_factory=list)
    declines: dict[str, str] = field(default_factory=dict)
    captured: dict[str, Charge] = field(default_factory=dict)
    refunded: dict[str, Refund] = field(default_factory=dict)
    refuses_refunds: bool = False
    _results: dict[str, Result] = field(default_factory=dict)
    _invoices: dict[UUID, list[str]] = field(default_factory=dict)
    _charges: dict[str, Charge] = field(default_factory=dict)
    _refunds: dict[str, tuple[str, RefundResult]] = field(default_factory=dict)

    def charge(self, charge: Charge) -> Result:
        """Collect once per key."""
        fault = self._next_fault()
        if fault is Fault.LOST_REQUEST:
            raise Unanswered("The request was lost.")
        if charge.idempotency_key not in self._results:
            self._charges[charge.idempotency_key] = charge
            self._results[charge.idempotency_key] = self._decide(charge)
            self._invoices.setdefault(charge.invoice_id, []).append(charge.idempotency_key)
        if fault is Fault.LOST_ANSWER:
            raise Unanswered("The answer was lost.")
        return self._results[charge.idempotency_key]

    def cancel(self, waiting: Result) -> Result:
        """Cancel what waits for its payer."""
        fault = self._next_fault()
        if fault is Fault.LOST_REQUEST:
            raise Unanswered("The request was lost.")
        [key] = [
            key for key, one in self._results.items() if one.processor_ref == waiting.processor_ref
        ]
        if self._results[key].status is AttemptStatus.REQUIRES_ACTION:
            self._results[key] = replace(
                self._results[key], status=AttemptStatus.FAILED, decline_code=CANCELED
            )
        if fault is Fault.LOST_ANSWER:
            raise Unanswered("The answer was lost.")
        return self._results[key]

    def lookup(self, invoice_id: UUID) -> Sequence[Result]:
        """Return what was decided about an invoice."""
        fault = self._next_fault()
        if fault is not None:
            raise Unanswered("The look-up was lost.")
        return [self._results[key] for key in self._invoices.get(invoice_id, [])]

    def refund(self, refund: Refund) -> RefundResult:
        """Pay back once per key."""
        fault = self._next_fault()
        if fault is Fault.LOST_REQUEST:
            raise Unanswered("The request was lost.")
        key = refund.idempotency_key
        if key not in self._refunds:
            status = AttemptStatus.FAILED if self.refuses_refunds else AttemptStatus.SUCCEEDED
            result = RefundResult(
                reference=refund.reference,
                status=status,
                processor_ref=f"fake_{key}",
                decline_code="refused" if self.refuses_refunds else None,
            )
            self._refunds[key] = (refund.payment_ref, result)
            if status is AttemptStatus.SUCCEEDED:
                self.refunded[key] = refund
        if fault is Fault.LOST_ANSWER:
            raise Unanswered("The answer was lost.")
        return self._refunds[key][1]

    def refunds(self, payment_ref: str) -> Sequence[RefundResult]:
        """Return what was decided about a payment."""
        fault = self._next_fault()
        if fault is not None:
            raise Unanswered("The look-up was lost.")
        return [result for payment, result in self._refunds.values() if payment == payment_ref]

    def confirm(self, invoice_id: UUID) -> None:
        """Let the last attempt of an invoice succeed after all, as its payer can make it."""
        key = self._invoices[invoice_id][-1]
        if self._results[key].decline_code == CANCELED:
            return
        self._results[key] = replace(
            self._results[key], status=AttemptStatus.SUCCEEDED, decline_code=None
        )
        self.captured[key] = self._charges[key]

    def forget_keys(self) -> None:
        """Forget which keys were used, as processors do after a day; payments stay."""
        self._results = {f"{key} (old)": result for key, result in self._results.items()}
        self._invoices = {
            invoice: [f"{key} (old)" for key in keys] for invoice, keys in self._invoices.items()
        }

    def _next_fault(self) -> Fault | None:
        return self.faults.pop(0) if self.faults else None

    def _decide(self, charge: Charge) -> Result:
        reference = f"fake_{charge.invoice_id}_{charge.attempt_no}"
        code = self.declines.get(charge.method_ref)
        if code == AttemptStatus.REQUIRES_ACTION:
            status, code = AttemptStatus.REQUIRES_ACTION, None
        elif code is not None:
            status = AttemptStatus.FAILED
        else:
            status = AttemptStatus.SUCCEEDED
            self.captured[charge.idempotency_key] = charge
        return Result(
            attempt_no=charge.attempt_no,
            status=status,
            processor_ref=reference,
            decline_code=code,
        )
