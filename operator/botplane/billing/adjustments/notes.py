"""Credit notes: how an amount that is taken back splits and settles. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING

from botplane.billing.money import EXACT
from botplane.errors import Rejected

if TYPE_CHECKING:
    from uuid import UUID


@dataclass(frozen=True, kw_only=True)
class Creditable:
    """An issued invoice, and what was taken back of it; amounts in minor units."""

    tenant_id: UUID
    tenant: str
    invoice_id: UUID
    currency: str
    status: str
    total_minor: int
    tax_minor: int
    due_minor: int
    noted_minor: int
    reduced_minor: int
    """That part of `noted_minor` that lowered what is due."""
    is_being_paid: bool
    """The outcome of a payment over what is due is open."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a credit note does: `entries` are debits and credits by account.

    Attributes:
        settled_by: `reduce_due` when the whole amount is still owed, `refund` when it was paid
            back, else `credit`.
        closes: Nothing is owed on the invoice after it.
    """

    amount_minor: int
    tax_minor: int
    settled_by: str
    closes: bool
    entries: dict[str, int]


def credit_note(invoice: Creditable, amount_minor: int) -> Note:
    """Return the note that takes back an amount, tax included in the invoice's own proportion.

    Raises:
        Rejected: The invoice cannot be credited with so much.
    """
    left = invoice.total_minor - invoice.noted_minor
    if invoice.status in {"draft", "void"} or not 0 < amount_minor <= left:
        raise Rejected(
            "NotCreditable",
            f"The invoice is {invoice.status}; at most {max(left, 0)} minor units of it can be "
            f"credited, not {amount_minor}.",
        )
    tax = _part(invoice.tax_minor, amount_minor, invoice.total_minor)
    settled = invoice.status == "paid" or invoice.is_being_paid
    open_minor = 0 if settled else invoice.due_minor - invoice.reduced_minor
    owed = "bad_debt" if invoice.status == "uncollectible" else "receivable"
    reduces = amount_minor <= open_minor
    return Note(
        amount_minor=amount_minor,
        tax_minor=tax,
        settled_by="reduce_due" if reduces else "credit",
        closes=reduces and amount_minor == open_minor,
        entries={
            "discount_given": amount_minor - tax,
            "tax_payable": tax,
            owed if reduces else "customer_credit": -amount_minor,
        },
    )


def refund_note(total_minor: int, tax_minor: int, amount_minor: int) -> Note:
    """Return the note over what was paid back of an invoice, tax included in its proportion."""
    tax = _part(tax_minor, amount_minor, total_minor)
    return Note(
        amount_minor=amount_minor,
        tax_minor=tax,
        settled_by="refund",
        closes=False,
        entries={"discount_given": amount_minor - tax, "tax_payable": tax, "cash": -amount_minor},
    )


def _part(tax_minor: int, amount_minor: int, total_minor: int) -> int:
    """Return the tax in an amount, half to even."""
    exact = EXACT.divide(Decimal(tax_minor * amount_minor), Decimal(total_minor))
    return int(exact.to_integral_value(rounding=ROUND_HALF_EVEN))
