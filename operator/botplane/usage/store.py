"""Where tenants stand now, read from the same intervals and prices that invoices use."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from psycopg.rows import class_row, dict_row

from botplane.errors import Rejected
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries
from botplane.usage.standing import (
    SPEND,
    LimitState,
    MeterStanding,
    Notice,
    Standing,
    UsedLimit,
    hard_limits,
    near_limits,
)
from botplane.usage.status import stopped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from psycopg import Connection

    from botplane.api.conditions import Finding

SQL = load_queries(__package__)
TENANTS_AT_ONCE: Final = 200
"""Whose totals are built in one transaction, which holds up the writers of usage."""
NOTICE: Final = timedelta(minutes=15)
"""From reaching a hard limit to the suspension of the bots."""


@dataclass(frozen=True, kw_only=True)
class BotUsage:
    """What the bots of one name used in one period.

    Attributes:
        bot: Name of the BotDeployment; empty for usage that no bot reported.
        pods: Pods that ran in the period.
        seconds: Running time of the container `bot`, all replicas together.
        running: Containers `bot` that run now.
        storage_gb_hours: What its volumes held, in GB (10^9 bytes) times hours.
        cost: Unrounded share of the usage charges, in the major unit of the tenant's currency.
    """

    bot: str
    pods: int
    seconds: int
    running: int
    storage_gb_hours: Decimal
    cost: Decimal


class BotTotal(NamedTuple):
    """What one bot used so far in the period that runs now."""

    seconds: int
    """Running time of the container `bot`, all replicas together."""
    cost: Decimal
    """Unrounded share of the usage charges, in the major unit."""


def usage_by_bot(
    conn: Connection[Any], tenant_name: str, period: str | None, now: datetime
) -> list[BotUsage]:
    """Return what each bot of a tenant used up to now, by name.

    Args:
        conn: Connection without an open transaction.
        tenant_name: Name of the Tenant.
        period: Such as `2026-10`; None for the one that runs now.
        now: Containers that still run count until then.

    Raises:
        Rejected: There is no such tenant or period.
        Retryable: Postgres is away.
    """
    names = {"tenant": tenant_name, "period": period, "now": now.replace(microsecond=0)}
    with translated_errors(), conn.transaction():
        conn.execute(SQL["ensure_periods"], names)
        row = conn.execute(SQL["named_period"], names).fetchone()
        if row is None:
            raise _not_found(tenant_name, period, conn.execute(SQL["period_names"], names))
        names |= {"tenant_id": row[0], "period": row[1]}
        with conn.cursor(row_factory=class_row(BotUsage)) as cursor:
            return cursor.execute(SQL["usage_by_bot"], names).fetchall()


def standings(
    conn: Connection[Any], now: datetime, tenants: Sequence[UUID] | None = None
) -> tuple[dict[UUID, Standing], dict[UUID, BotTotal]]:
    """Return where open tenants and their bots stand now, in a fixed number of statements.

    A few more statements follow a new month or a changed plan: the totals are built then.

    Args:
        conn: Connection without an open transaction.
        now: Containers that still run count until then.
        tenants: Some of them, with every meter; None: all, with the meters that have a price.

    Raises:
        Retryable: Postgres is away.
    """
    names = {
        "now": now.replace(microsecond=0),
        "tenants": None if tenants is None else list(tenants),
    }
    with translated_errors():
        _build_totals(conn, names)
        with conn.transaction():
            conn.execute(SQL["one_moment"])
            if tenants is None:
                conn.execute(SQL["read_at_once"])
            terms = conn.cursor(row_factory=dict_row).execute(SQL["terms"], names).fetchall()
            watermark = conn.execute(SQL["metered_time"]).fetchone()
            commissions = dict(conn.execute(SQL["commissions"], names).fetchall())
            blocks = _open_blocks(conn, now)
            rows = conn.execute(SQL["standing"], names).fetchall()
    bots: dict[UUID, BotTotal] = {}
    meters = defaultdict[UUID, list[MeterStanding]](list)
    for tenant_id, bot_id, meter, quantity, included, cost, is_hard in rows:
        if bot_id is None:
            meters[tenant_id].append(
                MeterStanding(
                    meter=meter, quantity=quantity, included=included, cost=cost, is_hard=is_hard
                )
            )
        else:
            bots[bot_id] = BotTotal(int(quantity), cost)
    metered_time = None if watermark is None else watermark[0].astimezone(UTC)
    return {
        row["tenant_id"]: Standing(
            **row | {"starts_at": _utc(row["starts_at"]), "ends_at": _utc(row["ends_at"])},
            commission=commissions.get(row["tenant_id"], Decimal(0)),
            meters=tuple(sorted(meters[row["tenant_id"]], key=lambda meter: meter.meter)),
            blocks=blocks.get(row["tenant_id"], {}),
            metered_time=metered_time,
        )
        for row in terms
    }, bots


def standing_of(conn: Connection[Any], tenant_name: str, now: datetime) -> Standing:
    """Return where one open tenant stands now, with every meter.

    Raises:
        Rejected: There is no open tenant of this name, or nothing runs for it yet.
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        row = conn.execute(SQL["open_tenant"], {"tenant": tenant_name}).fetchone()
    found = standings(conn, now, [row[0]])[0] if row is not None else {}
    if row is None or row[0] not in found:
        raise Rejected("TenantNotFound", f"No tenant {tenant_name} has a billing period now.")
    return found[row[0]]


