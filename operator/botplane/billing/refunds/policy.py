"""How much of a payment can go back, and by whom. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from botplane.billing.invoices import amount_text
from botplane.errors import Rejected

if TYPE_CHECKING:
    from uuid import UUID

BY_TRANSFER = "none"
"""The processor of payments that a person recorded: a person pays them back as well."""


@dataclass(frozen=True, kw_only=True)
class Refundable:
    """An issued invoice with its payment, and what went back already; amounts in minor units.

    Attributes:
        attempt_no: The attempt that succeeded; None: there is no payment.
        processor: Who collected it.
        refunded_minor: Paid back, or about to be.
        noted_minor: Taken back of the invoice in any way, or about to be.
    """

    tenant_id: UUID
    tenant: str
    invoice_id: UUID
    currency: str
    status: str
    total_minor: int
    attempt_no: int | None
    processor: str | None
    paid_minor: int
    refunded_minor: int
    noted_minor: int

    @property
    def left_minor(self) -> int:
        """What can still be paid back: never more than was paid, nor than was invoiced."""
        if self.status != "paid" or self.attempt_no is None:
            return 0
        return max(
            min(self.paid_minor - self.refunded_minor, self.total_minor - self.noted_minor), 0
        )


def amount_to_refund(invoice: Refundable, amount_minor: int | None, processor: str | None) -> int:
    """Return how much is to be paid back; None asks for all that is left.

    Args:
        invoice: What was paid.
        amount_minor: What was asked for.
        processor: The processor that is set.

    Raises:
        Rejected: So much was not paid, or the payment was made by another processor.
    """
    amount = invoice.left_minor if amount_minor is None else amount_minor
    if not 0 < amount <= invoice.left_minor:
        most, asked = (amount_text(m, invoice.currency) for m in (invoice.left_minor, amount))
        raise Rejected(
            "NotRefundable",
            f"The invoice is {invoice.status}; at most {most} {invoice.currency} of its payment "
            f"can be paid back, not {asked}.",
        )
    if invoice.processor not in {BY_TRANSFER, processor}:
        raise Rejected(
            "ProcessorNotSet",
            f"The payment was made by {invoice.processor}; set BOTPLANE_PAYMENT_PROCESSOR to it.",
        )
    return amount
