"""What a period will cost: exact in what is known, honest in what is not, better than a ruler."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botplane.usage.forecast.policy import (
    MARKS,
    Amounts,
    Ground,
    Segment,
    Use,
    commission,
    expected_quantities,
    total,
)
from botplane.usage.forecast.rates import History, by_run_rate, further_use, history_of
from tests.support.fleet import KINDS, a_fleet, accuracy, outcomes

START = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
NO_TRADES = Amounts(0, 0, 0, 0)
AMOUNTS = st.integers(0, 10**9)
USAGE = st.floats(0, 1e9)


def a_ground(elapsed: timedelta, uses: dict[str, Use], **histories: History) -> Ground:
    """Return the ground of a tenant in a month of 30 days with one price."""
    return Ground(
        now=START + elapsed,
        segments=[Segment(starts_at=START, ends_at=START + 30 * DAY)],
        uses={(START, meter): use for meter, use in uses.items()},
        histories=histories,
    )


def even(days: int, by_day: float, head: float = 0.0) -> History:
    return History(days=(by_day,) * days, heads=(head,) * days)


def test_a_third_of_the_month_foretells_the_other_two() -> None:
    further = by_run_rate(Decimal("61.20"), 10 * DAY, 20 * DAY)
    usage = int((Decimal("61.20") + further) * 100)

    amounts = total(9900, Decimal(0), [Amounts(usage, usage, usage, usage)], NO_TRADES)

    assert Decimal("61.20") + further == Decimal("183.60")
    assert amounts.middle == amounts.run_rate == 28260


@given(st.lists(USAGE, max_size=28), st.decimals(0, 10**20, places=12))
def test_at_its_end_the_forecast_is_what_was_used(days: list[float], used: Decimal) -> None:
    seen = History(days=tuple(days), heads=tuple(days))

    (expected,) = expected_quantities(a_ground(30 * DAY, {"calls": Use(used, used)}, calls=seen))

    assert set(expected.all) == {used}


@given(st.integers(0, 30 * 86_400), st.integers(0, 500), st.integers(0, 10**9))
def test_what_runs_now_is_exact(second: int, running: int, used: int) -> None:
    at_end = Decimal(used + running * (30 * 86_400 - second))
    steady = History(
        days=(running * 86400.0,) * 28, heads=(0.0,) * 28, levels=(float(running),) * 28
    )
    uses = {"bot_seconds": Use(Decimal(used), at_end)}

    (expected,) = expected_quantities(a_ground(timedelta(seconds=second), uses, bot_seconds=steady))

    assert expected.low == expected.middle == expected.high == at_end


def test_bots_that_were_stopped_stay_stopped() -> None:
    seen = History(
        days=(43_200.0, *(86_400.0,) * 27), heads=(0.0,) * 28, levels=(0.0, *(1.0,) * 27)
    )
    uses = {"bot_seconds": Use(Decimal(1000), Decimal(1000))}

    (expected,) = expected_quantities(a_ground(15 * DAY, uses, bot_seconds=seen))

    assert expected.middle == expected.low == 1000
    assert expected.high > 1000


@given(
    st.lists(USAGE, min_size=1, max_size=28),
    st.lists(st.floats(0, 1), min_size=28, max_size=28),
    st.integers(0, 29),
    st.integers(1, 23),
)
def test_range_holds_the_amount_and_more_time_is_never_less(
    days: list[float], shares: list[float], whole: int, rest: int
) -> None:
    heads = [day * share for day, share in zip(days, shares, strict=False)]
    seen, used = History(days=tuple(days), heads=tuple(heads)), Decimal(1000)
    remaining = whole * DAY + timedelta(hours=rest)

    now = further_use(seen, used, DAY, remaining)
    later = further_use(seen, used, DAY, remaining + DAY)
    none = further_use(seen, used, DAY, timedelta(0))

    assert 0 <= now.low <= now.middle <= now.high
    assert now.middle <= later.middle
    assert set(none) == {0}
    assert {type(part) for part in now} == {Decimal}


@given(
    st.lists(st.builds(Amounts, AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS), max_size=5),
    AMOUNTS,
    st.decimals(0, 10**9, places=6),
)
def test_money_is_whole_and_in_order(usage: list[Amounts], fee: int, commitment: Decimal) -> None:
    amounts = total(fee, commitment, usage, Amounts(1, 2, 3, 2))

    assert {type(amount) for amount in amounts} == {int}
    assert fee + 1 <= amounts.low <= amounts.middle <= amounts.high
    assert amounts.low - fee - 1 >= commitment - 1


@pytest.mark.parametrize(("charge", "whole"), [(0, 5000), (4000, 5000), (5000, 5000), (7000, 7000)])
def test_commitment_is_charged_where_usage_does_not_reach_it(charge: int, whole: int) -> None:
    usage = [Amounts(charge, charge, charge, charge)]

    assert total(0, Decimal(5000), usage, NO_TRADES).middle == whole


def test_rest_days_are_foreseen() -> None:
    # Now it is Monday, 00:00: the newest two days were free, as every week.
    week = (0.0, 0.0, 10.0, 10.0, 10.0, 10.0, 10.0)
    seen = History(days=week * 4, heads=week * 4)

    five = further_use(seen, Decimal(150), 21 * DAY, 5 * DAY)
    seven = further_use(seen, Decimal(150), 21 * DAY, 7 * DAY)

    # Two thirds from the weeks before, one third from 150 in 21 days.
    assert five.middle == (2 * Decimal(50) / 3 + 5 * Decimal(150) / 63).quantize(Decimal("1e-6"))
    assert seven.middle == Decimal(50)


def test_more_use_since_five_days_is_believed_soon() -> None:
    before = further_use(even(28, by_day=10), Decimal(100), 10 * DAY, 7 * DAY)
    days = (20.0,) * 5 + (10.0,) * 23

    after = further_use(History(days=days, heads=days), Decimal(150), 10 * DAY, 7 * DAY)

    # The run-rate would say 105, and the weeks before alone less than 100.
    assert before.middle == 70
    assert 105 < after.middle < 140


def test_part_of_a_day_is_like_the_same_hours_before() -> None:
    # A third of each day's use came in its first twelve hours; the run-rate says half.
    seen = even(28, by_day=30, head=10)

    half_day = further_use(seen, Decimal(600), 20 * DAY, DAY / 2)

    assert half_day.middle == (2 * Decimal(10) / 3 + Decimal(15) / 3).quantize(Decimal("1e-6"))


@pytest.mark.parametrize("days", [1, 14, 28])
def test_young_histories_lean_on_the_run_rate(days: int) -> None:
    # Ten days remain; lately 20 a day, but 150 in the ten days before.
    further = further_use(even(days, by_day=20), Decimal(150), 10 * DAY, 10 * DAY)

    weight = Decimal(days) / (days + 14)
    assert further.middle == (weight * 200 + (1 - weight) * 150).quantize(Decimal("1e-6"))


def test_first_day_of_use_may_be_half_a_one() -> None:
    seen = history_of([4, 0, 28, 2], [3.0, 10.0, 99.0, 10.0], [0.0, 1.0, 9.0, 1.0])

    assert seen == History(days=(10.0, 0.0, 10.0, 0.0), heads=(1.0, 0.0, 1.0, 0.0))
    assert history_of([0], [3.0], [1.0]).days == (3.0,)
    assert history_of([], [], []) == History()


@pytest.mark.parametrize(
    ("hours", "of_hours", "is_early"),
    [(21, 720, True), (22, 720, False), (23, 744, False), (22, 744, True), (2, 48, False)],
)
def test_nothing_is_said_in_the_first_hours(hours: int, of_hours: int, *, is_early: bool) -> None:
    ends_at = START + timedelta(hours=of_hours)
    ground = Ground(
        now=START + timedelta(hours=hours), segments=[Segment(starts_at=START, ends_at=ends_at)]
    )

    assert ground.is_early is is_early


def test_usage_goes_to_the_prices_of_its_time() -> None:
    change = START + 20 * DAY
    ground = Ground(
        now=START + 10 * DAY,
        segments=[
            Segment(starts_at=START, ends_at=change),
            Segment(starts_at=change, ends_at=START + 30 * DAY),
        ],
        uses={(START, "calls"): Use(Decimal(100), Decimal(100))},
        histories={"calls": even(28, by_day=10)},
    )

    first, second = expected_quantities(ground)

    assert [first.starts_at, second.starts_at] == [START, change]
    assert [first.middle, first.run_rate] == [200, 200]
    assert [second.middle, second.run_rate] == [100, 100]


@pytest.mark.parametrize(
    ("cap", "middle"), [(None, 6000), (9000, 6000), (4000, 4000), (2000, 3000)]
)
def test_commission_grows_as_trades_win_up_to_its_cap(cap: int | None, middle: int) -> None:
    ground = a_ground(15 * DAY, {})

    amounts = commission(3000, Decimal(300), even(28, by_day=20), ground, cap)

    assert amounts.middle == middle
    assert amounts.low <= amounts.middle <= amounts.high


def test_forecast_is_no_worse_than_the_run_rate_and_its_range_is_honest() -> None:
    members = [member for seed in (1, 2, 3) for member in a_fleet(seed, 100)]
    found = {mark: accuracy(list(outcomes(members, mark))) for mark in MARKS}

    for mark in MARKS:
        assert found[mark].wape <= found[mark].run_rate_wape
        assert 0.75 <= found[mark].coverage <= 0.86
        assert abs(found[mark].bias) <= 0.05
    assert found[50].wape <= 0.10


def test_forecast_is_no_worse_than_the_run_rate_for_any_kind_of_tenant() -> None:
    members = [member for seed in (1, 2, 3) for member in a_fleet(seed, 200)]
    found = list(outcomes(members, 50))

    judged = {kind: accuracy([one for one in found if one.kind == kind]) for kind in KINDS}

    worse = {kind for kind, one in judged.items() if one.wape > one.run_rate_wape}
    assert worse == set()
