"""Usage as a status shows it: rounded, as text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

    from botplane.usage.store import BotTotal, UsageSummary

SECONDS_PER_HOUR = 3600


def figures(
    tenants: Mapping[UUID, UsageSummary], bots: Mapping[UUID, BotTotal]
) -> dict[str, dict[str, Any]]:
    """Return `status.usage` of each tenant and bot, by uid.

    Hours have three decimals and costs two, so that an hour of one bot moves a status a few
    times and not every minute of every bot.
    """
    shown: dict[str, dict[str, Any]] = {}
    for tenant_id, summary in tenants.items():
        if summary.metered_time is None:
            continue
        shown[str(tenant_id)] = {
            "periodStart": f"{summary.period_start:%Y-%m-%dT%H:%M:%SZ}",
            "botHours": _hours(summary.bot_seconds),
            "rpcCalls": summary.rpc_calls,
            "cost": _rounded(summary.cost, "0.01"),
            "meteredTime": f"{summary.metered_time:%Y-%m-%dT%H:%M:00Z}",
        }
    for bot_id, total in bots.items():
        shown[str(bot_id)] = {
            "botHours": _hours(total.seconds),
            "cost": _rounded(total.cost, "0.01"),
        }
    return shown


def _hours(seconds: int) -> str:
    return _rounded(Decimal(seconds) / SECONDS_PER_HOUR, "0.001")


def _rounded(value: Decimal, step: str) -> str:
    return str(value.quantize(Decimal(step), rounding=ROUND_HALF_EVEN))
