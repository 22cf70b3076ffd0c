"""Usage as people see it: rounded in a status, exact to the second on the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from botplane.usage.documents import render_json, render_table
from botplane.usage.status import figures
from botplane.usage.store import BotTotal, BotUsage, UsageSummary

ACME = UUID("11111111-1111-4111-8111-111111111111")
ARB = UUID("22222222-2222-4222-8222-222222222222")
START = datetime(2026, 10, 1, tzinfo=UTC)


def a_summary(seconds: int = 0, cost: str = "0", metered: datetime | None = START) -> UsageSummary:
    return UsageSummary(
        period_start=START,
        bot_seconds=seconds,
        rpc_calls=7,
        cost=Decimal(cost),
        metered_time=metered,
    )


def test_a_tenant_shows_hours_cost_and_until_when_they_are_complete() -> None:
    metered = datetime(2026, 10, 3, 9, 41, 59, tzinfo=UTC)

    shown = figures({ACME: a_summary(257_400, "128.396", metered)}, {})

    assert shown == {
        str(ACME): {
            "periodStart": "2026-10-01T00:00:00Z",
            "botHours": "71.500",
            "rpcCalls": 7,
            "cost": "128.40",
            "meteredTime": "2026-10-03T09:41:00Z",
        }
    }


def test_nothing_is_shown_before_metering_has_reported() -> None:
    assert figures({ACME: a_summary(metered=None)}, {}) == {}


@pytest.mark.parametrize(
    ("seconds", "hours"),
    [(0, "0.000"), (1, "0.000"), (2, "0.001"), (3600, "1.000"), (3_600_000_000, "1000000.000")],
)
def test_hours_of_a_bot(seconds: int, hours: str) -> None:
    shown = figures({}, {ARB: BotTotal(seconds, Decimal(0))})

    assert shown[str(ARB)]["botHours"] == hours


@pytest.mark.parametrize(
    ("cost", "shown"),
    [("0", "0.00"), ("0.125", "0.12"), ("0.135", "0.14"), ("1E+3", "1000.00"), ("2.999", "3.00")],
)
def test_costs_are_rounded_half_to_even_and_never_in_exponents(cost: str, shown: str) -> None:
    assert figures({}, {ARB: BotTotal(0, Decimal(cost))})[str(ARB)]["cost"] == shown


def a_usage(bot: str, seconds: int, cost: str, running: int = 1) -> BotUsage:
    return BotUsage(bot=bot, pods=2, seconds=seconds, running=running, cost=Decimal(cost))


def test_the_table_is_exact_to_the_second_and_sums_up() -> None:
    table = render_table([a_usage("arb-1", 3661, "0.1"), a_usage("", 1_000_000, "0.2", running=0)])

    rows = [line.split() for line in table.splitlines()]
    assert rows[1] == ["arb-1", "2", "1", "3,661", "1.016944", "0.100000"]
    assert rows[2] == ["(no", "bot)", "2", "0", "1,000,000", "277.777778", "0.200000"]
    assert rows[3] == ["total", "4", "1", "1,003,661", "278.794722", "0.300000"]


def test_programs_get_costs_unrounded_and_as_text() -> None:
    tiny = "0.000000000000000001"

    (entry,) = json.loads(render_json([a_usage("arb-1", 1, tiny)]))

    assert entry == {"bot": "arb-1", "pods": 2, "running": 1, "seconds": 1, "cost": tiny}
