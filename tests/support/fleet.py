"""A fleet whose month is known: weekdays and nights, trends, bursts, bots that come and go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Final

from botplane.usage.forecast.policy import (
    Accuracy,
    Amounts,
    Ground,
    Segment,
    Use,
    expected_quantities,
    total,
)
from botplane.usage.forecast.rates import History, history_of
from tests.support.ledger_oracle import Price, _amount, half_even

BEFORE: Final = 28 * 24
"""Hours before the period."""
HOURS: Final = 30 * 24
START: Final = datetime(2026, 11, 1, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
KINDS: Final = {"settled": 55, "changing": 15, "young": 15, "autoscaled": 15}
"""Shares of the fleet: as it was; bots start and stop, with their load; new; more bots by day."""
PRICES: Final = {
    "bot_seconds": Price(
        "PerUnit", Fraction(0), Fraction(3600), [(None, Fraction("0.05"), Fraction(0))]
    ),
    "rpc_calls": Price(
        "Graduated",
        Fraction(100_000),
        Fraction(1),
        [
            (Fraction(1_000_000), Fraction("0.0001"), Fraction(0)),
            (None, Fraction("0.00008"), Fraction(0)),
        ],
    ),
    "bandwidth_gb": Price(
        "PerUnit", Fraction(0), Fraction(1), [(None, Fraction("0.08"), Fraction(0))]
    ),
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One tenant, hour by hour, from 28 days before the period to its end.

    Attributes:
        kind: One of KINDS.
        born: Its first hour.
        used: By meter.
        bots: How many run.
    """

    kind: str
    born: int
    used: dict[str, list[float]]
    bots: list[int]


def a_fleet(seed: int, size: int) -> Iterator[Member]:
    """Yield tenants; those of one seed are the same for ever."""
    random = Random(seed)
    for kind in random.choices(list(KINDS), list(KINDS.values()), k=size):
        yield _member(random, kind)


def _member(random: Random, kind: str) -> Member:
    ends = BEFORE + HOURS
    born = random.randrange(BEFORE - 20 * 24, BEFORE + 10 * 24) if kind == "young" else 0
    shift = random.randrange(7 * 24)
    bots = _bots(random, kind, born, shift)
    weekend, night = random.uniform(0.3, 1), random.uniform(0.3, 1)
    trend, bursts = random.gauss(0, 0.007), _bursts(random, born)
    load = [0.0] * ends
    today = 0.0
    for hour in range(born, ends):
        day, of_day = divmod(hour + shift, 24)
        if of_day == 0:
            today = 0.6 * today + random.gauss(0, 0.12)
        by_hour = night + (1 - night) * (1 - math.cos((of_day - 3) * math.pi / 12)) / 2
        by_day = weekend if day % 7 >= 5 else 1.0
        moving = math.exp(trend * (hour - BEFORE) / 24 + today)
        load[hour] = by_hour * by_day * moving * bursts[hour] * max(bots[hour], 0)
    scale = math.exp(random.gauss(0, 1))
    return Member(
        kind=kind,
        born=born,
        bots=bots,
        used={
            "rpc_calls": [1_000 * scale * x * random.lognormvariate(-0.06, 0.35) for x in load],
            "bandwidth_gb": [0.5 * scale * x * random.lognormvariate(-0.12, 0.5) for x in load],
        },
    )


def _bots(random: Random, kind: str, born: int, shift: int) -> list[int]:
    count, more = random.randrange(1, 6), random.randrange(1, 4)
    every = {"changing": 8, "young": 20}.get(kind)
    bots = [0] * (BEFORE + HOURS)
    for hour in range(born, BEFORE + HOURS):
        if every and random.random() < 1 / (24 * every):
            count = max(1, count + random.choice([-1, 1]))
        day, of_day = divmod(hour + shift, 24)
        is_busy = kind == "autoscaled" and day % 7 < 5 and 8 <= of_day < 18
        bots[hour] = count + (max(1, more + random.choice([-1, 0, 0, 1])) if is_busy else 0)
    return bots


def _bursts(random: Random, born: int) -> list[float]:
    bursts, hour = [1.0] * (BEFORE + HOURS), born
    while (hour := hour + 1 + int(random.expovariate(1 / (14 * 24)))) < BEFORE + HOURS:
        factor = random.uniform(1.5, 4)
        for one in range(hour, min(BEFORE + HOURS, hour + random.randrange(4, 30))):
            bursts[one] = factor
    return bursts


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was foreseen and what came, in minor units and without the fee."""

    kind: str
    foreseen: Amounts
    actual: int


def outcomes(members: Iterable[Member], percent: int) -> Iterator[Outcome]:
    """Yield what is foreseen when so much of the period is over, beside what it cost."""
    now = BEFORE + HOURS * percent // 100
    for member in members:
        ground = _ground(member, now)
        if ground is None or ground.is_early:
            continue
        charges = [
            Amounts(*(_minor(expected.meter, quantity) for quantity in expected.all))
            for expected in expected_quantities(ground)
        ]
        actual = sum(_minor(m, _exact(sum(s[BEFORE:]))) for m, s in _meters(member).items())
        yield Outcome(
            kind=member.kind,
            foreseen=total(0, Decimal(0), charges, Amounts(0, 0, 0, 0)),
            actual=actual,
        )


def accuracy(found: Sequence[Outcome]) -> Accuracy:
    """Sum up outcomes as the table `forecast` is summed up."""
    return Accuracy(
        count=len(found),
        actual=sum(one.actual for one in found),
        missed=sum(abs(one.foreseen.middle - one.actual) for one in found),
        drift=sum(one.foreseen.middle - one.actual for one in found),
        run_rate_missed=sum(abs(one.foreseen.run_rate - one.actual) for one in found),
        covered=sum(one.foreseen.low <= one.actual <= one.foreseen.high for one in found),
    )


def _meters(member: Member) -> dict[str, list[float]]:
    return {**member.used, "bot_seconds": [3600.0 * bots for bots in member.bots]}


def _ground(member: Member, now: int) -> Ground | None:
    first = max(BEFORE, member.born)
    if now <= first:
        return None
    starts_at, ends_at = START + (first - BEFORE) * HOUR, START + HOURS * HOUR
    uses, histories = {}, {}
    for meter, hours in _meters(member).items():
        used = _exact(sum(hours[BEFORE:now]))
        running = member.bots[now] * 3600 * (BEFORE + HOURS - now)
        at_end = used + running if meter == "bot_seconds" else used
        uses[starts_at, meter] = Use(used, at_end)
        histories[meter] = _history(hours, now, runs=meter == "bot_seconds")
    return Ground(
        now=START + (now - BEFORE) * HOUR,
        segments=[Segment(starts_at=starts_at, ends_at=ends_at)],
        uses=uses,
        histories=histories,
    )


def _history(hours: Sequence[float], now: int, *, runs: bool) -> History:
    rest, ends = (BEFORE + HOURS - now) % 24, range(now, now - 28 * 24, -24)
    used = [number for number, end in enumerate(ends) if any(hours[end - 24 : end])]
    days = [hours[ends[number] - 24 : ends[number]] for number in used]
    levels = [day[-1] / 3600 for day in days] if runs else ()
    return history_of(used, [sum(day) for day in days], [sum(d[:rest]) for d in days], levels)


def _exact(quantity: float) -> Decimal:
    return Decimal(quantity).quantize(Decimal("0.000001"))


def _minor(meter: str, quantity: Decimal) -> int:
    return half_even(_amount(PRICES[meter], Fraction(quantity), Fraction(1)) * 100)
