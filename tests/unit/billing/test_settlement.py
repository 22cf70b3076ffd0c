"""From lines to what is due: the order of coupons, taxes, credits and carried balances."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botplane.billing.invoices import Line, ledger_entries
from botplane.billing.rows import inputs, read_inputs
from botplane.billing.settlement import (
    NO_LIMITS,
    Account,
    ChargeLimits,
    Coupon,
    Credit,
    TaxRule,
    settle,
    spread,
)
from tests.unit.billing.test_documents import BILLED, a_line

MARCH = "2026-03-01T00:00:00Z"
SINCE = BILLED.starts_at.replace(year=2020)


def a_coupon(code: str = "c", **more: Any) -> Coupon:
    coupon = Coupon(
        code=code,
        percent=None,
        amount_minor=None,
        target="invoice",
        starts_at=SINCE,
        ends_at=None,
        granted_at=SINCE,
        uses_left=1,
    )
    return replace(coupon, **more)


def percent(value: str, **more: Any) -> Coupon:
    return a_coupon(percent=Decimal(value), **{"code": f"{value}-percent"} | more)


def fixed(minor: int, **more: Any) -> Coupon:
    return a_coupon(amount_minor=minor, **{"code": f"{minor}-off"} | more)


def a_tax(rate: str, **more: Any) -> TaxRule:
    rule = TaxRule(
        name="VAT", target="all", rate=Decimal(rate), reason=None, starts_at=SINCE, ends_at=None
    )
    return replace(rule, **more)


def a_credit(credit_id: str, left: int, **more: Any) -> Credit:
    credit = Credit(
        credit_id=credit_id,
        kind="promotional",
        left_minor=left,
        granted_at=SINCE,
        expires_at=None,
    )
    return replace(credit, **more)


USAGE = a_line("usage/rpc_calls", "60.00")
FEE = a_line("subscription", "40.00")


def test_discount_is_spread_by_largest_remainder() -> None:
    assert spread(1000, [("a", 3333), ("b", 3333), ("c", 3334)]) == {"a": 333, "b": 333, "c": 334}


def test_equal_remainders_go_to_the_first_key() -> None:
    assert spread(100, [("c", 1), ("a", 1), ("b", 1)]) == {"a": 34, "b": 33, "c": 33}


@given(
    weights=st.lists(st.integers(1, 10**9), min_size=1, max_size=20),
    share=st.fractions(min_value=0, max_value=1),
)
def test_spread_adds_up_and_takes_from_no_line_more_than_it_has(
    weights: list[int], share: Any
) -> None:
    amount = int(sum(weights) * share)

    shares = spread(amount, [(str(n), weight) for n, weight in enumerate(weights)])

    assert sum(shares.values()) == amount
    assert all(0 <= shares[str(n)] <= weight for n, weight in enumerate(weights))


@pytest.mark.parametrize(
    ("coupons", "discount"),
    [
        # On lines: the percentage first, whatever was granted first.
        ([fixed(1000, target="usage"), percent("10", target="usage")], 600 + 1000),
        # On the invoice: the oldest first, a percentage of what remains.
        ([fixed(1000), percent("10", granted_at=BILLED.starts_at)], 1000 + 900),
        ([percent("10"), fixed(1000, granted_at=BILLED.starts_at)], 1000 + 1000),
        # Lines before the invoice.
        ([percent("10"), percent("50", target="usage", granted_at=BILLED.starts_at)], 3000 + 700),
        ([percent("50", target="usage/rpc_calls")], 3000),
        ([percent("50", target="usage/ai_units")], 0),
        ([fixed(99999)], 10000),
        ([percent("100"), fixed(1)], 10000),
        ([percent("50", uses_left=0)], 0),
        ([percent("50", uses_left=None)], 5000),
        ([percent("50", ends_at=BILLED.starts_at)], 0),
        ([percent("50", starts_at=BILLED.ends_at)], 0),
    ],
)
def test_coupons_count_in_their_order(coupons: list[Coupon], discount: int) -> None:
    settled = settle(BILLED, [USAGE, FEE], Account(coupons=tuple(coupons)))

    assert settled.discount_minor == discount
    assert sum(line.discount_minor for line in settled.lines) == discount


def test_tax_is_rounded_once_per_rate_on_discounted_amounts() -> None:
    lines = [a_line(f"usage/m{n}", "0.33") for n in range(3)]
    account = Account(coupons=(fixed(9),), taxes=(a_tax("0.15"),))

    settled = settle(BILLED, lines, account)

    assert [(tax.base_minor, tax.amount_minor) for tax in settled.taxes] == [(90, 14)]


def test_narrower_rule_of_a_tax_counts_and_other_taxes_add() -> None:
    rules = (
        a_tax("0.20"),
        a_tax("0", target="usage", reason="Exempt"),
        a_tax("0.05", name="Levy"),
    )

    settled = settle(BILLED, [USAGE, FEE], Account(taxes=rules))

    assert [(t.name, t.reason, t.base_minor, t.amount_minor) for t in settled.taxes] == [
        ("Levy", None, 10000, 500),
        ("VAT", "Exempt", 6000, 0),
        ("VAT", None, 4000, 800),
    ]


@pytest.mark.parametrize(
    ("change", "tax"),
    [("2026-10-31T22:59:59Z", 1000), (None, 2000), ("2026-10-31T23:00:00Z", 2000)],
)
def test_rate_of_the_last_moment_of_the_period_counts(change: str | None, tax: int) -> None:
    old, new = a_tax("0.20"), a_tax("0.10")
    if change is not None:
        moment = old.starts_at.fromisoformat(change)
        rules = (replace(old, ends_at=moment), replace(new, starts_at=moment))
    else:
        rules = (old,)  # type: ignore[assignment]

    assert settle(BILLED, [USAGE, FEE], Account(taxes=rules)).tax_minor == tax


def test_credits_pay_after_tax_and_do_not_lower_it() -> None:
    account = Account(taxes=(a_tax("0.20"),), credits=(a_credit("gift", 5000),))

    settled = settle(BILLED, [USAGE, FEE], account)

    assert (settled.tax_minor, settled.total_minor, settled.due_minor) == (2000, 12000, 7000)


def test_credits_are_used_promotional_first_and_by_expiry() -> None:
    held = (
        a_credit("note", 100, kind="credit_note"),
        a_credit("bought", 100, kind="purchased"),
        a_credit("gift", 100),
        a_credit("late", 100, expires_at=BILLED.ends_at.replace(year=2028)),
        a_credit("soon", 100, expires_at=BILLED.ends_at),
        a_credit("gone", 100, expires_at=BILLED.ends_at.replace(day=30)),
    )

    settled = settle(BILLED, [a_line("subscription", "3.50")], Account(credits=held))

    assert [(use.credit_id, use.amount_minor) for use in settled.credits] == [
        ("soon", 100),
        ("late", 100),
        ("gift", 100),
        ("bought", 50),
    ]


@pytest.mark.parametrize(
    ("charged", "carried_in", "due", "carried_out", "refunded"),
    [
        ("0.49", 0, 0, 49, 0),
        ("0.50", 0, 50, 0, 0),
        ("0.30", 20, 50, 0, 0),
        ("0.30", 10, 0, 40, 0),
        ("-5.00", 0, 0, 0, 500),
        ("-5.00", 30, 0, 0, 470),
        ("0.00", 0, 0, 0, 0),
    ],
)
def test_nothing_is_due_below_the_least_charge_or_zero(
    charged: str, carried_in: int, due: int, carried_out: int, refunded: int
) -> None:
    account = Account(carried_minor=carried_in, limits=ChargeLimits(minimum_minor=50))

    settled = settle(BILLED, [a_line("subscription", charged)], account)

    assert settled.due_minor == due
    assert (settled.carried_out_minor, settled.refunded_minor) == (carried_out, refunded)


def test_what_is_no_whole_step_is_carried() -> None:
    limits = ChargeLimits(minimum_minor=100, step_minor=10)

    settled = settle(BILLED, [a_line("subscription", "12.34")], Account(limits=limits))

    assert (settled.due_minor, settled.carried_out_minor) == (1230, 4)


lines = st.lists(
    st.builds(
        lambda n, kind, minor: replace(a_line(f"{kind}/m{n}", "0"), amount_minor=minor),
        st.integers(0, 10**6),
        st.sampled_from(["usage", "subscription", "commission"]),
        st.integers(-500, 5000),
    ),
    max_size=6,
    unique_by=lambda line: line.key,
)
coupons = st.one_of(
    st.builds(percent, st.sampled_from(["3.3333", "50", "100"]), target=st.just("usage")),
    st.builds(fixed, st.integers(1, 4000), target=st.sampled_from(["invoice", "commission"])),
)
account_values = st.builds(
    Account,
    coupons=st.lists(coupons, max_size=4, unique_by=lambda c: c.code).map(tuple),
    taxes=st.lists(
        st.builds(a_tax, st.sampled_from(["0.19", "0.0725"]), name=st.sampled_from("ab")),
        max_size=2,
        unique_by=lambda rule: rule.name,
    ).map(tuple),
    credits=st.lists(
        st.builds(a_credit, st.sampled_from("xyz"), st.integers(1, 3000)),
        max_size=3,
        unique_by=lambda credit: credit.credit_id,
    ).map(tuple),
    carried_minor=st.integers(0, 49),
    limits=st.sampled_from([NO_LIMITS, ChargeLimits(minimum_minor=50, step_minor=10)]),
)


@given(charged=lines, account=account_values)
def test_sums_always_agree(charged: list[Line], account: Account) -> None:
    settled = settle(BILLED, charged, account)

    assert settled.due_minor >= 0
    assert settled.discount_minor == sum(line.discount_minor for line in settled.lines)
    assert all(0 <= line.discount_minor <= max(line.amount_minor, 0) for line in settled.lines)
    for entries in ledger_entries(settled).values():
        assert sum(entries.values()) == 0
    assert settle(BILLED, reversed(charged), read_inputs(inputs(account))).due_minor == (
        settled.due_minor
    )


def test_correction_is_taxed_and_discounted_as_what_it_corrects() -> None:
    correction = replace(
        a_line("correction/INV-1/usage/rpc_calls", "10.00"),
        corrects_invoice=UUID(int=1),
        corrects_key="usage/rpc_calls/2026-09-01T00:00:00Z",
    )
    account = Account(
        coupons=(percent("10", target="usage"),), taxes=(a_tax("0.2", target="usage"),)
    )

    settled = settle(BILLED, [correction], account)

    assert (settled.discount_minor, settled.tax_minor) == (100, 180)
    assert ledger_entries(settled)["invoice"]["revenue_usage"] == -1000
