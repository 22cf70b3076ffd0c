"""Usage as people see it: rounded in a status, exact to the second on the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from botplane.usage.documents import render_json, render_table
from botplane.usage.standing import LimitState, MeterStanding, Notice, Standing
from botplane.usage.status import bot_figures, limit_verdict, notice_finding, tenant_figures
from botplane.usage.store import BotTotal, BotUsage

ACME = UUID("11111111-1111-4111-8111-111111111111")
START = datetime(2026, 10, 1, tzinfo=UTC)


def a_standing(
    *meters: MeterStanding,
    fee: str = "0",
    limit: str | None = None,
    metered: datetime | None = START,
) -> Standing:
    return Standing(
        tenant_id=ACME,
        tenant="acme",
        period="2026-10",
        starts_at=START,
        ends_at=datetime(2026, 11, 1, tzinfo=UTC),
        currency="USD",
        digits=2,
        fee=Decimal(fee),
        commission=Decimal(0),
        one_offs=Decimal(0),
        meters=meters,
        spend_limit=None if limit is None else Decimal(limit),
        blocks={},
        metered_time=metered,
    )


def a_meter(
    meter: str, quantity: int, included: int | None = None, *, is_hard: bool = False
) -> MeterStanding:
    return MeterStanding(
        is_hard=is_hard,
        meter=meter,
        quantity=Decimal(quantity),
        included=None if included is None else Decimal(included),
        cost=Decimal(0),
    )


def test_a_tenant_shows_hours_cost_limit_and_until_when_they_are_complete() -> None:
    stand = a_standing(
        a_meter("bot_seconds", 257_400),
        a_meter("rpc_calls", 7),
        fee="128.396",
        limit="500",
        metered=datetime(2026, 10, 3, 9, 41, 59, tzinfo=UTC),
    )

    assert tenant_figures(stand) == {
        "periodStart": "2026-10-01T00:00:00Z",
        "botHours": "71.500",
        "rpcCalls": 7,
        "cost": "128.40",
        "limitPercent": 25,
        "meteredTime": "2026-10-03T09:41:00Z",
    }


def test_nothing_is_shown_before_metering_has_reported() -> None:
    assert tenant_figures(a_standing(metered=None)) is None


@pytest.mark.parametrize(
    ("cost", "status", "reason", "says"),
    [
        ("249.99", "True", "WithinLimits", "Less than half"),
        ("250", "True", "LimitNear", "50 % of the spend limit of 500.00 is used"),
        ("399.99", "True", "LimitNear", "50 % of"),
        ("400", "True", "LimitNear", "80 % of"),
        ("450", "True", "LimitNear", "90 % of"),
        ("500", "False", "SpendLimitReached", "all of the spend limit of 500.00 is used"),
    ],
)
def test_the_condition_moves_only_where_a_warning_is_due(
    cost: str, status: str, reason: str, says: str
) -> None:
    verdict = limit_verdict(a_standing(fee=cost, limit="500"), {})

    assert (verdict.status, verdict.reason) == (status, reason)
    assert says in verdict.message


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (LimitState.BLOCKED, "RPC is refused and bots stop in 15 minutes or less"),
        (LimitState.SUSPENDED, "RPC is refused and bots are stopped"),
    ],
)
def test_the_condition_tells_what_the_spend_limit_does(state: LimitState, says: str) -> None:
    # The blocked tenant may already be below the limit again: hysteresis keeps the block.
    verdict = limit_verdict(a_standing(fee="490", limit="500"), {"spend": state})

    assert (verdict.status, verdict.reason) == ("False", "SpendLimitReached")
    assert says in verdict.message
    assert "raise spec.billing.spendLimit" in verdict.message


def test_beyond_what_the_plan_includes_is_billed_not_stopped() -> None:
    stand = a_standing(a_meter("rpc_calls", 1000, 1000), a_meter("ai_units", 80, 100))

    verdict = limit_verdict(stand, {})

    assert (verdict.status, verdict.reason) == ("False", "OverIncluded")
    assert verdict.message == (
        "all of the rpc_calls that the plan includes is used; "
        "what is used beyond is billed by the plan's prices"
    )


@pytest.mark.parametrize(
    ("state", "says"), [(LimitState.BLOCKED, "bots stop in 15"), (LimitState.SUSPENDED, "stopped")]
)
def test_the_condition_tells_what_a_hard_limit_on_a_meter_does(
    state: LimitState, says: str
) -> None:
    stand = a_standing(a_meter("rpc_calls", 1000, 1000, is_hard=True))

    verdict = limit_verdict(stand, {"included/rpc_calls": state})
    both = limit_verdict(stand, {"included/rpc_calls": LimitState.BLOCKED, "spend": state})

    assert (verdict.status, verdict.reason) == ("False", "UsageLimitReached")
    assert verdict.message.startswith("all of the rpc_calls that the plan includes is used: RPC")
    assert says in verdict.message
    assert both.reason == "SpendLimitReached"


def test_a_warning_tells_how_much_of_what_is_used() -> None:
    notice = Notice(
        tenant_id=ACME,
        period="2026-10",
        scope="spend",
        percent=80,
        used=Decimal("400.129"),
        limit=Decimal(500),
    )

    assert notice_finding(notice) == (
        "LimitNear",
        "80 % of the spend limit of 500.00 in period 2026-10 is used: 400.13 of 500.00",
    )


@pytest.mark.parametrize(
    ("seconds", "hours"),
    [(0, "0.000"), (1, "0.000"), (2, "0.001"), (3600, "1.000"), (3_600_000_000, "1000000.000")],
)
def test_hours_of_a_bot(seconds: int, hours: str) -> None:
    assert bot_figures(BotTotal(seconds, Decimal(0)))["botHours"] == hours


@pytest.mark.parametrize(
    ("cost", "shown"),
    [("0", "0.00"), ("0.125", "0.12"), ("0.135", "0.14"), ("1E+3", "1000.00"), ("2.999", "3.00")],
)
def test_costs_are_rounded_half_to_even_and_never_in_exponents(cost: str, shown: str) -> None:
    assert bot_figures(BotTotal(0, Decimal(cost)))["cost"] == shown


def a_usage(bot: str, seconds: int, cost: str, running: int = 1) -> BotUsage:
    return BotUsage(
        bot=bot,
        pods=2,
        seconds=seconds,
        running=running,
        storage_gb_hours=Decimal("0.5"),
        cost=Decimal(cost),
    )


def test_the_table_is_exact_to_the_second_and_sums_up() -> None:
    table = render_table([a_usage("arb-1", 3661, "0.1"), a_usage("", 1_000_000, "0.2", running=0)])

    rows = [line.split() for line in table.splitlines()]
    assert rows[1] == ["arb-1", "2", "1", "3,661", "1.016944", "0.500000", "0.100000"]
    assert rows[2] == ["(no", "bot)", "2", "0", "1,000,000", "277.777778", "0.500000", "0.200000"]
    assert rows[3] == ["total", "4", "1", "1,003,661", "278.794722", "1.000000", "0.300000"]


def test_programs_get_costs_unrounded_and_as_text() -> None:
    tiny = "0.000000000000000001"

    (entry,) = json.loads(render_json([a_usage("arb-1", 1, tiny)]))

    assert entry == {
        "bot": "arb-1",
        "pods": 2,
        "running": 1,
        "seconds": 1,
        "storageGBHours": "0.5",
        "cost": tiny,
    }
