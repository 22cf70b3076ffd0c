"""Money: exact, never a float, half to even."""

from __future__ import annotations

from decimal import Decimal, FloatOperation

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botplane.billing.money import (
    EXACT,
    MINOR_UNITS,
    decimal,
    from_minor,
    plain,
    round_to_minor,
    to_minor,
)
from botplane.errors import Rejected

currencies = st.sampled_from(sorted(MINOR_UNITS))


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [("128.40", "USD", 12840), ("128.4", "USD", 12840), ("1234", "JPY", 1234), ("0", "KWD", 0)],
)
def test_amount_becomes_whole_minor_units(amount: str, currency: str, minor: int) -> None:
    assert to_minor(amount, currency) == minor


@pytest.mark.parametrize(
    ("amount", "currency", "reason"),
    [
        ("0.001", "USD", "AmountTooPrecise"),
        ("0.5", "JPY", "AmountTooPrecise"),
        ("1", "XAU", "CurrencyUnknown"),
        ("abc", "USD", "NumberInvalid"),
        ("NaN", "USD", "NumberInvalid"),
        ("1e3", "USD", "NumberInvalid"),
    ],
)
def test_amount_that_no_document_can_show_is_refused(
    amount: str, currency: str, reason: str
) -> None:
    with pytest.raises(Rejected) as refused:
        to_minor(amount, currency)

    assert refused.value.reason == reason


def test_float_in_money_is_an_error() -> None:
    with pytest.raises(FloatOperation):
        EXACT.create_decimal(0.1)


@given(minor=st.integers(-(10**15), 10**15), currency=currencies)
def test_minor_units_come_back_from_the_amount(minor: int, currency: str) -> None:
    assert round_to_minor(from_minor(minor, currency), currency) == minor


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=18).filter(lambda d: abs(d) < 10**12)
)
def test_plain_text_says_the_same_number_without_exponent(number: Decimal) -> None:
    text = plain(number)

    assert decimal(text) == number
    assert "E" not in text
    assert not (("." in text) and text.endswith(("0", ".")))
