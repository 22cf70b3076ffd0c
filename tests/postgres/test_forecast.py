"""What a period will cost: rated as its invoice, exact at its end, and judged when it is billed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors, sql

from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.store import register_tenant
from botplane.usage.forecast.policy import Accuracy, Forecast
from botplane.usage.forecast.store import accuracy, forecast_of, forecast_pass, forecasts
from botplane.usage.store import standing_of, standings
from tests.postgres.test_rating_oracle import _tell
from tests.support.billing import (
    Run,
    a_plan,
    an_account,
    at,
    complete_until,
    per_hour,
    record_runs,
    record_usage,
    record_won_and_lost,
)
from tests.support.random_usage import END, a_world

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}
NOVEMBER, DECEMBER = at("2026-11-01"), at("2026-12-01")


def acme_on(conn: psycopg.Connection[Any], plan: dict[str, Any], **more: Any) -> TenantAccount:
    """Subscribe a tenant to a plan since the first of October."""
    publish_plan(conn, a_plan(**plan), at("2026-09-01"))
    account = an_account(**more)
    register_tenant(conn, account, at("2026-10-01"))
    return account


def calls(
    conn: psycopg.Connection[Any], tenant_id: UUID, days: Iterable[datetime], by_hour: str
) -> None:
    """Record calls in every hour of some days."""
    usage = [
        (day + hour * HOUR + HOUR / 2, "rpc_calls", Decimal(by_hour))
        for day in days
        for hour in range(24)
    ]
    record_usage(conn, tenant_id, usage)


def days(start: str, count: int) -> list[datetime]:
    return [at(start) + number * DAY for number in range(count)]


def foresee(conn: psycopg.Connection[Any], now: datetime) -> Forecast:
    found = forecast_of(conn, standing_of(conn, "acme", now), now)
    assert found is not None
    return found


def test_even_usage_goes_on_as_it_was(conn: psycopg.Connection[Any]) -> None:
    account = acme_on(conn, {"fee": "99.00", "prices": [CALLS]})
    calls(conn, account.tenant_id, days("2026-11-01", 10), "25.5")

    tenth = foresee(conn, at("2026-11-11"))
    calls(conn, account.tenant_id, days("2026-11-11", 20), "25.5")
    last = forecasts(conn, [standing_of(conn, "acme", DECEMBER - HOUR)], DECEMBER)

    assert (tenth.run_rate, tenth.amount) == (Decimal("282.60"), Decimal("282.60"))
    assert tenth.projected_overage == Decimal("183.60")
    assert tenth.low <= tenth.amount <= tenth.high
    ended = last[account.tenant_id]
    assert ended.low == ended.amount == ended.high == ended.run_rate == Decimal("282.60")


@pytest.mark.parametrize("seed", [1, 2])
def test_forecast_at_the_end_is_the_invoice(conn: psycopg.Connection[Any], seed: int) -> None:
    _tell(conn, a_world(random.Random(seed), 60))
    foreseen: dict[tuple[UUID, str], Decimal] = {}
    for moment in (END - 65 * DAY, END - 35 * DAY, END - 4 * DAY):
        for early in standings(conn, moment)[0].values():
            last, _ = standings(conn, early.ends_at - SECOND, [early.tenant_id])
            found = forecasts(conn, last.values(), early.ends_at)
            for tenant_id, forecast in found.items():
                assert forecast.low == forecast.amount == forecast.high
                foreseen[tenant_id, forecast.period] = forecast.amount
    complete_until(conn, END + 60 * DAY)
    billing_run(conn, END + 60 * DAY)

    billed = {
        (tenant_id, period): amount
        for tenant_id, period, amount in conn.execute("""
            SELECT i.tenant_id, i.period, sum(l.amount_minor * power(10::numeric, -c.minor_units))
            FROM invoice i JOIN invoice_line l USING (tenant_id, invoice_id)
            JOIN currency c USING (currency)
            WHERE l.kind <> 'correction' GROUP BY i.tenant_id, i.period
            """)
    }
    assert len(foreseen) > 40
    assert foreseen == {key: billed[key] for key in foreseen}


@pytest.mark.parametrize("day", [5, 20])
def test_revision_includes_nothing_a_second_time(conn: psycopg.Connection[Any], day: int) -> None:
    included = CALLS | {"included": "10000"}
    account = acme_on(conn, {"prices": [included]})
    revised = at("2026-11-01") + day * DAY
    publish_plan(conn, a_plan(minimumCommitment="1", prices=[included]), revised)
    calls(conn, account.tenant_id, days("2026-11-01", 22), "25.5")

    found = foresee(conn, at("2026-11-23"))

    # 18,360 calls, of which 8,360 are not included.
    assert found.run_rate == found.amount == Decimal("83.60")


def test_what_runs_now_runs_until_the_end(conn: psycopg.Connection[Any]) -> None:
    account = acme_on(conn, {"fee": "10.00", "prices": [per_hour("0.05", included="100")]})
    bots = [Run(start=at("2026-10-20"), end=None), Run(start=at("2026-11-15"), end=None)]
    record_runs(conn, account.tenant_id, bots)
    now = at("2026-11-16T12:00:00Z")

    two = foresee(conn, now)
    record_runs(conn, account.tenant_id, [Run(start=now - timedelta(seconds=1), end=None)])
    three = foresee(conn, now)

    # 720 h and 384 h, of which 1/36 h is included; then 348 h and a second more.
    assert two.amount == Decimal("65.20")
    assert three.amount - two.amount == Decimal("17.40")


def test_bots_that_come_by_day_do_not_swing_the_forecast(conn: psycopg.Connection[Any]) -> None:
    account = acme_on(conn, {"prices": [per_hour("1")]})
    runs = [Run(start=at("2026-09-20"), end=None)]
    runs += [Run(start=day + 8 * HOUR, end=day + 20 * HOUR) for day in days("2026-10-01", 45)]
    record_runs(conn, account.tenant_id, runs)
    night, by_day = foresee(conn, at("2026-11-14")), foresee(conn, at("2026-11-14T12:00:00Z"))

    # 24 h of one bot and 12 h of another, on each of 30 days.
    assert night.amount == pytest.approx(Decimal(1080), rel=Decimal("0.02"))
    assert by_day.amount == pytest.approx(Decimal(1080), rel=Decimal("0.02"))


def test_weekends_are_foreseen(conn: psycopg.Connection[Any]) -> None:
    account = acme_on(conn, {"prices": [CALLS]})
    work = [day for day in days("2026-10-01", 46) if day.weekday() < 5]
    calls(conn, account.tenant_id, work, "100")

    # The sixteenth is a Monday: ten working days are over, eleven will come.
    found = foresee(conn, at("2026-11-16"))

    assert found.run_rate == 480
    assert found.amount == pytest.approx(Decimal(504), abs=8)


def test_half_a_day_is_like_the_same_half_before(conn: psycopg.Connection[Any]) -> None:
    account = acme_on(conn, {"prices": [CALLS]})
    mornings = [day + hour * HOUR for day in days("2026-10-01", 46) for hour in range(12)]
    record_usage(conn, account.tenant_id, [(one, "rpc_calls", Decimal(10)) for one in mornings])

    found = foresee(conn, at("2026-11-15T12:00:00Z"))

    # 1,800 calls until noon, as many in the fifteen mornings that come, none this afternoon; the
    # run-rate of a third says 1,924.14.
    assert found.amount == Decimal("36.41")


def test_limit_shows_by_how_much_it_will_be_passed(conn: psycopg.Connection[Any]) -> None:
    account = acme_on(conn, {"fee": "99.00", "prices": [CALLS]}, spend_limit=Decimal(200))
    calls(conn, account.tenant_id, days("2026-11-01", 10), "25.5")

    over = foresee(conn, at("2026-11-11")).over_limit
    conn.execute("UPDATE tenant SET spend_limit = 300")
    within = foresee(conn, at("2026-11-11")).over_limit
    conn.execute("UPDATE tenant SET spend_limit = NULL")

    assert (over, within) == (Decimal("82.60"), Decimal(0))
    assert foresee(conn, at("2026-11-11")).over_limit is None


@pytest.mark.parametrize(("cap", "amount"), [("70.00", "60.00"), ("50.00", "50.00")])
def test_commission_goes_on_until_its_cap(
    conn: psycopg.Connection[Any], cap: str, amount: str
) -> None:
    terms = {"rate": "0.10", "capPerPeriod": cap}
    account = acme_on(conn, {"commission": terms})
    won = [(day + 12 * HOUR, Decimal(20), Decimal(1)) for day in days("2026-10-04", 43)]
    record_won_and_lost(conn, account.tenant_id, won)

    half = foresee(conn, at("2026-11-16"))

    assert half.amount == Decimal(amount)
    assert half.high <= Decimal(cap)


def test_nothing_is_said_in_the_first_hours(conn: psycopg.Connection[Any]) -> None:
    account = acme_on(conn, {"fee": "99.00", "prices": [CALLS]})
    calls(conn, account.tenant_id, days("2026-10-01", 31), "10")

    stand = standing_of(conn, "acme", NOVEMBER + 20 * HOUR)

    assert forecast_of(conn, stand, NOVEMBER + 20 * HOUR) is None
    assert forecast_of(conn, stand, NOVEMBER + 24 * HOUR) is not None


def test_kept_forecasts_are_judged_when_the_period_is_billed(
    conn: psycopg.Connection[Any],
) -> None:
    account = acme_on(conn, {"fee": "40.00", "prices": [CALLS]})
    beta = an_account("beta")
    register_tenant(conn, beta, at("2026-10-01"))
    calls(conn, account.tenant_id, days("2026-11-01", 15), "10")
    for now in (at("2026-11-16"), at("2026-11-16T01:00:00Z"), at("2026-11-20")):
        forecast_pass(conn, now)
    calls(conn, account.tenant_id, days("2026-11-16", 15), "10")
    complete_until(conn, DECEMBER + DAY)
    billing_run(conn, DECEMBER + DAY)
    forecast_pass(conn, DECEMBER + DAY)
    forecast_pass(conn, DECEMBER + DAY)

    rows = conn.execute("""
        SELECT t.name, f.period, f.percent, f.made_at, f.amount_minor, f.actual_minor
        FROM forecast f JOIN tenant t USING (tenant_id) ORDER BY 1
        """).fetchall()

    assert rows == [
        ("acme", "2026-11", 50, at("2026-11-16"), 11200, 11200),
        ("beta", "2026-11", 50, at("2026-11-16"), 4000, 4000),
    ]
    assert accuracy(conn, NOVEMBER) == {
        ("USD", 50): Accuracy(
            count=2, actual=15200, missed=0, drift=0, run_rate_missed=0, covered=2
        )
    }
    assert accuracy(conn, DECEMBER + DAY) == {}


def test_error_bias_and_coverage_are_those_of_the_definition(
    conn: psycopg.Connection[Any],
) -> None:
    acme = acme_on(conn, {})
    conn.execute("SELECT ensure_periods('2026-12-01')")
    for period, amount, low, high, run_rate, actual in (
        ("2026-10", 130, 90, 150, 100, 100),
        ("2026-11", 80, 70, 90, 150, 100),
    ):
        conn.execute(
            "INSERT INTO forecast VALUES (%s, %s, 25, '2026-10-08', %s, %s, %s, %s, %s)",
            [acme.tenant_id, period, amount, low, high, run_rate, actual],
        )

    found = accuracy(conn, at("2026-10-01"))["USD", 25]

    assert (found.wape, found.run_rate_wape) == (0.25, 0.25)
    assert (found.bias, found.coverage) == (0.05, 0.5)


def test_each_role_does_its_part_and_a_tenant_sees_its_own(conn: psycopg.Connection[Any]) -> None:
    acme = acme_on(conn, {"fee": "40.00", "prices": [CALLS]})
    register_tenant(conn, an_account("beta"), at("2026-10-01"))
    calls(conn, acme.tenant_id, days("2026-11-01", 15), "10")
    now = at("2026-11-16")

    conn.execute("SET ROLE botplane_operator")
    assert len(forecast_pass(conn, now)) == 2
    refused = ["UPDATE forecast SET amount_minor = 0", "DELETE FROM forecast"]
    for statement in refused:
        with pytest.raises(errors.InsufficientPrivilege):
            conn.execute(sql.SQL(statement))
    conn.execute("SET ROLE botplane_web")
    stand = standing_of(conn, "acme", now)
    assert forecast_of(conn, stand, now) is not None
    conn.execute("SET ROLE botplane_tenant")
    assert conn.execute("SELECT tenant_id FROM forecast").fetchall() == []
    conn.execute("SELECT set_config('botplane.tenant', %s, false)", [str(acme.tenant_id)])
    assert conn.execute("SELECT tenant_id FROM forecast").fetchall() == [(acme.tenant_id,)]


def test_currency_without_cents_and_late_zones(conn: psycopg.Connection[Any]) -> None:
    price = {**CALLS, "tiers": [{"unitPrice": "1"}]}
    account = acme_on(
        conn,
        {"fee": "3000", "currency": "JPY", "prices": [price]},
        currency="JPY",
        time_zone="Asia/Kolkata",
    )
    first = at("2026-10-31T18:30:00Z")
    calls(conn, account.tenant_id, [first - 28 * DAY + n * DAY for n in range(43)], "10")

    half = foresee(conn, first + 15 * DAY)

    assert half.amount == half.run_rate == Decimal(10_200)
    assert half.elapsed_percent == 50
    assert replace(half, elapsed_percent=Decimal("51.1")).mark is None
