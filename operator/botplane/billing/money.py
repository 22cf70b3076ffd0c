"""Money and exact decimals: whole minor units on documents, rounded once, never a float."""

from __future__ import annotations

import re
from decimal import (
    ROUND_HALF_EVEN,
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    FloatOperation,
    InvalidOperation,
    Overflow,
)
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from botplane.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping

EXACT = Context(
    prec=60,
    rounding=ROUND_HALF_EVEN,
    traps=[InvalidOperation, DivisionByZero, Overflow, FloatOperation],
)
"""The context of all arithmetic with money: mixing in a float raises `FloatOperation`."""

MINOR_UNITS: Mapping[str, int] = MappingProxyType({
    "AUD": 2, "BHD": 3, "BRL": 2, "CAD": 2, "CHF": 2, "CLP": 0, "CZK": 2, "DKK": 2, "EUR": 2,
    "GBP": 2, "HKD": 2, "INR": 2, "JPY": 0, "KRW": 0, "KWD": 3, "MXN": 2, "NOK": 2, "NZD": 2,
    "OMR": 3, "PLN": 2, "SEK": 2, "SGD": 2, "TND": 3, "USD": 2, "ZAR": 2,
})  # fmt: skip
"""Decimals of the minor unit by currency (ISO 4217); the table `currency` holds the same."""


class Rounding(StrEnum):
    """Where the half of a minor unit goes: to the even neighbour, or away from zero."""

    HALF_EVEN = "half_even"
    HALF_UP = "half_up"


_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_MODES = {Rounding.HALF_EVEN: ROUND_HALF_EVEN, Rounding.HALF_UP: ROUND_HALF_UP}


def decimal(text: str, most_decimals: int | None = None) -> Decimal:
    """Return the decimal that the text writes, exactly.

    Raises:
        Rejected: The text is no number, or has more decimals than are kept.
    """
    if not _NUMBER.fullmatch(text):
        raise Rejected("NumberInvalid", f"{text!r} is not a number such as 12.50.")
    number = EXACT.create_decimal(text)
    if most_decimals is not None and not _is_whole(number.scaleb(most_decimals, EXACT)):
        raise Rejected("AmountTooPrecise", f"{text} has more than {most_decimals} decimals.")
    return number


def _is_whole(number: Decimal) -> bool:
    return number == number.to_integral_value()


def minor_units(currency: str) -> int:
    """Return the decimals of a currency's minor unit.

    Raises:
        Rejected: Nothing can be billed in this currency.
    """
    if currency not in MINOR_UNITS:
        known = ", ".join(sorted(MINOR_UNITS))
        raise Rejected("CurrencyUnknown", f"Currency {currency} is not one of {known}.")
    return MINOR_UNITS[currency]


def to_minor(amount: str, currency: str) -> int:
    """Return an amount of the major unit as a whole number of minor units.

    Raises:
        Rejected: The amount is no number or finer than the minor unit, or the currency is unknown.
    """
    digits = minor_units(currency)
    scaled = decimal(amount).scaleb(digits, EXACT)
    if not _is_whole(scaled):
        raise Rejected("AmountTooPrecise", f"{amount} {currency} has more than {digits} decimals.")
    return int(scaled)


def round_to_minor(amount: Decimal, currency: str, rounding: Rounding = Rounding.HALF_EVEN) -> int:
    """Round an exact amount of the major unit to minor units."""
    return to_whole(amount.scaleb(minor_units(currency), EXACT), rounding)


def to_whole(amount: Decimal, rounding: Rounding) -> int:
    """Round an exact amount of minor units to a whole number of them."""
    return int(amount.to_integral_value(rounding=_MODES[rounding]))


def from_minor(minor: int, currency: str) -> Decimal:
    """Return minor units as an amount of the major unit, with all its decimals."""
    return Decimal(minor).scaleb(-minor_units(currency), EXACT)


def plain(number: Decimal) -> str:
    """Write a decimal without an exponent and without trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
