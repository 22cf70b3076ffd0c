"""Credit notes: how an amount that is taken back splits and settles. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING

from botplane.billing.invoices import amount_text
from botplane.billing.money import EXACT
from botplane.errors import Rejected

if TYPE_CHECKING:
    from uuid import UUID


@dataclass(frozen=True, kw_only=True)
class TaxShare:
    """The tax of an invoice, and what its credit notes have taken back of it; in minor units."""

    total_minor: int
    tax_minor: int
    credited_minor: int
    """Sum of its credit notes, tax included."""
    credited_tax_minor: int

    def of_next(self, amount_minor: int) -> int:
        """Return the tax in the next amount that is taken back, tax included.

        It is the share of all that was taken back, less what earlier notes had: notes over the
        whole invoice have its whole tax between them, however small they are.
        """
        back = Decimal(self.tax_minor * (self.credited_minor + amount_minor))
        exact = EXACT.divide(back, Decimal(self.total_minor))
        share = int(exact.to_integral_value(rounding=ROUND_HALF_EVEN))
        return min(max(share - self.credited_tax_minor, 0), amount_minor)


@dataclass(frozen=True, kw_only=True)
class Creditable(TaxShare):
    """An issued invoice, and what was taken back of it; amounts in minor units."""

    tenant_id: UUID
    tenant: str
    invoice_id: UUID
    currency: str
    status: str
    due_minor: int
    noted_minor: int
    """What its credit notes have taken back, or what refunds under way will."""
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
        most, asked = (amount_text(m, invoice.currency) for m in (max(left, 0), amount_minor))
        raise Rejected(
            "NotCreditable",
            f"The invoice is {invoice.status}; at most {most} {invoice.currency} of it can be "
            f"credited, not {asked}.",
        )
    tax = invoice.of_next(amount_minor)
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


def refund_note(invoice: TaxShare, amount_minor: int) -> Note:
    """Return the note over what was paid back of an invoice, tax included in its proportion."""
    tax = invoice.of_next(amount_minor)
    return Note(
        amount_minor=amount_minor,
        tax_minor=tax,
        settled_by="refund",
        closes=False,
        entries={"discount_given": amount_minor - tax, "tax_payable": tax, "cash": -amount_minor},
    )
