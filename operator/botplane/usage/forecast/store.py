"""Reads what forecasts rest on, rates them as invoices are rated, and keeps some to be judged."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from psycopg.rows import dict_row

from botplane.errors import Rejected
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries
from botplane.usage.forecast.policy import (
    Accuracy,
    Amounts,
    Forecast,
    Ground,
    Segment,
    Use,
    commission,
    expected_quantities,
    total,
)
from botplane.usage.forecast.rates import DAY, HISTORY_DAYS, SECOND, History, history_of
from botplane.usage.store import standing_of, standings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from psycopg import Connection

    from botplane.usage.standing import Standing

SQL = load_queries(__package__)
TENANTS_AT_ONCE: Final = 2500
"""Whose history is in memory at one time."""
_ROUNDINGS: Final = {"half_even": ROUND_HALF_EVEN, "half_up": ROUND_HALF_UP}
MANY: Final = 100
"""More tenants than this are read like all of them."""


class _Terms(NamedTuple):
    """What depends on time alone, in minor units."""

    fee: int
    digits: int
    commitment: Decimal
    has_commission: bool
    commission_cap: int | None
    rounding: str


def forecasts(
    conn: Connection[Any], stands: Collection[Standing], now: datetime
) -> dict[UUID, Forecast]:
    """Return what periods of tenants will cost, in a fixed number of statements.

    Tenants whose period has only begun are left out.

    Args:
        conn: Connection without an open transaction.
        stands: Where the tenants stand, by `usage.store.standings`.
        now: A moment of the periods; at their end, the forecast is what they cost.

    Raises:
        Retryable: Postgres is away.
    """
    now = now.replace(microsecond=0)
    by_id = {stand.tenant_id: stand for stand in stands}
    with translated_errors(), conn.transaction():
        conn.execute(SQL["one_moment"])
        if len(by_id) > MANY:
            conn.execute(SQL["many"])
        segments, terms = _read_segments(conn, by_id)
        grounds = _read_grounds(conn, by_id, segments, now)
        usage = _rate(conn, grounds)
        traded = _read_commissions(conn, by_id, grounds, terms)
    return {
        tenant_id: _forecast(
            by_id[tenant_id], ground, terms[tenant_id], usage[tenant_id], traded[tenant_id]
        )
        for tenant_id, ground in grounds.items()
    }


def forecast_of(conn: Connection[Any], stand: Standing, now: datetime) -> Forecast | None:
    """Return what the running period of one tenant will cost; None while it has only begun.

    Raises:
        Retryable: Postgres is away.
    """
    return forecasts(conn, [stand], now).get(stand.tenant_id)


def outlook(
    conn: Connection[Any], tenant_name: str, now: datetime
) -> tuple[Standing, Forecast | None] | None:
    """Return where the open tenant of a name stands, and what its running period will cost.

    Returns:
        None when there is no such tenant; without a forecast while its period has only begun.

    Raises:
        Retryable: Postgres is away.
    """
    try:
        stand = standing_of(conn, tenant_name, now)
    except Rejected:
        return None
    return stand, forecast_of(conn, stand, now)


def forecast_pass(conn: Connection[Any], now: datetime) -> dict[UUID, Forecast]:
    """Return the forecasts of all open tenants; keep those at a mark, and fill in what came true.

    Running it again, or twice at once, changes nothing.

    Raises:
        Retryable: Postgres is away.
    """
    stands = list(standings(conn, now)[0].values())
    found: dict[UUID, Forecast] = {}
    for start in range(0, len(stands), TENANTS_AT_ONCE):
        found |= forecasts(conn, stands[start : start + TENANTS_AT_ONCE], now)
    kept = [forecast for forecast in found.values() if forecast.mark is not None]
    with translated_errors(), conn.transaction():
        if kept:
            conn.execute(SQL["keep"], _columns(kept))
        conn.execute(SQL["lock_fillable"])
        conn.execute(SQL["fill_actuals"])
    return found


def accuracy(conn: Connection[Any], since: datetime) -> dict[tuple[str, int], Accuracy]:
    """Return how good the forecasts of billed periods were, by currency and mark.

    Args:
        conn: Connection without an open transaction.
        since: Periods that ended after it count.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(SQL["accuracy"], {"since": since}).fetchall()
    return {(row.pop("currency"), row.pop("percent")): Accuracy(**row) for row in rows}


def _read_segments(
    conn: Connection[Any], stands: Mapping[UUID, Standing]
) -> tuple[dict[UUID, list[Segment]], dict[UUID, _Terms]]:
    names = {"tenants": list(stands), "periods": [stand.period for stand in stands.values()]}
    segments = defaultdict[UUID, list[Segment]](list)
    fees = defaultdict[UUID, int](int)
    terms = {}
    for tenant_id, starts, ends, first, last, fee, *others in conn.execute(SQL["segments"], names):
        counted = (_utc(first), _utc(last))
        segments[tenant_id].append(
            Segment(starts_at=_utc(starts), ends_at=_utc(ends), counted=counted)
        )
        fees[tenant_id] += fee
        terms[tenant_id] = _Terms(fees[tenant_id], *others)
    return segments, terms