def enforce_limits(
    conn: Connection[Any], stands: Collection[Standing], now: datetime
) -> list[Notice]:
    """Note who has come near a limit, block who reached a hard one, clear who has room.

    Returns:
        The warnings that are new: each of 50, 80, 90 and 100 percent comes once per period,
        whoever asks and however often.

    Raises:
        Retryable: Postgres is away.
    """
    near = list(near_limits(stands))
    is_hard = {(limit.tenant_id, limit.scope): limit.is_hard for limit in near}
    stopping = {
        **_columns(hard_limits(stands)),
        "standing": [stand.tenant_id for stand in stands],
        "now": now,
    }
    with translated_errors(), conn.transaction():
        conn.execute(SQL["clear_spenders"], stopping)
        conn.execute(SQL["block_spenders"], stopping)
        rows = conn.execute(SQL["note_limits"], {**_columns(near), "now": now}).fetchall()
    return [
        Notice(
            tenant_id=t,
            period=p,
            scope=scope,
            percent=percent,
            used=used,
            limit=limit,
            is_hard=is_hard[t, scope],
        )
        for t, p, scope, percent, used, limit in rows
    ]


def open_blocks(conn: Connection[Any], now: datetime) -> Mapping[UUID, Mapping[str, LimitState]]:
    """Return who has reached which hard limits, by scope: RPC is refused, bots stop after notice.

    Raises:
        Retryable: Postgres is away.
    """
    with translated_errors(), conn.transaction():
        return _open_blocks(conn, now)


def refused(conn: Connection[Any], now: datetime) -> dict[UUID, Finding]:
    """Return whose RPC is refused and why, in the words of the condition `WithinLimits`.

    Raises:
        Retryable: Postgres is away.
    """
    blocks = defaultdict[UUID, dict[str, LimitState]](dict)
    limits = defaultdict[UUID, tuple[Decimal, str]](lambda: (Decimal(0), ""))
    with translated_errors(), conn.transaction():
        rows = conn.execute(SQL["refused"]).fetchall()
    for tenant_id, scope, blocked_at, limit, currency in rows:
        blocks[tenant_id][scope] = _state(blocked_at, now)
        if scope == SPEND:
            limits[tenant_id] = (limit, currency)
    return {tenant: stopped(scopes, *limits[tenant]) for tenant, scopes in blocks.items()}


def totals_that_differ(conn: Connection[Any]) -> list[tuple[Any, ...]]:
    """Return where the totals are not what intervals and events say; there must be none."""
    with translated_errors(), conn.transaction():
        conn.execute(SQL["read_at_once"])
        return conn.execute(SQL["totals_that_differ"]).fetchall()


def _build_totals(conn: Connection[Any], names: dict[str, Any]) -> None:
    missing = [t for (t,) in conn.execute(SQL["unsegmented"], names)]
    if not missing:
        return
    with conn.transaction():
        conn.execute(SQL["ensure_periods"], names)
    for start in range(0, len(missing), TENANTS_AT_ONCE):
        some = missing[start : start + TENANTS_AT_ONCE]
        with conn.transaction():
            periods = conn.execute(SQL["periods_of"], names | {"tenants": some}).fetchall()
            conn.execute(
                SQL["build_segments"],
                {"tenants": [t for t, _ in periods], "periods": [p for _, p in periods]},
            )


def _open_blocks(conn: Connection[Any], now: datetime) -> dict[UUID, dict[str, LimitState]]:
    blocks = defaultdict[UUID, dict[str, LimitState]](dict)
    for tenant_id, scope, blocked_at in conn.execute(SQL["open_blocks"]):
        blocks[tenant_id][scope] = _state(blocked_at, now)
    return dict(blocks)


def _state(blocked_at: datetime, now: datetime) -> LimitState:
    return LimitState.SUSPENDED if now >= blocked_at + NOTICE else LimitState.BLOCKED


def _columns(limits: Iterable[UsedLimit]) -> dict[str, list[Any]]:
    found = list(limits)
    return {
        "tenants": [limit.tenant_id for limit in found],
        "periods": [limit.period for limit in found],
        "scopes": [limit.scope for limit in found],
        "used": [limit.used for limit in found],
        "limits": [limit.limit for limit in found],
    }


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _not_found(tenant_name: str, period: str | None, known: Any) -> Rejected:
    bounds = known.fetchone()
    if bounds is None:
        return Rejected("TenantNotFound", f"No tenant {tenant_name} was registered for billing.")
    span = "none yet" if bounds[0] is None else f"{bounds[0]} to {bounds[1]}"
    return Rejected(
        "PeriodNotFound",
        f"Tenant {tenant_name} has no billing period {period or 'now'}; it has {span}.",
    )
