"""A slow, independent rating: second by second, in fractions, from the rules and not the code.

It shares nothing with the product: no SQL, no decimals, its own calendar and its own rounding.
Rules: a period is half-open between local midnights of the anchor day. Each second and each event
is priced by the plan and the revision of its own moment. What is per period (fee, included
quantity, flat fees, commitment) counts by seconds: the fee and the commitment by those of each
revision, the rest by those of the stay on the plan, in which one count goes on from revision to
revision; unless a revision says that it counts alone. Each line is rounded once, half to even or,
where its revision says so, half up; a commitment as the last revision of the period says.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

MINOR_UNITS = {"USD": 2, "JPY": 0, "KWD": 3}
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Price:
    """A price as a person would write it; tiers are (upper end or None, unit price, flat fee)."""

    model: str
    included: Fraction
    unit_size: Fraction
    tiers: list[tuple[Fraction | None, Fraction, Fraction]]


@dataclass(frozen=True)
class Revision:
    """What a plan charges from a moment on (None: since ever)."""

    since: datetime | None
    fee: Fraction
    commitment: Fraction
    prices: dict[str, Price]
    commission: Fraction = Fraction(0)
    cap_per_trade: Fraction | None = None
    cap_per_period: Fraction | None = None
    volume_discounts: list[tuple[Fraction, Fraction]] = field(default_factory=list)
    counts_alone: bool = False
    half_up: bool = False
    netting: str = "None"


@dataclass
class Customer:
    """One tenant and all that it used."""

    currency: str
    zone: str
    anchor_day: int
    phases: list[tuple[datetime, datetime | None, str]]
    runs: list[tuple[datetime, datetime, str, int, int]] = field(default_factory=list)
    volumes: list[tuple[datetime, datetime, int]] = field(default_factory=list)
    events: list[tuple[datetime, str, Fraction]] = field(default_factory=list)
    trades: list[tuple[datetime, Fraction, Fraction]] = field(default_factory=list)


Span = tuple[datetime, datetime]
Cut = tuple[datetime, datetime, Revision, Span]
"""From, until, prices, and the stay on the plan within the period."""
ExpectedLine = tuple[str, Fraction, Fraction, int]
"""Key, quantity, exact amount at 18 decimals, amount in minor units."""


def half_even(number: Fraction) -> int:
    """Round to the nearest integer; of two that are as near, to the even one."""
    below = number.numerator // number.denominator
    twice = 2 * (number - below)
    if twice == 1:
        return below if below % 2 == 0 else below + 1
    return below if twice < 1 else below + 1


def half_up(number: Fraction) -> int:
    """Round to the nearest integer; of two that are as near, to the one farther from zero."""
    magnitude = int(abs(number) * 2 + 1) // 2
    return -magnitude if number < 0 else magnitude


def at_decimals(number: Fraction, decimals: int) -> Fraction:
    """Round half to even at a number of decimals."""
    return Fraction(half_even(number * 10**decimals), 10**decimals)


def period_bounds(customer: Customer, year: int, month: int) -> tuple[datetime, datetime]:
    """Return the local midnights, in UTC, that bound the period named after a month."""
    zone = ZoneInfo(customer.zone)
    following = (year + month // 12, month % 12 + 1)
    start, end = (
        datetime(y, m, customer.anchor_day, tzinfo=zone).astimezone(UTC)
        for y, m in ((year, month), following)
    )
    return start, end


def expected_lines(
    customer: Customer, plans: dict[str, list[Revision]], bounds: tuple[datetime, datetime]
) -> list[ExpectedLine]:
    """Return the lines that the invoice of one period must have, sorted by key."""
    cuts = list(_cuts(customer, plans, bounds))
    period = _seconds(*bounds)
    used = _metered(customer, cuts)
    lines, usage_minor, committed = [], 0, Fraction(0)
    for number, (start, end, revision, stay) in enumerate(cuts):
        share = Fraction(_seconds(start, end), period)
        stamp = f"{start:%Y-%m-%dT%H:%M:%SZ}"
        fee = revision.fee * share
        lines.append(_line(f"subscription/{stamp}", Fraction(1), fee, customer, revision))
        committed += revision.commitment * share
        counted = (start, end) if revision.counts_alone else stay
        share = Fraction(_seconds(*counted), period)
        for meter, price in revision.prices.items():
            quantity = used[number][meter]
            if quantity > 0:
                near = [n for n, cut in enumerate(cuts) if counted[0] <= cut[0] < counted[1]]
                before = sum((used[n][meter] for n in near if cuts[n][0] < start), Fraction(0))
                whole = sum((used[n][meter] for n in near), Fraction(0))
                amount = _amount(price, quantity, share, before, whole)
                key = f"usage/{meter}/{stamp}"
                lines.append(_line(key, quantity, amount, customer, revision))
                usage_minor += lines[-1][3]
    lines += _commission(customer, plans, cuts, bounds)
    missing = at_decimals(committed, 18) - Fraction(
        usage_minor, 10 ** MINOR_UNITS[customer.currency]
    )
    if missing > 0 and any(cut[2].commitment for cut in cuts):
        last = max(cuts, key=lambda cut: cut[0])[2]
        lines.append(_line("commitment", Fraction(1), missing, customer, last))
    return sorted(lines)


def _commission(
    customer: Customer,
    plans: dict[str, list[Revision]],
    cuts: list[Cut],
    bounds: tuple[datetime, datetime],
) -> Iterator[ExpectedLine]:
    """Go through the trades one by one; the discount is that of the volume of the period."""
    traded = [trade for trade in customer.trades if bounds[0] <= trade[0] < bounds[1]]
    volume = sum(trade[2] for trade in traded)
    netted = _netted(customer, cuts, _below_the_mark(customer, plans, bounds[0]))
    earned: dict[datetime, Fraction] = {}
    for start, end, revision, stay in cuts:
        discount = Fraction(0)
        for from_volume, share in sorted(revision.volume_discounts):
            discount = share if volume >= from_volume else discount
        rate = revision.commission * (1 - discount)
        mine = [trade[1] for trade in traded if start <= trade[0] < end]
        if revision.netting == "None":
            mine = [profit for profit in mine if profit > 0]
            total = sum((_capped(profit * rate, revision) for profit in mine), Fraction(0))
        else:
            total = netted[revision.netting][start] * rate
        counted = (start, end) if revision.counts_alone else stay
        before = sum((earned[at] for at in earned if at >= counted[0]), Fraction(0))
        earned[start] = total
        if revision.cap_per_period is not None:
            room = revision.cap_per_period * Fraction(_seconds(*counted), _seconds(*bounds))
            total = min(total, max(room - before, Fraction(0)))
        if mine and revision.commission:
            key = f"commission/{start:%Y-%m-%dT%H:%M:%SZ}"
            yield _line(key, Fraction(len(mine)), total, customer, revision)


def _capped(amount: Fraction, revision: Revision) -> Fraction:
    return amount if revision.cap_per_trade is None else min(amount, revision.cap_per_trade)


def _netted(
    customer: Customer, cuts: list[Cut], below: Fraction
) -> dict[str, dict[datetime, Fraction]]:
    """Return what each cut pays for, by kind of netting."""
    kept: dict[str, dict[datetime, Fraction]] = {"Period": {}, "HighWaterMark": {}}
    for stay in sorted({cut[3] for cut in cuts}):
        nets = [(cut[0], _net(customer, cut[0], cut[1])) for cut in cuts if cut[3] == stay]
        kept["Period"] |= _gains_left(nets, Fraction(0))[0]
        gains, below = _gains_left(nets, below)
        kept["HighWaterMark"] |= gains
    return kept


def _net(customer: Customer, start: datetime, end: datetime) -> Fraction:
    return sum((t[1] for t in customer.trades if start <= t[0] < end), Fraction(0))


def _gains_left(
    nets: list[tuple[datetime, Fraction]], below: Fraction
) -> tuple[dict[datetime, Fraction], Fraction]:
    """Pile up gains; a loss eats the newest ones first, and what it cannot eat must be won again.

    Args:
        nets: What was won or lost, by cut, in the order of time.
        below: What must be won before anything counts as a gain.

    Returns:
        What is left of the gain of each cut, and what must be won from now on.
    """
    pile: list[list[Any]] = []
    for start, net in nets:
        refill = min(max(net, Fraction(0)), below)
        below -= refill
        pile.append([start, max(net, Fraction(0)) - refill])
        loss = max(-net, Fraction(0))
        for gain in reversed(pile):
            eaten = min(loss, gain[1])
            gain[1] -= eaten
            loss -= eaten
        below += loss
    return dict(pile), below


def _below_the_mark(
    customer: Customer, plans: dict[str, list[Revision]], until: datetime
) -> Fraction:
    """Go through all time before a moment, from the first stay on a plan in a period on."""
    below = Fraction(0)
    month = customer.phases[0][0].year * 12 + customer.phases[0][0].month - 3
    while True:
        month += 1
        bounds = period_bounds(customer, month // 12, month % 12 + 1)
        if bounds[0] >= until:
            return below
        for start, end in sorted({cut[3] for cut in _cuts(customer, plans, bounds)}):
            _, below = _gains_left([(start, _net(customer, start, end))], below)


def _line(
    key: str, quantity: Fraction, amount: Fraction, customer: Customer, revision: Revision
) -> ExpectedLine:
    exact = at_decimals(amount, 18)
    minor = exact * 10 ** MINOR_UNITS[customer.currency]
    return key, quantity, exact, half_up(minor) if revision.half_up else half_even(minor)


def _cuts(
    customer: Customer, plans: dict[str, list[Revision]], bounds: tuple[datetime, datetime]
) -> Iterator[Cut]:
    for since, until, plan in customer.phases:
        revisions = plans[plan]
        for number, revision in enumerate(revisions):
            following = revisions[number + 1].since if number + 1 < len(revisions) else None
            stay = max(bounds[0], since), min(bounds[1], until or bounds[1])
            start = max(stay[0], revision.since or since)
            end = min(stay[1], following or bounds[1])
            if start < end:
                yield start, end, revision, stay


def _metered(customer: Customer, cuts: list[Cut]) -> list[dict[str, Fraction]]:
    used: list[dict[str, Fraction]] = [defaultdict(Fraction) for _ in cuts]
    for start, end, container, cpu_milli, mem_bytes in customer.runs:
        for number, seconds in _seconds_in(cuts, start, end).items():
            used[number]["bot_seconds"] += seconds if container == "bot" else 0
            used[number]["cpu_core_seconds"] += seconds * Fraction(cpu_milli, 1000)
            used[number]["memory_gib_seconds"] += seconds * Fraction(mem_bytes, 2**30)
    for start, end, size in customer.volumes:
        for number, seconds in _seconds_in(cuts, start, end).items():
            used[number]["storage_gb_hours"] += Fraction(seconds * size, 3600 * 10**9)
    for moment, meter, quantity in customer.events:
        for number in _seconds_in(cuts, moment, moment + SECOND):
            used[number][meter] += quantity
    return [
        defaultdict(Fraction, {m: Fraction(int(q * 10**12), 10**12) for m, q in meters.items()})
        for meters in used
    ]


def _seconds_in(cuts: list[Cut], start: datetime, end: datetime) -> Counter[int]:
    """Count, one by one, the seconds of a run that each cut holds."""
    bounds = [cut[:2] for cut in cuts]
    seconds, moment = Counter[int](), start
    while moment < end:
        seconds.update(n for n, (lo, hi) in enumerate(bounds) if lo <= moment < hi)
        moment += SECOND
    return seconds


def _amount(
    price: Price,
    quantity: Fraction,
    share: Fraction,
    before: Fraction = Fraction(0),
    whole: Fraction | None = None,
) -> Fraction:
    """Go from the unit that was counted last to the last one of the quantity."""
    included = Fraction(int(price.included * share * 10**12), 10**12)
    whole = before + quantity if whole is None else whole
    first, last = (max(count - included, Fraction(0)) for count in (before, before + quantity))
    if last == 0:
        return Fraction(0)
    _, first_price, first_flat = price.tiers[0]
    entry = share if first == 0 else Fraction(0)
    match price.model:
        case "PerUnit":
            return (last - first) * first_price / price.unit_size + first_flat * entry
        case "Flat":
            return first_flat * entry
        case "Package":
            return _packages(first, last, price.unit_size) * first_price + first_flat * entry
        case "Volume":
            _, unit_price, flat = next(
                tier for tier in price.tiers if tier[0] is None or whole - included <= tier[0]
            )
            return (last - first) * unit_price / price.unit_size + flat * entry
        case _:
            return _graduated(price, first, last, share)


def _packages(first: Fraction, last: Fraction, size: Fraction) -> int:
    """Count the packages that begin after `first` units and not after all before `last`."""
    scale = first.denominator * last.denominator * size.denominator
    low, high, step = (int(number * scale) for number in (first, last, size))
    return sum(1 for start in range(0, high, step) if start >= low)


def _graduated(price: Price, first: Fraction, last: Fraction, share: Fraction) -> Fraction:
    total, lower = Fraction(0), Fraction(0)
    for upper, unit_price, flat in price.tiers:
        top = last if upper is None else min(last, upper)
        total += max(top - max(first, lower), Fraction(0)) * unit_price / price.unit_size
        total += flat * share if first <= lower < last else 0
        lower = lower if upper is None else upper
    return total


def _seconds(start: datetime, end: datetime) -> int:
    return (end - start) // SECOND
