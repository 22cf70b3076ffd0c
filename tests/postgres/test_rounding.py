"""Rounding in SQL is the rounding of `decimal`, half to even, for every number."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from botplane.billing.money import EXACT, MINOR_UNITS, round_to_minor
from tests.support.ledger_oracle import at_decimals

same_database = settings(
    max_examples=30,
    deadline=None,
    # Numbers come in hundreds to a statement: a failure names the one that differs.
    phases=(Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
anywhere = st.decimals(
    min_value=Decimal("-1e15"), max_value=Decimal("1e15"), places=9, allow_nan=False
)
halves = st.integers(-(10**12), 10**12).map(lambda n: Decimal(n) / 2)


@same_database
@given(numbers=st.lists(st.one_of(anywhere, halves), min_size=200, max_size=1000))
def test_half_even_is_that_of_decimal(
    conn: psycopg.Connection[Any], numbers: list[Decimal]
) -> None:
    rows = conn.execute(
        "SELECT half_even(n) FROM unnest(%s::numeric[]) WITH ORDINALITY AS x (n, i) ORDER BY i",
        [numbers],
    ).fetchall()

    assert [row[0] for row in rows] == [
        number.to_integral_value(rounding=ROUND_HALF_EVEN) for number in numbers
    ]


@same_database
@given(
    quotients=st.lists(
        st.tuples(
            st.one_of(anywhere, halves, st.integers(-9, 9).map(lambda n: Decimal(n).scaleb(-18))),
            st.one_of(st.integers(1, 10**9).map(Decimal), st.sampled_from([Decimal(2)])),
        ),
        min_size=100,
        max_size=500,
    )
)
def test_divide_is_exact_to_eighteen_decimals(
    conn: psycopg.Connection[Any], quotients: list[tuple[Decimal, Decimal]]
) -> None:
    rows = conn.execute(
        "SELECT divide(n, d) FROM unnest(%s::numeric[], %s::numeric[]) WITH ORDINALITY"
        " AS x (n, d, i) ORDER BY i",
        [[n for n, _ in quotients], [d for _, d in quotients]],
    ).fetchall()

    assert [Fraction(row[0]) for row in rows] == [
        at_decimals(Fraction(n) / Fraction(d), 18) for n, d in quotients
    ]


@pytest.mark.parametrize(
    ("currency", "exact", "minor"),
    [
        ("USD", "0.125", 12),
        ("USD", "0.135", 14),
        ("USD", "2.675", 268),
        ("USD", "-0.125", -12),
        ("USD", "0.005", 0),
        ("USD", "0.015", 2),
        ("USD", "0.025", 2),
        ("JPY", "1234.5", 1234),
        ("JPY", "1235.5", 1236),
        ("KWD", "1.2345", 1234),
        ("KWD", "1.2355", 1236),
    ],
)
def test_amount_is_rounded_to_the_minor_unit_of_its_currency(
    conn: psycopg.Connection[Any], currency: str, exact: str, minor: int
) -> None:
    in_sql = conn.execute(
        "SELECT half_even(%s::numeric * power(10::numeric, minor_units)) FROM currency"
        " WHERE currency = %s",
        [exact, currency],
    ).fetchone()

    assert in_sql == (minor,)
    assert round_to_minor(EXACT.create_decimal(exact), currency) == minor


def test_python_and_sql_know_the_same_currencies(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute("SELECT currency, minor_units FROM currency").fetchall()

    assert dict(rows) == dict(MINOR_UNITS)
