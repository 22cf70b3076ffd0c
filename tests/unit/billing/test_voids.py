"""Which invoices can be made void."""

from __future__ import annotations

import pytest

from botplane.billing.voids.policy import Standing, must_be_voidable, reversal
from botplane.errors import Rejected
from tests.support.billing import at


def standing(status: str, *what: str) -> Standing:
    return Standing(
        status=status,
        ended_at=at("2025-12-01" if "old" in what else "2025-12-02"),
        is_credited="credited" in what,
        is_being_paid="being paid" in what,
    )


@pytest.mark.parametrize(
    ("invoice", "why"),
    [
        (standing("finalized"), None),
        (standing("uncollectible"), None),
        (standing("finalized", "credited"), "credited in part"),
        (standing("finalized", "being paid"), "outcome is open"),
        (standing("uncollectible", "being paid"), "outcome is open"),
        (standing("finalized", "old"), "older than a year"),
        (standing("paid"), "is paid"),
        (standing("paid", "credited", "being paid"), "is paid"),
    ],
)
def test_only_what_nobody_paid_pays_or_was_credited_with(
    invoice: Standing, why: str | None
) -> None:
    if why is None:
        must_be_voidable("INV-1", invoice, at("2026-12-01"))
        return
    with pytest.raises(Rejected, match=why):
        must_be_voidable("INV-1", invoice, at("2026-12-01"))


def test_reversal_leaves_nothing_on_any_account() -> None:
    booked = {"receivable": 0, "bad_debt": 8070, "revenue_usage": -8070}

    assert reversal(booked) == {"bad_debt": -8070, "revenue_usage": 8070}
