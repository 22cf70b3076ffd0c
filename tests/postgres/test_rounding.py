"""Rounding in SQL is the rounding of `decimal`, half to even or up, for every number."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from botplane.billing.adjustments.store import Order, TaxTerms, set_tax
from botplane.billing.money import EXACT, MINOR_UNITS, Rounding, round_to_minor
from botplane.billing.proof.store import REBUILT, reconcile
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.tenants.store import register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until, whole_content
from tests.support.ledger_oracle import at_decimals

NOW = at("2026-11-02")

same_database = settings(
    max_examples=30,
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
        "SELECT round_by('half_even', n)"
        " FROM unnest(%s::numeric[]) WITH ORDINALITY AS x (n, i) ORDER BY i",
        [numbers],
    ).fetchall()

    assert [row[0] for row in rows] == [
        number.to_integral_value(rounding=ROUND_HALF_EVEN) for number in numbers
    ]


@same_database
@given(numbers=st.lists(st.one_of(anywhere, halves), min_size=200, max_size=1000))
def test_each_rounding_of_a_plan_is_that_of_decimal(
    conn: psycopg.Connection[Any], numbers: list[Decimal]
) -> None:
    rows = conn.execute(
        "SELECT round_by('half_even', n), round_by('half_up', n) FROM unnest(%s::numeric[])"
        " WITH ORDINALITY AS x (n, i) ORDER BY i",
        [numbers],
    ).fetchall()

    assert rows == [
        tuple(number.to_integral_value(rounding=mode) for mode in (ROUND_HALF_EVEN, ROUND_HALF_UP))
        for number in numbers
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
        "SELECT round_by('half_even', %s::numeric * power(10::numeric, minor_units))"
        " FROM currency WHERE currency = %s",
        [exact, currency],
    ).fetchone()

    assert in_sql == (minor,)
    assert round_to_minor(EXACT.create_decimal(exact), currency) == minor


@pytest.mark.parametrize(
    ("exact", "minor"), [("0.125", 13), ("0.115", 12), ("-0.125", -13), ("0.1249", 12), ("0", 0)]
)
def test_half_up_goes_away_from_zero(conn: psycopg.Connection[Any], exact: str, minor: int) -> None:
    in_sql = conn.execute("SELECT round_by('half_up', %s::numeric * 100)", [exact]).fetchone()

    assert in_sql == (minor,)
    assert round_to_minor(EXACT.create_decimal(exact), "USD", Rounding.HALF_UP) == minor


@pytest.fixture
def legal(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """An invoice that was rounded half up: its fee, and its tax."""
    publish_plan(conn, a_plan(rounding="HalfUp", fee="0.25"), at("2026-10-01"))
    half = at("2026-10-16T12:00:00Z")
    register_tenant(conn, an_account(subscription_start=half), half)
    order = Order(tenant="acme", actor="ana", now=at("2026-10-01"))
    set_tax(conn, order, TaxTerms(name="VAT", rate="0.5"))
    complete_until(conn, NOW)
    billing_run(conn, NOW)
    return conn


def test_invoice_keeps_how_it_was_rounded_and_is_rebuilt_by_it(
    legal: psycopg.Connection[Any],
) -> None:
    billed = invoice(legal, "acme", "2026-10", NOW)
    assert (billed.subtotal_minor, billed.tax_minor) == (13, 7)
    kept = legal.execute("SELECT snapshot #>> '{inputs,rounding}' FROM invoice").fetchall()
    assert kept == [("half_up",)]
    assert reconcile(legal, at("2026-10-01"), NOW) == []
    before = whole_content(legal)

    billing_run(legal, NOW)

    assert whole_content(legal) == before


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE invoice SET snapshot = snapshot #- '{inputs,rounding}'",
        "UPDATE invoice_line SET detail = detail - 'rounding'",
    ],
)
def test_rebuild_finds_another_rounding(legal: psycopg.Connection[Any], forgery: Any) -> None:
    legal.execute("SET session_replication_role = replica")
    legal.execute(forgery)

    assert [found.check for found in reconcile(legal, at("2026-10-01"), NOW)] == [REBUILT]


def test_python_and_sql_know_the_same_currencies(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute("SELECT currency, minor_units FROM currency").fetchall()

    assert dict(rows) == dict(MINOR_UNITS)