def _read_grounds(
    conn: Connection[Any],
    stands: Mapping[UUID, Standing],
    segments: Mapping[UUID, Sequence[Segment]],
    now: datetime,
) -> dict[UUID, Ground]:
    bare = {t: Ground(now=now, segments=found) for t, found in segments.items()}
    bare = {tenant_id: ground for tenant_id, ground in bare.items() if not ground.is_early}
    if not bare:
        return {}
    names = _back_from(bare, stands)
    uses = defaultdict[UUID, dict[tuple[datetime, str], Use]](dict)
    for tenant_id, starts, meter, used, at_end in conn.execute(SQL["uses"], names):
        uses[tenant_id][_utc(starts), meter] = Use(used, at_end)
    histories = defaultdict[UUID, dict[str, History]](dict)
    for name in ("event_days", "run_days"):
        for tenant_id, meter, *columns in conn.execute(SQL[name], names, binary=True):
            histories[tenant_id][meter] = history_of(*columns)
    return {
        tenant_id: replace(
            ground,
            uses=uses[tenant_id],
            histories=histories[tenant_id],
        )
        for tenant_id, ground in bare.items()
    }


def _read_commissions(
    conn: Connection[Any],
    stands: Mapping[UUID, Standing],
    grounds: Mapping[UUID, Ground],
    terms: Mapping[UUID, _Terms],
) -> Mapping[UUID, Amounts]:
    found = defaultdict[UUID, Amounts](lambda: Amounts(0, 0, 0, 0))
    traders = {t: ground for t, ground in grounds.items() if terms[t].has_commission}
    won, winnings = dict[UUID, Decimal](), dict[UUID, History]()
    if traders:
        for tenant_id, in_period, *columns in conn.execute(
            SQL["winnings"], _back_from(traders, stands)
        ):
            won[tenant_id], winnings[tenant_id] = in_period, history_of(*columns)
    winners = {tenant_id: grounds[tenant_id] for tenant_id, amount in won.items() if amount}
    if winners:
        for tenant_id, so_far in conn.execute(SQL["commissions"], _back_from(winners, stands)):
            ground, cap = grounds[tenant_id], terms[tenant_id].commission_cap
            found[tenant_id] = commission(so_far, won[tenant_id], winnings[tenant_id], ground, cap)
    return found


def _rate(conn: Connection[Any], grounds: Mapping[UUID, Ground]) -> dict[UUID, list[Amounts]]:
    wanted = {t: list(expected_quantities(ground)) for t, ground in grounds.items()}
    asked = list(
        dict.fromkeys(
            (tenant_id, expected.starts_at, expected.meter, *counted)
            for tenant_id, found in wanted.items()
            for expected in found
            for counted in expected.counted
        )
    )
    names = {
        name: [question[place] for question in asked]
        for place, name in enumerate(
            ("tenants", "starts", "meters", "quantities", "befores", "wholes")
        )
    }
    rated = dict.fromkeys(asked, 0)
    for number, minor in conn.execute(SQL["rated"], names):
        rated[asked[number - 1]] = minor
    return {
        tenant_id: [
            Amounts(*(rated[tenant_id, e.starts_at, e.meter, *counted] for counted in e.counted))
            for e in found
        ]
        for tenant_id, found in wanted.items()
    }


def _forecast(
    stand: Standing, ground: Ground, terms: _Terms, usage: Sequence[Amounts], traded: Amounts
) -> Forecast:
    fixed = terms.fee + int(stand.one_offs.scaleb(terms.digits))
    rounding = _ROUNDINGS[terms.rounding]
    amounts = total(fixed, terms.commitment, usage, traded, rounding)
    low, middle, high, run_rate = (_major(amount, terms) for amount in amounts)
    limit = stand.spend_limit
    return Forecast(
        tenant_id=stand.tenant_id,
        period=stand.period,
        currency=stand.currency,
        amount=middle,
        low=low,
        high=high,
        run_rate=run_rate,
        projected_overage=_major(sum(charge.middle for charge in usage), terms),
        over_limit=None if limit is None else max(Decimal(0), middle - limit),
        elapsed_percent=ground.elapsed_percent,
        as_of=ground.now,
    )


def _major(minor: int, terms: _Terms) -> Decimal:
    return Decimal(minor).scaleb(-terms.digits)


def _back_from(grounds: Mapping[UUID, Ground], stands: Mapping[UUID, Standing]) -> dict[str, Any]:
    """Return the last 28 days until a full hour, and the hours of each period beyond whole days."""
    now = next(iter(grounds.values())).now
    until = now.replace(minute=0, second=0)
    return {
        "now": now,
        "tenants": list(grounds),
        "periods": [stands[tenant_id].period for tenant_id in grounds],
        "starts": [stands[tenant_id].starts_at for tenant_id in grounds],
        "rests": [Decimal(ground.remaining % DAY // SECOND) / 3600 for ground in grounds.values()],
        "since": until - timedelta(days=HISTORY_DAYS),
        "until": until,
    }


def _columns(kept: Sequence[Forecast]) -> dict[str, Any]:
    return {
        "tenants": [forecast.tenant_id for forecast in kept],
        "periods": [forecast.period for forecast in kept],
        "percents": [forecast.mark for forecast in kept],
        "moments": [forecast.as_of for forecast in kept],
        "amounts": [forecast.amount for forecast in kept],
        "lows": [forecast.low for forecast in kept],
        "highs": [forecast.high for forecast in kept],
        "run_rates": [forecast.run_rate for forecast in kept],
    }


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
