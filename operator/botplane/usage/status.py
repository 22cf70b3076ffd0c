"""Usage and limits as a status shows them: rounded, as text. Pure."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any

from botplane.api.conditions import Finding, Verdict
from botplane.usage.standing import (
    SPEND,
    WARN_AT_PERCENT,
    LimitState,
    Notice,
    UsedLimit,
    near_limits,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from botplane.usage.standing import Standing
    from botplane.usage.store import BotTotal

SECONDS_PER_HOUR = 3600
WITHIN_LIMITS = "WithinLimits"
WHOLE = WARN_AT_PERCENT[-1]


def tenant_figures(standing: Standing) -> dict[str, Any] | None:
    """Return `status.usage` of a tenant, None before metering has reported.

    Hours have three decimals and costs two, so that an hour of one bot moves a status a few
    times and not every minute of every bot.
    """
    if standing.metered_time is None:
        return None
    shown = {
        "periodStart": f"{standing.starts_at:%Y-%m-%dT%H:%M:%SZ}",
        "botHours": _hours(int(standing.quantity("bot_seconds"))),
        "rpcCalls": int(standing.quantity("rpc_calls")),
        "cost": _rounded(standing.cost, "0.01"),
        "meteredTime": f"{standing.metered_time:%Y-%m-%dT%H:%M:00Z}",
    }
    if standing.limit_percent is not None:
        shown["limitPercent"] = standing.limit_percent
    return shown


def bot_figures(total: BotTotal) -> dict[str, Any]:
    """Return `status.usage` of a bot."""
    return {"botHours": _hours(total.seconds), "cost": _rounded(total.cost, "0.01")}


def limit_verdict(standing: Standing, blocks: Mapping[str, LimitState]) -> Verdict:
    """Return the condition WithinLimits; its words change only when a warning is due.

    Args:
        standing: What was used.
        blocks: What hard limits that are reached do now, by scope.
    """
    near = sorted(near_limits([standing]), key=lambda limit: (limit.scope != SPEND, limit.scope))
    if blocks:
        limit = standing.spend_limit or Decimal(0)
        return Verdict.fails(WITHIN_LIMITS, stopped(blocks, limit, standing.currency))
    used_up = [limit for limit in near if _mark(limit) == WHOLE]
    if used_up:
        reason = _used_up(used_up[0])
        text = "; ".join(f"all of {_name(limit)} is used" for limit in used_up)
        return Verdict.fails(WITHIN_LIMITS, Finding(reason, f"{text}{_consequence(reason)}"))
    if near:
        text = "; ".join(f"{_mark(limit)} % of {_name(limit)} is used" for limit in near)
        return Verdict.holds(WITHIN_LIMITS, "LimitNear", text)
    text = "Less than half of every limit is used"
    return Verdict.holds(WITHIN_LIMITS, WITHIN_LIMITS, text)


def notice_finding(notice: Notice) -> Finding:
    """Return what to tell when a warning is given for the first time in a period."""
    reason = _used_up(notice) if notice.percent == WHOLE else "LimitNear"
    text = (
        f"{notice.percent} % of {_name(notice)} in period {notice.period} is used: "
        f"{_shown(notice.used)} of {_shown(notice.limit)}"
    )
    return Finding(reason, f"{text}{_consequence(reason)}")


def stopped(blocks: Mapping[str, LimitState], spend_limit: Decimal, currency: str) -> Finding:
    """Return why a tenant's RPC is refused, and what becomes of its bots.

    Args:
        blocks: The hard limits that are reached, by scope; one at least.
        spend_limit: In the major unit, where it is one of them.
        currency: Of the limit.
    """
    is_over = LimitState.SUSPENDED in blocks.values()
    what = "bots are stopped" if is_over else "bots stop in 15 minutes or less"
    if SPEND in blocks:
        reason = "SpendLimitReached"
        reached = f"the spend limit of {_shown(spend_limit)} {currency} is reached"
    else:
        reason = "UsageLimitReached"
        reached = "; ".join(f"all of {_scope_name(scope)} is used" for scope in sorted(blocks))
    return Finding(reason, f"{reached}: RPC is refused and {what}{_consequence(reason)}")


def _used_up(limit: UsedLimit | Notice) -> str:
    if limit.scope == SPEND:
        return "SpendLimitReached"
    return "UsageLimitReached" if limit.is_hard else "OverIncluded"


def _consequence(reason: str) -> str:
    return {
        "OverIncluded": "; what is used beyond is billed by the plan's prices",
        "SpendLimitReached": "; raise spec.billing.spendLimit or grant a credit",
        "UsageLimitReached": "; change the plan, or wait for the next billing period",
    }.get(reason, "")


def _mark(limit: UsedLimit) -> int:
    return max(p for p in WARN_AT_PERCENT if limit.used * WHOLE >= limit.limit * p)


def _name(limit: UsedLimit | Notice) -> str:
    if limit.scope == SPEND:
        return f"the spend limit of {_shown(limit.limit)}"
    return _scope_name(limit.scope)


def _scope_name(scope: str) -> str:
    return f"the {scope.partition('/')[2]} that the plan includes"


def _shown(amount: Decimal) -> str:
    return _rounded(amount, "0.01")


def _hours(seconds: int) -> str:
    return _rounded(Decimal(seconds) / SECONDS_PER_HOUR, "0.001")


def _rounded(value: Decimal, step: str) -> str:
    return str(value.quantize(Decimal(step), rounding=ROUND_HALF_EVEN))
