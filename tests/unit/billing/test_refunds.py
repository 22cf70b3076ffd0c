"""How much of a payment can go back."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from botplane.billing.adjustments.notes import TaxShare, refund_note
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
    with pytest.raises(Rejected, match=rf"at most {left // 100}\.{left % 100:02d} USD of"):
        amount_to_refund(invoice, left + 1, "stripe")


def taxed(total: int, tax: int, credited: int = 0, credited_tax: int = 0) -> TaxShare:
    return TaxShare(
        total_minor=total,
        tax_minor=tax,
        credited_minor=credited,
        credited_tax_minor=credited_tax,
    )


@pytest.mark.parametrize(("total", "tax", "amount", "part"), [(11900, 1900, 50, 8), (100, 0, 7, 0)])
def test_note_of_a_refund_sums_to_zero(total: int, tax: int, amount: int, part: int) -> None:
    note = refund_note(taxed(total, tax), amount)

    assert note.entries == {"discount_given": amount - part, "tax_payable": part, "cash": -amount}
    assert sum(note.entries.values()) == 0


@pytest.mark.parametrize(
    ("total", "tax", "amounts", "taxes"),
    [
        (3, 2, (1, 1, 1), (1, 0, 1)),
        (3, 1, (1, 1, 1), (0, 1, 0)),
        (119, 19, (50, 50, 19), (8, 8, 3)),
        (10, 5, (1,) * 10, (0, 1, 1, 0, 0, 1, 1, 0, 0, 1)),
        (7, 7, (3, 4), (3, 4)),
    ],
)
def test_notes_over_a_whole_invoice_have_its_whole_tax_between_them(
    total: int, tax: int, amounts: tuple[int, ...], taxes: tuple[int, ...]
) -> None:
    credited = credited_tax = 0
    found = []
    for amount in amounts:
        note = refund_note(taxed(total, tax, credited, credited_tax), amount)
        credited, credited_tax = credited + amount, credited_tax + note.tax_minor
        found.append(note.tax_minor)

    assert tuple(found) == taxes
    assert credited_tax == tax
