"""How much of a payment can go back."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from botplane.billing.adjustments.notes import refund_note
from botplane.billing.refunds.policy import Refundable, amount_to_refund
from botplane.errors import Rejected


def paid(**more: Any) -> Refundable:
    """Return an invoice of 119.00 that Stripe has collected."""
    invoice: dict[str, Any] = {
        "tenant_id": UUID(int=1),
        "tenant": "acme",
        "invoice_id": UUID(int=2),
        "currency": "USD",
        "status": "paid",
        "total_minor": 11900,
        "attempt_no": 1,
        "processor": "stripe",
        "paid_minor": 11900,
        "refunded_minor": 0,
        "noted_minor": 0,
    }
    return Refundable(**invoice | more)


@pytest.mark.parametrize(
    ("invoice", "left"),
    [
        (paid(), 11900),
        (paid(refunded_minor=5000, noted_minor=5000), 6900),
        (paid(noted_minor=11900), 0),
        (paid(refunded_minor=11900, noted_minor=11900), 0),
        (paid(paid_minor=5000), 5000),
        (paid(paid_minor=12400), 11900),
        (paid(total_minor=11400), 11400),
        (paid(status="void"), 0),
        (paid(status="finalized", attempt_no=None, processor=None, paid_minor=0), 0),
    ],
)
def test_never_more_than_was_paid_nor_than_was_invoiced(invoice: Refundable, left: int) -> None:
    assert invoice.left_minor == left
    if left:
        assert amount_to_refund(invoice, None, "stripe") == left
    with pytest.raises(Rejected, match=f"at most {left} minor units"):
        amount_to_refund(invoice, left + 1, "stripe")


@pytest.mark.parametrize(("total", "tax", "amount", "part"), [(11900, 1900, 50, 8), (100, 0, 7, 0)])
def test_note_of_a_refund_sums_to_zero(total: int, tax: int, amount: int, part: int) -> None:
    note = refund_note(total, tax, amount)

    assert note.entries == {"discount_given": amount - part, "tax_payable": part, "cash": -amount}
    assert sum(note.entries.values()) == 0
