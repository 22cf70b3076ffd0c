"""Where a tenant stands in the period that runs now, and which limits it has come near. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final
from uuid import UUID

WARN_AT_PERCENT: Final = (50, 80, 90, 100)
"""Of a limit; each comes once per period."""
SPEND: Final = "spend"


@dataclass(frozen=True, kw_only=True)
class MeterStanding:
    """What was used of one meter.

    Attributes:
        meter: Such as `rpc_calls`.
        quantity: In the unit of the meter.
        included: What the fee of the period covers; None without a price.
        cost: Charge so far, unrounded, in the major unit.
        is_hard: The plan stops the tenant when all that is included is used.
    """

    meter: str
    quantity: Decimal
    included: Decimal | None
    cost: Decimal
    is_hard: bool = False

    @property
    def included_percent(self) -> int | None:
        """Whole percent of the included quantity, or None when nothing is included."""
        return None if not self.included else int(self.quantity * 100 / self.included)


class LimitState(StrEnum):
    """What a hard limit does to a tenant."""

    CLEAR = "Clear"
    BLOCKED = "Blocked"
    """RPC is refused; bots are told that they will be suspended."""
    SUSPENDED = "Suspended"
    """The notice is over: bots are suspended too."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where one tenant stands.

    Attributes:
        tenant_id: Uid of the Tenant.
        tenant: Its name.
        period: Name of the billing period.
        starts_at: First moment of the period, UTC.
        ends_at: First moment after it.
        currency: Of all amounts, which are unrounded and in the major unit.
        digits: Decimals of its minor unit.
        fee: Of the whole period.
        commission: On trades so far; final when the period is billed.
        one_offs: Charges beside the plan that the invoice of the period has.
        meters: What was used, by meter.
        spend_limit: With the credits of the period; None is no limit.
        blocks: What hard limits that are reached do now, by scope.
        metered_time: Until when all runs are recorded; None: metering never reported.
    """

    tenant_id: UUID
    tenant: str
    period: str
    starts_at: datetime
    ends_at: datetime
    currency: str
    digits: int
    fee: Decimal
    commission: Decimal
    one_offs: Decimal
    meters: tuple[MeterStanding, ...]
    spend_limit: Decimal | None
    blocks: Mapping[str, LimitState]
    metered_time: datetime | None

    @property
    def cost(self) -> Decimal:
        """Fee, usage, commission and one-off charges so far."""
        besides = self.fee + self.commission + self.one_offs
        return sum((meter.cost for meter in self.meters), besides)

    @property
    def limit_state(self) -> LimitState:
        """What the spend limit does now."""
        return self.blocks.get(SPEND, LimitState.CLEAR)

    @property
    def limit_percent(self) -> int | None:
        """Whole percent of the spend limit; None without one."""
        if self.spend_limit is None:
            return None
        return int(self.cost * 100 / self.spend_limit) if self.spend_limit else 100

    def quantity(self, meter: str) -> Decimal:
        """Return what was used of a meter."""
        return next((m.quantity for m in self.meters if m.meter == meter), Decimal(0))


@dataclass(frozen=True, kw_only=True)
class UsedLimit:
    """A limit and how much of it is used; a hard one stops the tenant."""

    tenant_id: UUID
    period: str
    scope: str
    used: Decimal
    limit: Decimal
    is_hard: bool


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A warning that was never given before in this period.

    Attributes:
        scope: `spend`, or `included/<meter>`.
        percent: 50, 80, 90 or 100.
        is_hard: At 100 the tenant is stopped.
    """

    tenant_id: UUID
    period: str
    scope: str
    percent: int
    used: Decimal
    limit: Decimal
    is_hard: bool = True


def near_limits(standings: Iterable[Standing]) -> Iterator[UsedLimit]:
    """Yield the limits of which half or more is used: spend, and included quantities."""
    for limit in _limits(standings):
        if limit.used * 100 >= limit.limit * WARN_AT_PERCENT[0]:
            yield limit


def hard_limits(standings: Iterable[Standing]) -> Iterator[UsedLimit]:
    """Yield the limits that stop a tenant when all of them is used."""
    return (limit for limit in _limits(standings) if limit.is_hard)


def included_scope(meter: str) -> str:
    """Return the scope of what a plan includes of a meter."""
    return f"included/{meter}"


def _limits(standings: Iterable[Standing]) -> Iterator[UsedLimit]:
    for standing in standings:
        if standing.spend_limit is not None:
            yield _limit(standing, SPEND, (standing.cost, standing.spend_limit), is_hard=True)
        for meter in standing.meters:
            if meter.included:
                scope = included_scope(meter.meter)
                figures = (meter.quantity, meter.included)
                yield _limit(standing, scope, figures, is_hard=meter.is_hard)


def _limit(
    standing: Standing, scope: str, figures: tuple[Decimal, Decimal], *, is_hard: bool
) -> UsedLimit:
    used, limit = figures
    return UsedLimit(
        tenant_id=standing.tenant_id,
        period=standing.period,
        scope=scope,
        used=used,
        limit=limit,
        is_hard=is_hard,
    )
