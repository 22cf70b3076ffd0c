"""What a period will cost when it has ended: an estimate, with a range. Pure.

Quantities are decimals, and money is whole minor units throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Final, NamedTuple
from uuid import UUID

from botplane.usage.forecast.rates import (
    DAY,
    EXACT,
    SECOND,
    STEP,
    History,
    by_run_rate,
    changes,
    further_use,
)

MARKS: Final = (10, 25, 50, 75)
"""Percents of a period at which its forecast is kept, to be compared with what it cost."""
EARLY_PERCENT: Final = 3
MARK_WIDTH: Final = Decimal(1)
"""A mark that was missed by more percent points than this stays empty."""


class Amounts(NamedTuple):
    """Money that is not known yet, in minor units, with the run-rate to compare it with."""

    low: int
    middle: int
    high: int
    run_rate: int


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a period, `[starts_at, ends_at)`, in which prices do not change.

    Attributes:
        counted: The time whose usage included quantities and tiers count; None: its own.
    """

    starts_at: datetime
    ends_at: datetime
    counted: tuple[datetime, datetime] | None = None

    def counts(self, other: Segment) -> bool:
        """Whether the usage of another segment is in the same count."""
        if self.counted is None:
            return other.starts_at == self.starts_at
        return self.counted[0] <= other.starts_at < self.counted[1]


class Use(NamedTuple):
    """What was used of a meter in a segment."""

    used: Decimal
    """Until now."""
    at_end: Decimal
    """The same at the end of the segment, when what runs now runs on and no event comes."""


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
        return (Decimal(self.elapsed // SECOND) * 100 / (whole // SECOND)).quantize(STEP)

    @property
    def is_early(self) -> bool:
        """Whether it is too early to say anything: before 24 hours, or 3 % of a short period."""
        return self.elapsed < DAY and self.elapsed_percent < EARLY_PERCENT


class Counted(NamedTuple):
    """A quantity of a segment, with what was counted before it and will be in all."""

    quantity: Decimal
    before: Decimal
    whole: Decimal


class Quantities(NamedTuple):
    """What a meter may have counted at the end of a segment."""

    starts_at: datetime
    meter: str
    low: Decimal
    middle: Decimal
    high: Decimal
    run_rate: Decimal
    counted: tuple[Counted, ...] = ()
    """The same in the order of `Amounts`, each with the others of its count."""

    @property
    def all(self) -> tuple[Decimal, ...]:
        """The quantities, in the order of `Amounts`."""
        return self.low, self.middle, self.high, self.run_rate


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a period will cost one tenant: an estimate. Amounts are in the major unit.

    Attributes:
        tenant_id: Uid of the Tenant.
        period: Name of the billing period.
        currency: Of all amounts.
        amount: Fee, usage, commission, commitment and one-off charges of the whole period, before
            discounts and taxes.
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


def expected_quantities(ground: Ground) -> list[Quantities]:
    """Return what each meter will have counted in each segment of the period.

    What runs now runs until the end, unless it comes and goes by the day. Anything else comes as
    `further_use` says, spread evenly over the time that remains.
    """
    meters = sorted({meter for _, meter in ground.uses} | ground.histories.keys())
    with localcontext(EXACT):
        return [
            expected
            for meter in meters
            for expected in _counted(ground.segments, list(_expected(ground, meter)))
        ]


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


def total(
    fixed: int,
    commitment: Decimal,
    usage: Sequence[Amounts],
    traded: Amounts,
    rounding: str = ROUND_HALF_EVEN,
) -> Amounts:
    """Add up what a period costs, in minor units.

    What makes one meter of a tenant higher makes the others higher too: the ends of the ranges add
    up as they are.

    Args:
        fixed: What is certain: the fee of the period, and its one-off charges.
        commitment: Least charge for usage; what is missing is charged too.
        usage: Charge for each meter in each segment.
        traded: Commission.
        rounding: Of the commitment, a mode of `decimal`.
    """
    used = Amounts(
        sum(min(charge[:3]) for charge in usage),
        sum(charge.middle for charge in usage),
        sum(max(charge[:3]) for charge in usage),
        sum(charge.run_rate for charge in usage),
    )
    return Amounts(
        *(
            fixed + charge + _whole(max(Decimal(0), commitment - charge), rounding) + on_trades
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
        more = changes(history, ground.remaining)
    else:
        more = further_use(history, used, ground.elapsed, ground.remaining)
    straight = by_run_rate(used, ground.elapsed, ground.remaining)
    for segment, use in zip(ground.segments, uses, strict=True):
        share = _share_of_rest(segment, ground)
        low, middle, high = (use.at_end + (part * share).quantize(STEP) for part in more)
        run_rate = use.used + (straight * share).quantize(STEP)
        yield Quantities(segment.starts_at, meter, max(use.used, low), middle, high, run_rate)


def _counted(segments: Sequence[Segment], expected: Sequence[Quantities]) -> Iterator[Quantities]:
    for segment, mine in zip(segments, expected, strict=True):
        counted = [e for s, e in zip(segments, expected, strict=True) if segment.counts(s)]
        near = [e.all for e in counted]
        before = [e.all for e in counted if e.starts_at < segment.starts_at]
        yield mine._replace(
            counted=tuple(
                Counted(quantity, _sum_of(before, place), _sum_of(near, place))
                for place, quantity in enumerate(mine.all)
            )
        )


def _sum_of(quantities: Sequence[Sequence[Decimal]], place: int) -> Decimal:
    return sum((some[place] for some in quantities), Decimal(0))


def _share_of_rest(segment: Segment, ground: Ground) -> Decimal:
    begins = max(segment.starts_at, ground.now)
    seconds = max(timedelta(0), segment.ends_at - begins) // SECOND
    return Decimal(seconds) / max(1, ground.remaining // SECOND)


def _whole(amount: Decimal, rounding: str = ROUND_HALF_EVEN) -> int:
    return int(amount.to_integral_value(rounding))
