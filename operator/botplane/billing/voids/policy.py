"""Which invoices can be made void, and what their ledger entries become. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from botplane.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

VOIDABLE_FOR = timedelta(days=365)
"""After the end of its period. Corrections reach back 13 months: what earlier ones have charged for
the period can then still be set against the invoice that replaces it."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What speaks against making an issued invoice void."""

    status: str
    ended_at: datetime
    """End of its period."""
    is_credited: bool
    """A credit note has taken back part of it."""
    is_being_paid: bool
    """The outcome of a payment is open."""


def must_be_voidable(number: str, invoice: Standing, now: datetime) -> None:
    """Accept an invoice of the last year that nobody has paid, may be paying, or was credited with.

    Raises:
        Rejected: It is one of these; a credit note takes back what is paid.
    """
    if invoice.status == "paid":
        why = "is paid; take it back with `botplane credit-note` or `botplane payment refund`"
    elif invoice.is_being_paid:
        why = (
            "has a payment whose outcome is open; wait for the next billing run, or cancel the "
            "payment at the processor"
        )
    elif invoice.is_credited:
        why = "is credited in part; take back the rest with `botplane credit-note`"
    elif now >= invoice.ended_at + VOIDABLE_FOR:
        why = "is older than a year; take it back with `botplane credit-note`"
    else:
        return
    raise Rejected("NotVoidable", f"Invoice {number} {why}.")


def reversal(booked: Mapping[str, int]) -> dict[str, int]:
    """Return the entries that leave nothing of what is booked, by account."""
    return {account: -minor for account, minor in booked.items() if minor}
