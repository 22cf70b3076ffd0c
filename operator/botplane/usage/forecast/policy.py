"""What a period will cost when it has ended: an estimate, with a range. Pure.

Rates of usage are statistics, and floats. A quantity becomes a `Decimal` once, in `further_use`;
money is whole minor units throughout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from operator import mul
from typing import Final, NamedTuple
from uuid import UUID

DAY: Final = timedelta(days=1)
SECOND: Final = timedelta(seconds=1)
HISTORY_DAYS: Final = 28
SHRINK_DAYS: Final = 14
"""Rates are shrunk to the run-rate as if by this many days of it."""
MARKS: Final = (10, 25, 50, 75)
"""Percents of a period at which its forecast is kept, to be compared with what it cost."""
EARLY_PERCENT: Final = 3
MARK_WIDTH: Final = Decimal(1)
"""A mark that was missed by more percent points than this stays empty."""
_TENTH: Final = 1.2815515655446004
"""So many standard deviations below the mean is the lowest tenth of a normal distribution."""
_EXACT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)
_STEP: Final = Decimal("0.000001")
_WEEK: Final = 7
_DAY_SECONDS: Final = 86_400
_LEVEL_HALF_LIFE: Final = 3
"""Days after which a day counts half for the level."""
_DRIFT: Final = 0.04
"""How far the level drifts in a day, as a share of it."""
_MOST_LIKENESS: Final = 0.8
"""Bound of how much a day is like the one before."""


@dataclass(frozen=True, kw_only=True)
class History:
    """What one meter counted in the days before now, the newest first.

    Attributes:
        days: By 24 hours back from the last full hour, since the first use; 28 at most.
        heads: The part of each that fell into its first hours: as many as remain of the period
            beyond whole days.
        levels: Of what runs: how much a second counted at the end of each day.
    """

    days: tuple[float, ...] = ()
    heads: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()

    @property
    def comes_and_goes(self) -> bool:
        """Whether the day before told more of a day than what ran at its start did."""
        known = range(len(self.levels) - 1)
        by_level = sum(abs(self.days[k] - self.levels[k + 1] * _DAY_SECONDS) for k in known)
        by_day = sum(abs(self.days[k] - self.days[k + 1]) for k in known)
        return by_day < by_level


class Spread(NamedTuple):
    """A quantity that is not known yet; it is less than `low`, or more than `high`, 1 in 10."""

    low: Decimal
    middle: Decimal
    high: Decimal


class Amounts(NamedTuple):
    """Money that is not known yet, in minor units, with the run-rate to compare it with."""

    low: int
    middle: int
    high: int
    run_rate: int


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a period, `[starts_at, ends_at)`, in which prices do not change."""

    starts_at: datetime
    ends_at: datetime


class Use(NamedTuple):
    """What was used of a meter in a segment."""

    used: Decimal
    """Until now."""
    at_end: Decimal
    """The same at the end of the segment, when what runs now runs on and no event comes."""


class Day(NamedTuple):
    """What a meter counted in 24 hours."""

    whole: float
    head: float
    """In the first hours, as many as remain of the period beyond whole days."""
    level: float | None = None
    """Of what runs: how much a second counted at the end."""


