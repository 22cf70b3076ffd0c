"""Kubernetes quantities as exact numbers. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

_MULTIPLIERS: Final = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12),
    "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def quantity(text: str) -> Decimal:
    """Return a Kubernetes quantity ("500m", "1Gi", "1e3") in its base unit.

    Raises:
        ValueError: The text is not a quantity.
    """
    number = text.rstrip("".join(set("numkMGTPEi")))
    suffix = text[len(number) :]
    if suffix not in _MULTIPLIERS:
        raise ValueError(f"not a quantity: {text!r}")
    try:
        return Decimal(number) * _MULTIPLIERS[suffix]
    except ArithmeticError as error:
        raise ValueError(f"not a quantity: {text!r}") from error
