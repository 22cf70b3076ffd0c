"""How much more of a meter will be used: from its last 28 days, with a range. Pure.

These are statistics, and floats; what leaves this module is a `Decimal`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from operator import mul
from typing import Final, NamedTuple

DAY: Final = timedelta(days=1)
SECOND: Final = timedelta(seconds=1)
HISTORY_DAYS: Final = 28
EXACT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)
"""Enough digits for every quantity that Postgres can hold."""
STEP: Final = Decimal("0.000001")
"""To which estimated quantities are rounded."""
SHRINK_DAYS: Final = 14
"""Rates are shrunk to the run-rate as if by this many days of it."""
_TENTH: Final = 1.2815515655446004
"""So many standard deviations below the mean is the lowest tenth of a normal distribution."""
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


_NOTHING: Final = Spread(Decimal(0), Decimal(0), Decimal(0))


def history_of(
    numbers: Sequence[int],
    days: Sequence[float],
    heads: Sequence[float],
    levels: Sequence[float | None] = (),
) -> History:
    """Return the history of days by their number back from now; those without use are left out.

    A correction may leave a day with less than nothing: it counts as nothing.

    The day of the first use does not count when there are others: it may be half a one.
    """
    length = max((number + 1 for number in numbers if 0 <= number < HISTORY_DAYS), default=0)
    length -= 1 < length < HISTORY_DAYS
    return History(
        days=_placed(numbers, days, length),
        heads=_placed(numbers, heads, length),
        levels=_placed(numbers, levels, length) if levels else (),
    )


def by_run_rate(used: Decimal, elapsed: timedelta, remaining: timedelta) -> Decimal:
    """Return what the rest of a period adds if usage goes on as on average until now."""
    seconds = elapsed // SECOND
    if seconds <= 0:
        return Decimal(0)
    with localcontext(EXACT):
        return (used * (remaining // SECOND) / seconds).quantize(STEP)


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
    by_slot = _by_slot(history.days)
    middle = weight * _seasonal(history, by_slot, remaining) + (1 - weight) * straight
    margin = _TENTH * _deviation(history.days, by_slot, remaining)
    return Spread(_decimal(max(0.0, middle - margin)), _decimal(middle), _decimal(middle + margin))


def changes(history: History, remaining: timedelta) -> Spread:
    """Return what starts and stops, as frequent as until now, may add to or take from a meter."""
    steps = [a - b for a, b in itertools.pairwise(history.levels)]
    if not steps:
        return _NOTHING
    days = remaining / DAY
    walk = math.sqrt(sum(step * step for step in steps) / len(steps) * days**3 / 3)
    margin = _decimal(_TENTH * _DAY_SECONDS * walk)
    return Spread(-margin, Decimal(0), margin)


def _placed(
    numbers: Sequence[int], values: Sequence[float | None], length: int
) -> tuple[float, ...]:
    placed = [0.0] * length
    for number, value in zip(numbers, values, strict=True):
        if 0 <= number < length:
            placed[number] = max(0.0, value or 0.0)
    return tuple(placed)


def _seasonal(history: History, by_slot: Sequence[float], remaining: timedelta) -> float:
    whole, rest = divmod(remaining, DAY)
    expected = sum(by_slot[day % _WEEK] for day in range(whole))
    if rest:
        expected += _by_slot(history.heads)[whole % _WEEK]
    return expected * _level(history.days, by_slot)


def _level(days: Sequence[float], by_slot: Sequence[float]) -> float:
    """Return how the last days were, compared with what their slots make expect."""
    weights = _level_weights(len(days))
    expected = sum(weights[k] * by_slot[_WEEK - 1 - k % _WEEK] for k in range(len(days)))
    return _dot(weights, days) / expected if expected else 1.0


def _by_slot(days: Sequence[float]) -> list[float]:
    """Return what is expected of each of the coming seven days: a slot repeats every week."""
    slots = [days[_WEEK - 1 - slot :: _WEEK] for slot in range(_WEEK)]
    overall = sum(days) / len(days)
    return [_mean(slot) if slot else overall for slot in slots]


def _mean(newest_first: Sequence[float]) -> float:
    """Weigh each value half of the one that is a week newer."""
    weights = _slot_weights(len(newest_first))
    return _dot(newest_first, weights) / sum(weights)


def _deviation(days: Sequence[float], by_slot: Sequence[float], remaining: timedelta) -> float:
    """Return the standard deviation of what comes.

    Days differ from what their slots make expect, and one odd day makes the next odd too; the level
    is known from few days only; and it drifts.
    """
    errors = [_error(days, by_slot, day) for day in range(len(days))]
    squares = _dot(errors, errors)
    likeness = _dot(errors, errors[1:]) / squares if squares else 0.0
    likeness = min(max(likeness, 0.0), _MOST_LIKENESS)
    ahead = remaining / DAY
    noise = squares / len(days) * (1 + likeness) / (1 - likeness)
    drift = _DRIFT * sum(days) / len(days)
    unsure = _unsure(_level_weights(len(days)))
    return math.sqrt(noise * (ahead + unsure * ahead**2) + drift**2 * ahead**3 / 3)


def _error(days: Sequence[float], by_slot: Sequence[float], day: int) -> float:
    """Return how a day differs from what the others make expect of it, as if that were certain."""
    week, slot = divmod(day, _WEEK)
    weeks = (len(days) - slot + _WEEK - 1) // _WEEK
    if weeks > 1:
        return (days[day] - by_slot[_WEEK - 1 - slot]) * _left_out(_slot_weights(weeks))[week]
    if len(days) > 1:
        return (days[day] - sum(days) / len(days)) * _left_out((1.0,) * len(days))[day]
    return days[day]


@functools.cache
def _left_out(weights: tuple[float, ...]) -> tuple[float, ...]:
    """Return what turns the difference from a weighted mean into that from the mean of the others.

    It also takes away what the difference owes to that mean being uncertain.
    """
    whole, factors = sum(weights), []
    for place, weight in enumerate(weights):
        others = weights[:place] + weights[place + 1 :]
        factors.append(whole / (whole - weight) / math.sqrt(1 + _unsure(others)))
    return tuple(factors)


@functools.cache
def _unsure(weights: tuple[float, ...]) -> float:
    """Return the variance of a weighted mean of values whose variance is 1."""
    return _dot(weights, weights) / sum(weights) ** 2


@functools.cache
def _slot_weights(weeks: int) -> tuple[float, ...]:
    return tuple(0.5**week for week in range(weeks))


@functools.cache
def _level_weights(days: int) -> tuple[float, ...]:
    return tuple(0.5 ** (day / _LEVEL_HALF_LIFE) for day in range(days))


def _dot(some: Sequence[float], others: Sequence[float]) -> float:
    return float(sum(map(mul, some, others)))


def _decimal(quantity: float) -> Decimal:
    return Decimal(quantity).quantize(STEP, context=EXACT)
