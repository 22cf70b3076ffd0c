"""Price books: what cannot be billed is refused, what means the same is the same."""

from __future__ import annotations

from typing import Any

import pytest

from botplane.errors import Rejected
from tests.support.billing import a_plan, per_hour

CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}


def tiered(*ends: str | None, model: str = "Graduated") -> dict[str, Any]:
    """Return a price of calls with tiers up to these ends."""
    tiers = [{"unitPrice": "1"} if end is None else {"upTo": end} for end in ends]
    return {"meter": "rpc_calls", "model": model, "tiers": tiers}


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"fee": "9.999"}, "AmountTooPrecise"),
        ({"currency": "XAU"}, "CurrencyUnknown"),
        ({"currency": "JPY", "minimumCommitment": "0.5"}, "AmountTooPrecise"),
        ({"prices": [per_hour("1", "bot_minutes")]}, "MeterUnknown"),
        ({"prices": [CALLS, CALLS]}, "PriceInvalid"),
        ({"prices": [CALLS | {"unitSize": "0"}]}, "PriceInvalid"),
        ({"prices": [CALLS | {"model": "Flat"}]}, "PriceInvalid"),
        ({"prices": [CALLS | {"onExceed": "Block"}]}, "PriceInvalid"),
        ({"prices": [CALLS | {"tiers": [{"flatFee": "0.001"}]}]}, "AmountTooPrecise"),
        ({"prices": [tiered("10", None, model="PerUnit")]}, "PriceInvalid"),
        ({"prices": [tiered("10", None, model="Package")]}, "PriceInvalid"),
        ({"prices": [tiered("10", "20")]}, "PriceInvalid"),
        ({"prices": [tiered("20", "10", None)]}, "PriceInvalid"),
        ({"prices": [tiered("10", "10", None)]}, "PriceInvalid"),
        ({"prices": [tiered("10", None, None)]}, "PriceInvalid"),
        ({"prices": [tiered("0", None)]}, "PriceInvalid"),
        ({"commission": {"netting": "Period", "capPerTrade": "5"}}, "PriceInvalid"),
        ({"commission": {"netting": "HighWaterMark", "capPerTrade": "5"}}, "PriceInvalid"),
        (
            {
                "commission": {
                    "volumeDiscounts": [
                        {"fromVolume": "100", "discount": "0.05"},
                        {"fromVolume": "100.00", "discount": "0.1"},
                    ]
                }
            },
            "PriceInvalid",
        ),
    ],
)
def test_price_that_cannot_be_billed_is_refused(plan: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected) as refused:
        a_plan(**plan)

    assert refused.value.reason == reason


def test_book_without_later_terms_has_the_hash_that_it_had_before_there_were_any() -> None:
    known = "dc4d9bb2"
    included = CALLS | {"included": "5"}
    soft, hard = (
        a_plan(prices=[included | {"onExceed": mode}]).content_hash.hex()
        for mode in ("Bill", "Block")
    )

    assert soft[:8] == known
    assert hard != soft


def test_each_tier_begins_where_the_one_before_ends() -> None:
    book = a_plan(prices=[tiered("10", "20.5", None)])

    bounds = [(str(tier.lo), tier.hi and str(tier.hi)) for tier in book.prices[0].tiers]
    assert bounds == [("0", "10"), ("10", "20.5"), ("20.5", None)]


def test_writing_and_order_do_not_change_the_content() -> None:
    one = a_plan(fee="10", prices=[per_hour("0.060"), CALLS], displayName="One")
    other = a_plan(fee="10.00", prices=[CALLS, per_hour("0.06")], maxReplicas=3)

    assert one.content_hash == other.content_hash


@pytest.mark.parametrize(
    "changed",
    [
        {"fee": "10.01"},
        {"minimumCommitment": "1"},
        {"tierScope": "Phase"},
        {"rounding": "HalfUp"},
        {"prices": [per_hour("0.06")]},
        {"prices": [CALLS | {"included": "1"}]},
        {"prices": [CALLS | {"unitSize": "2"}]},
        {"prices": [CALLS | {"model": "Package"}]},
        {"prices": [CALLS | {"tiers": [{"unitPrice": "0.01", "flatFee": "1"}]}]},
        {"commission": {"rate": "0.1"}},
        {"commission": {"netting": "Period"}},
        {"commission": {"netting": "HighWaterMark"}},
        {"commission": {"capPerTrade": "5"}},
        {"commission": {"capPerPeriod": "5"}},
    ],
)
def test_anything_that_changes_a_bill_changes_the_content(changed: dict[str, Any]) -> None:
    plan: dict[str, Any] = {"fee": "10", "prices": [CALLS]}

    assert a_plan(**plan).content_hash != a_plan(**plan | changed).content_hash
