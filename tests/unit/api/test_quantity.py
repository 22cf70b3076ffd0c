"""Quantities, as the API server stores them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from botplane.api.types import QUANTITY_PATTERN, Quantity

FACTORS: dict[str, int | Fraction] = {
    "": 1, "m": Fraction(1, 1000), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15,
    "E": 10**18, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip
TEXTS = st.from_regex(QUANTITY_PATTERN.removesuffix("$") + r"\Z")

# Each was written as a quota of a Kubernetes 1.37.2 API server and read back.
STORED = [
    ("0", "0"), ("0Gi", "0"), ("0.0", "0"), ("00", "0"), ("0m", "0"),
    ("1", "1"), ("1.0", "1"), ("2.50", "2500m"), ("0.1", "100m"),
    ("500m", "500m"), ("1000m", "1"), ("1500m", "1500m"), ("2000m", "2"), ("12000m", "12"),
    ("1000", "1k"), ("1024", "1024"), ("2000", "2k"), ("1500", "1500"), ("1000000", "1M"),
    ("1.5k", "1500"), ("1.5G", "1500M"), ("1000G", "1T"), ("1000P", "1E"), ("0.5k", "500"),
    ("1Ki", "1Ki"), ("1024Ki", "1Mi"), ("1.5Gi", "1536Mi"), ("0.5Mi", "512Ki"),
    ("0.5Ki", "512"), ("1.5Ki", "1536"), ("1000Mi", "1000Mi"), ("1024Pi", "1Ei"),
    ("0.25Gi", "256Mi"), ("1024Mi", "1Gi"), ("2048Gi", "2Ti"), ("0.0005", "1m"),
    ("0.0101", "11m"), ("0.999999", "1"), ("1.0005Ki", "1024512m"),
]  # fmt: skip
DOUBLED = [
    ("500m", "1"), ("750m", "1500m"), ("20", "40"), ("512Mi", "1Gi"), ("64Gi", "128Gi"),
    ("0.25", "500m"), ("0", "0"), ("500", "1k"), ("512Pi", "1Ei"), ("500P", "1E"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "stored"), STORED)
def test_a_quantity_compares_equal_to_what_the_api_server_stores(written: str, stored: str) -> None:
    assert Quantity(written).canonical == stored


@pytest.mark.parametrize(("written", "stored"), DOUBLED)
def test_a_multiple_is_stored_the_same_way(written: str, stored: str) -> None:
    assert Quantity(written).times(2) == stored


@given(TEXTS)
@example("999999999999.999999Pi")
@example("11999.999999")
def test_the_canonical_text_means_the_same_amount_rounded_up_to_a_thousandth(text: str) -> None:
    canonical = Quantity(text).canonical

    digits = canonical.rstrip("mkMGTPEKi")
    amount = Fraction(digits) * FACTORS[canonical[len(digits) :]]
    written = text.rstrip("mkMGTPKi")
    meant = Fraction(written) * FACTORS[text[len(written) :]]
    assert 0 <= amount - meant < Fraction(1, 1000)
    assert Quantity(canonical).canonical == canonical


def test_the_text_of_the_user_is_kept() -> None:
    assert TypeAdapter(Quantity).validate_python("0.1") == "0.1"
    assert TypeAdapter(Quantity).validate_python(2) == "2"


@pytest.mark.parametrize(
    "text", ["-1", "1e3", ".5Gi", "1 Gi", "1gi", "", "\u0661", "1Gi\n", True, None]
)
def test_what_is_not_a_plain_quantity_is_refused(text: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Quantity).validate_python(text)


def test_the_value_is_in_base_units() -> None:
    assert Quantity("250m").value == Decimal("0.25")
    assert Quantity("1.5Gi").value == Decimal(1610612736)
    assert Quantity("1Ei").value == Decimal(2**60)
