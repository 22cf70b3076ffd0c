"""A forecast as people and programs see it: rounded, and called an estimate."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from botplane.usage.documents import (
    render_cost,
    render_forecast,
    render_standing,
    standing_document,
)
from botplane.usage.forecast.policy import Forecast, status_texts
from botplane.usage.standing import MeterStanding, Standing

ACME = UUID("11111111-1111-4111-8111-111111111111")
START = datetime(2026, 10, 1, tzinfo=UTC)


def a_forecast(amount: str, over: str | None) -> Forecast:
    return Forecast(
        tenant_id=ACME,
        period="2026-10",
        currency="USD",
        amount=Decimal(amount),
        low=Decimal("1280.00"),
        high=Decimal("1330.10"),
        run_rate=Decimal("300.00"),
        projected_overage=Decimal("202.15"),
        over_limit=None if over is None else Decimal(over),
        elapsed_percent=Decimal(50),
        as_of=START,
    )


def a_standing(**more: Any) -> Standing:
    plain: dict[str, Any] = {
        "tenant_id": ACME,
        "tenant": "acme",
        "period": "2026-10",
        "starts_at": START,
        "ends_at": START,
        "currency": "USD",
        "digits": 2,
        "fee": Decimal(99),
        "commission": Decimal(0),
        "one_offs": Decimal(0),
        "meters": (),
        "spend_limit": None,
        "blocks": {},
        "metered_time": None,
    }
    return Standing(**plain | more)


def test_people_are_told_that_a_forecast_is_an_estimate() -> None:
    assert render_forecast(a_forecast("1301.15", "101.15")) == (
        "Estimate of the whole period 2026-10: 1,301.15 USD, 101.15 over the spend limit.\n"
        "With 80 % probability it is between 1,280.00 and 1,330.10."
        " Usage beyond what is included: 202.15."
    )
    assert "spend limit" not in render_forecast(a_forecast("1301.15", "0"))


def test_a_range_without_width_is_not_told_as_one() -> None:
    steady = replace(a_forecast("1280.00", "0"), high=Decimal("1280.00"))

    assert render_forecast(steady) == (
        "Estimate of the whole period 2026-10: 1,280.00 USD.\n"
        "Nothing so far points to another amount. Usage beyond what is included: 202.15."
    )


def test_people_are_told_what_the_cost_so_far_is_made_of() -> None:
    stand = a_standing(
        fee=Decimal(1099),
        one_offs=Decimal("250.05"),
        meters=(
            MeterStanding(
                meter="rpc_calls", quantity=Decimal(3), included=None, cost=Decimal("0.3")
            ),
        ),
    )

    assert render_cost(stand) == (
        "Cost of period 2026-10 so far: 1,349.35 USD"
        " (fee 1,099.00, usage 0.30, one-off charges 250.05)."
    )
    rows = render_standing(stand, None, START).splitlines()
    assert rows[-2].split() == ["one-off", "charges", "250.050000"]
    assert rows[-1].split() == ["total", "1,349.350000"]


@pytest.mark.parametrize(
    ("currency", "digits", "amount"), [("JPY", 0, "12,345"), ("KWD", 3, "12,345.005")]
)
def test_cost_and_limit_have_the_decimals_of_their_currency(
    currency: str, digits: int, amount: str
) -> None:
    exact = Decimal(amount.replace(",", ""))
    stand = a_standing(currency=currency, digits=digits, fee=exact, spend_limit=exact)

    assert render_cost(stand) == (
        f"Cost of period 2026-10 so far: {amount} {currency} (fee {amount})."
    )
    assert f"limit {amount} " in render_standing(stand, None, START).splitlines()[-1]


def test_programs_get_the_forecast_as_text_or_none() -> None:
    stand = a_standing(spend_limit=Decimal(1200))

    assert standing_document(stand, a_forecast("1301.15", "101.15"), START)["forecast"] == {
        "quality": "estimated",
        "amount": "1301.15",
        "low": "1280.00",
        "high": "1330.10",
        "projectedOverage": "202.15",
        "overLimit": "101.15",
        "asOf": "2026-10-01T00:00:00Z",
    }
    assert standing_document(stand, None, START)["forecast"] is None


def test_status_shows_the_amount() -> None:
    assert status_texts({ACME: a_forecast("0.00", None)}) == {str(ACME): "0.00"}