_NOTHING: Final = Spread(Decimal(0), Decimal(0), Decimal(0))
_IDLE: Final = Day(0.0, 0.0)
_UNUSED: Final = Use(Decimal(0), Decimal(0))


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What the forecast of one tenant rests on.

    Attributes:
        now: The moment of the forecast.
        segments: Of the period, in the order of time; there is at least one.
        uses: By start of the segment and meter.
        histories: By meter.
    """

    now: datetime
    segments: Sequence[Segment]
    uses: Mapping[tuple[datetime, str], Use] = field(default_factory=dict)
    histories: Mapping[str, History] = field(default_factory=dict)

    @property
    def elapsed(self) -> timedelta:
        """Since the first moment that the tenant pays for."""
        return self.now - self.segments[0].starts_at

    @property
    def remaining(self) -> timedelta:
        """Until the last one."""
        return max(timedelta(0), self.segments[-1].ends_at - self.now)

    @property
    def elapsed_percent(self) -> Decimal:
        """How much of the period is over, with six decimals."""
        whole = self.elapsed + self.remaining
        return (Decimal(self.elapsed // SECOND) * 100 / (whole // SECOND)).quantize(_STEP)

    @property
    def is_early(self) -> bool:
        """Whether it is too early to say anything: before 24 hours, or 3 % of a short period."""
        return self.elapsed < DAY and self.elapsed_percent < EARLY_PERCENT


class Quantities(NamedTuple):
    """What a meter may have counted at the end of a segment."""

    starts_at: datetime
    meter: str
    low: Decimal
    middle: Decimal
    high: Decimal
    run_rate: Decimal

    @property
    def all(self) -> tuple[Decimal, ...]:
        """The quantities, in the order of `Amounts`."""
        return self[2:]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a period will cost one tenant: an estimate. Amounts are in the major unit.

    Attributes:
        tenant_id: Uid of the Tenant.
        period: Name of the billing period.
        currency: Of all amounts.
        amount: Fee, usage, commission and commitment of the whole period, before discounts and
            taxes.
        low: It costs less with a probability of 10 %.
        high: It costs more with a probability of 10 %.
        run_rate: What it would cost with usage as on average until now, to compare with.
        projected_overage: The part of `amount` that is for usage beyond what the fee includes.
        over_limit: By how much `amount` is over the spend limit; None without a limit.
        elapsed_percent: How much of the period is over.
        as_of: When it was made.
    """

    tenant_id: UUID
    period: str
    currency: str
    amount: Decimal
    low: Decimal
    high: Decimal
    run_rate: Decimal
    projected_overage: Decimal
    over_limit: Decimal | None
    elapsed_percent: Decimal
    as_of: datetime

    @property
    def mark(self) -> int | None:
        """The mark of the period that was passed a moment ago, or None."""
        near = (mark for mark in MARKS if 0 <= self.elapsed_percent - mark <= MARK_WIDTH)
        return next(near, None)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How good forecasts were, summed over periods in one currency; sums are in minor units.

    Attributes:
        count: Forecasts.
        actual: What the periods cost.
        missed: By how much forecasts were wrong, without sign.
        drift: By how much they were too high.
        run_rate_missed: By how much the run-rate was wrong, without sign.
        covered: Forecasts whose range held what the period cost.
    """

    count: int
    actual: int
    missed: int
    drift: int
    run_rate_missed: int
    covered: int

    @property
    def wape(self) -> float:
        """Weighted absolute error: a share of what the periods cost."""
        return self.missed / self.actual if self.actual else 0.0

    @property
    def run_rate_wape(self) -> float:
        """The same of the run-rate."""
        return self.run_rate_missed / self.actual if self.actual else 0.0

    @property
    def bias(self) -> float:
        """Above zero: forecasts are too high on the whole."""
        return self.drift / self.actual if self.actual else 0.0

    @property
    def coverage(self) -> float:
        """Share of the ranges that held the truth; 0.8 is right."""
        return self.covered / self.count if self.count else 0.0


def history_of(days: Mapping[int, Day]) -> History:
    """Return the history of days by their number back from now; those without use are left out.

    The day of the first use does not count when there are others: it may be half a one.
    """
    length = max((day + 1 for day in days if 0 <= day < HISTORY_DAYS), default=0)
    length -= 1 < length < HISTORY_DAYS
    known = [days.get(day, _IDLE) for day in range(length)]
    runs = any(day.level is not None for day in known)
    return History(
        days=tuple(day.whole for day in known),
        heads=tuple(day.head for day in known),
        levels=tuple(day.level or 0.0 for day in known) if runs else (),
    )


def by_run_rate(used: Decimal, elapsed: timedelta, remaining: timedelta) -> Decimal:
    """Return what the rest of a period adds if usage goes on as on average until now."""
    seconds = elapsed // SECOND
    if seconds <= 0:
        return Decimal(0)
    with localcontext(_EXACT):
        return (used * (remaining // SECOND) / seconds).quantize(_STEP)


def further_use(
    history: History, used: Decimal, elapsed: timedelta, remaining: timedelta
) -> Spread:
    """Return what will be added to a meter in the rest of a period.

    Each coming hour is as the same hours of the weeks before were on average, a week counting half
    of the next, times how the last days were compared with that. The less history there is, the
    more the run-rate counts. Hours enter as sums of days and of parts of days: the total is the
    same.

    Args:
        history: Of the last 28 days.
        used: In the period so far.
        elapsed: Since the first moment that the tenant pays for.
        remaining: Until the end of the period.
    """
    if remaining <= timedelta(0) or not history.days:
        return _NOTHING
    known = len(history.days)
    weight = known / (known + SHRINK_DAYS)
    straight = float(by_run_rate(used, elapsed, remaining))
    middle = weight * _seasonal(history, remaining) + (1 - weight) * straight
    margin = _TENTH * _deviation(history.days, remaining)
    return Spread(_decimal(max(0.0, middle - margin)), _decimal(middle), _decimal(middle + margin))


def expected_quantities(ground: Ground) -> list[Quantities]:
    """Return what each meter will have counted in each segment of the period.

    What runs now runs until the end, unless it comes and goes by the day. Anything else comes as
    `further_use` says, spread evenly over the time that remains.
    """
    meters = sorted({meter for _, meter in ground.uses} | ground.histories.keys())
    with localcontext(_EXACT):
        return [expected for meter in meters for expected in _expected(ground, meter)]


def commission(
    so_far: int, won: Decimal, winnings: History, ground: Ground, cap: int | None
) -> Amounts:
    """Return the commission of a whole period: it grows as what trades win.

    Args:
        so_far: Commission until now, in minor units.
        won: What trades won in the period until now.
        winnings: What trades won in the last 28 days.
        ground: Of the tenant: how much of the period is over.
        cap: Most commission of the period, in minor units; None: no bound.
    """
    if not won:
        return Amounts(so_far, so_far, so_far, so_far)
    further = further_use(winnings, won, ground.elapsed, ground.remaining)
    straight = by_run_rate(won, ground.elapsed, ground.remaining)
    ends = (so_far + _whole(so_far * more / won) for more in (*further, straight))
    return Amounts(*(end if cap is None else max(so_far, min(end, cap)) for end in ends))


def total(fee: int, commitment: Decimal, usage: Sequence[Amounts], traded: Amounts) -> Amounts:
    """Add up what a period costs, in minor units.

    What makes one meter of a tenant higher makes the others higher too: the ends of the ranges add
    up as they are.

    Args:
        fee: Of the period.
        commitment: Least charge for usage; what is missing is charged too.
        usage: Charge for each meter in each segment.
        traded: Commission.
    """
    used = Amounts(
        sum(min(charge[:3]) for charge in usage),
        sum(charge.middle for charge in usage),
        sum(max(charge[:3]) for charge in usage),
        sum(charge.run_rate for charge in usage),
    )
    return Amounts(
        *(
            fee + charge + _whole(max(Decimal(0), commitment - charge)) + on_trades
            for charge, on_trades in zip(used, traded, strict=True)
        )
    )


def status_texts(forecasts: Mapping[UUID, Forecast]) -> dict[str, str]:
    """Return `status.usage.forecast` of each tenant, by uid."""
    return {str(tenant_id): f"{forecast.amount:f}" for tenant_id, forecast in forecasts.items()}


def _expected(ground: Ground, meter: str) -> Iterator[Quantities]:
    uses = [ground.uses.get((s.starts_at, meter), _UNUSED) for s in ground.segments]
    used = sum((use.used for use in uses), Decimal(0))
    history = ground.histories.get(meter, History())
    if history.comes_and_goes:
        uses = [Use(use.used, use.used) for use in uses]
    if history.levels and not history.comes_and_goes:
        more = _changes(history, ground.remaining)
    else:
        more = further_use(history, used, ground.elapsed, ground.remaining)
    straight = by_run_rate(used, ground.elapsed, ground.remaining)
    for segment, use in zip(ground.segments, uses, strict=True):
        share = _share_of_rest(segment, ground)
        low, middle, high = (use.at_end + (part * share).quantize(_STEP) for part in more)
        run_rate = use.used + (straight * share).quantize(_STEP)
        yield Quantities(segment.starts_at, meter, max(use.used, low), middle, high, run_rate)


def _seasonal(history: History, remaining: timedelta) -> float:
    whole, rest = divmod(remaining, DAY)
    by_slot = _by_slot(history.days)
    expected = sum(by_slot[day % _WEEK] for day in range(whole))
    if rest:
        expected += _by_slot(history.heads)[whole % _WEEK]
    return expected * _level(history.days, by_slot)


def _level(days: Sequence[float], by_slot: Sequence[float]) -> float:
    """Return how the last days were, compared with what their slots make expect."""
    weights = _level_weights(len(days))
    expected = sum(weights[k] * by_slot[_WEEK - 1 - k % _WEEK] for k in range(len(days)))
    return _dot(weights, days) / expected if expected else 1.0


def _level_weights(days: int) -> list[float]:
    return [0.5 ** (day / _LEVEL_HALF_LIFE) for day in range(days)]


def _changes(history: History, remaining: timedelta) -> Spread:
    """Return what starts and stops, as frequent as until now, may add to or take from a meter."""
    steps = [a - b for a, b in itertools.pairwise(history.levels)]
    if not steps:
        return _NOTHING
    days = remaining / DAY
    walk = math.sqrt(sum(step * step for step in steps) / len(steps) * days**3 / 3)
    margin = _decimal(_TENTH * _DAY_SECONDS * walk)
    return Spread(-margin, Decimal(0), margin)


def _by_slot(days: Sequence[float]) -> list[float]:
    """Return what is expected of each of the coming seven days: a slot repeats every week."""
    slots = [days[_WEEK - 1 - slot :: _WEEK] for slot in range(_WEEK)]
    overall = sum(days) / len(days)
    return [_mean(slot) if slot else overall for slot in slots]


def _mean(newest_first: Sequence[float]) -> float:
    """Weigh each value half of the one that is a week newer."""
    weights = [0.5**week for week in range(len(newest_first))]
    return _dot(newest_first, weights) / sum(weights)


def _deviation(days: Sequence[float], remaining: timedelta) -> float:
    """Return the standard deviation of what comes.

    Days differ from what their slots make expect, and one odd day makes the next odd too; the level
    is known from few days only; and it drifts.
    """
    errors = [_left_out(days, day) for day in range(len(days))]
    squares = sum(error * error for error in errors)
    likeness = _dot(errors, errors[1:]) / squares if squares else 0.0
    likeness = min(max(likeness, 0.0), _MOST_LIKENESS)
    unsure = _unsure(_level_weights(len(days)))
    ahead = remaining / DAY
    noise = squares / len(days) * (1 + likeness) / (1 - likeness)
    drift = _DRIFT * sum(days) / len(days)
    return math.sqrt(noise * (ahead + unsure * ahead**2) + drift**2 * ahead**3 / 3)


def _left_out(days: Sequence[float], day: int) -> float:
    """Return how a day differs from what the others make expect of it, as if that were known."""
    same = [other for other in range(day % _WEEK, len(days), _WEEK) if other != day]
    others = same or [other for other in range(len(days)) if other != day]
    if not others:
        return days[day]
    weights = [0.5**week for week in range(len(others))] if same else [1.0] * len(others)
    expected = _dot(weights, [days[other] for other in others]) / sum(weights)
    return (days[day] - expected) / math.sqrt(1 + _unsure(weights))


def _dot(some: Sequence[float], others: Sequence[float]) -> float:
    return float(sum(map(mul, some, others)))


def _unsure(weights: Sequence[float]) -> float:
    """Return the variance of a weighted mean of values whose variance is 1."""
    return sum(weight * weight for weight in weights) / sum(weights) ** 2


def _share_of_rest(segment: Segment, ground: Ground) -> Decimal:
    begins = max(segment.starts_at, ground.now)
    seconds = max(timedelta(0), segment.ends_at - begins) // SECOND
    return Decimal(seconds) / max(1, ground.remaining // SECOND)


def _decimal(quantity: float) -> Decimal:
    return Decimal(quantity).quantize(_STEP, context=_EXACT)


def _whole(amount: Decimal) -> int:
    return int(amount.to_integral_value(ROUND_HALF_EVEN))
