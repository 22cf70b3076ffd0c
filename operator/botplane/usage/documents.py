"""Usage for people (table) and for programs (JSON). Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from botplane.usage.standing import LimitState, included_scope

if TYPE_CHECKING:
    from botplane.usage.forecast.policy import Forecast
    from botplane.usage.standing import MeterStanding, Standing
    from botplane.usage.store import BotUsage

METER_COLUMNS = "{:<24} {:>22} {:>16} {:>8} {:>16}"
COLUMNS = "{:<24} {:>6} {:>8} {:>14} {:>16} {:>16} {:>16}"


def render_table(bots: Sequence[BotUsage]) -> str:
    """Return a table with the exact seconds, their hours, and a row of sums."""
    rows = [COLUMNS.format("BOT", "PODS", "RUNNING", "SECONDS", "HOURS", "GB-HOURS", "COST")]
    rows += [_row(bot.bot or "(no bot)", [bot]) for bot in bots]
    rows.append(_row("total", bots))
    return "\n".join(rows)


def render_json(bots: Sequence[BotUsage]) -> str:
    """Return a list of objects; costs are strings and not rounded."""
    entries = [
        {
            "bot": bot.bot,
            "pods": bot.pods,
            "running": bot.running,
            "seconds": bot.seconds,
            "storageGBHours": _plain(bot.storage_gb_hours),
            "cost": f"{bot.cost:f}",
        }
        for bot in bots
    ]
    return json.dumps(entries, indent=2)


def standing_document(
    standing: Standing, forecast: Forecast | None, now: datetime
) -> dict[str, Any]:
    """Return where a tenant stands, for JSON; amounts and quantities are texts, not rounded.

    The forecast is rounded as an invoice would be; there is none while the period has only begun.
    """
    limit = standing.spend_limit
    return {
        "tenant": standing.tenant,
        "period": standing.period,
        "periodStart": _time(standing.starts_at),
        "periodEnd": _time(standing.ends_at),
        "asOf": _time(now),
        "meteredTime": None if standing.metered_time is None else _time(standing.metered_time),
        "currency": standing.currency,
        "cost": _plain(standing.cost),
        "fee": _plain(standing.fee),
        "commission": _plain(standing.commission),
        "oneOffs": _plain(standing.one_offs),
        "meters": [
            {
                "meter": meter.meter,
                "quantity": _plain(meter.quantity),
                "included": None if meter.included is None else _plain(meter.included),
                "includedPercent": meter.included_percent,
                "limitState": _state(standing, meter),
                "cost": _plain(meter.cost),
            }
            for meter in standing.meters
        ],
        "spendLimit": None
        if limit is None
        else {
            "amount": _plain(limit),
            "percent": standing.limit_percent,
            "state": standing.limit_state,
        },
        "forecast": None if forecast is None else _forecast(forecast),
    }


def _state(standing: Standing, meter: MeterStanding) -> LimitState | None:
    """Return what the limit of a meter does now; None where what goes beyond is billed."""
    blocks = standing.blocks
    return blocks.get(included_scope(meter.meter), LimitState.CLEAR) if meter.is_hard else None


def render_standing(standing: Standing, forecast: Forecast | None, now: datetime) -> str:
    """Return a table of meters with what is included, their cost, the limit, and an estimate."""
    rows = [
        f"{standing.tenant}, period {standing.period}, {_time(now)}",
        "",
        METER_COLUMNS.format("METER", "QUANTITY", "INCLUDED", "%", f"COST ({standing.currency})"),
    ]
    for meter in standing.meters:
        percent = "" if meter.included_percent is None else str(meter.included_percent)
        limit = "limit " if meter.is_hard else ""
        included = "" if not meter.included else f"{limit}{meter.included:,.3f}"
        quantity, cost = f"{meter.quantity:,.6f}", f"{meter.cost:,.6f}"
        rows.append(METER_COLUMNS.format(meter.meter, quantity, included, percent, cost))
    rows.append(METER_COLUMNS.format("fee of the period", "", "", "", f"{standing.fee:,.6f}"))
    if standing.commission:
        commission = f"{standing.commission:,.6f}"
        rows.append(METER_COLUMNS.format("commission so far", "", "", "", commission))
    if standing.one_offs:
        one_offs = f"{standing.one_offs:,.6f}"
        rows.append(METER_COLUMNS.format("one-off charges", "", "", "", one_offs))
    percent = "" if standing.limit_percent is None else str(standing.limit_percent)
    amount = standing.spend_limit
    limit = "" if amount is None else f"limit {amount:,.{standing.digits}f}"
    rows.append(METER_COLUMNS.format("total", "", limit, percent, f"{standing.cost:,.6f}"))
    return "\n".join([*rows, *([] if forecast is None else ["", render_forecast(forecast)])])


def render_cost(standing: Standing) -> str:
    """Return what a period cost until now and of what that is made, in words."""
    parts = {
        "fee": standing.fee,
        "usage": sum((meter.cost for meter in standing.meters), Decimal(0)),
        "commission": standing.commission,
        "one-off charges": standing.one_offs,
    }
    step = f",.{standing.digits}f"
    made_of = ", ".join(f"{name} {amount:{step}}" for name, amount in parts.items() if amount)
    cost = f"Cost of period {standing.period} so far: {standing.cost:{step}} {standing.currency}"
    return f"{cost} ({made_of})." if made_of else f"{cost}."


def render_forecast(forecast: Forecast) -> str:
    """Return an estimate of what the whole period will cost, in words."""
    over = f", {forecast.over_limit:,} over the spend limit" if forecast.over_limit else ""
    spread = f"With 80 % probability it is between {forecast.low:,} and {forecast.high:,}."
    if forecast.low == forecast.high:
        spread = "Nothing so far points to another amount."
    return (
        f"Estimate of the whole period {forecast.period}: {forecast.amount:,} {forecast.currency}"
        f"{over}.\n{spread} Usage beyond what is included: {forecast.projected_overage:,}."
    )


def _forecast(forecast: Forecast) -> dict[str, Any]:
    over = forecast.over_limit
    return {
        "quality": "estimated",
        "amount": f"{forecast.amount:f}",
        "low": f"{forecast.low:f}",
        "high": f"{forecast.high:f}",
        "projectedOverage": f"{forecast.projected_overage:f}",
        "overLimit": None if over is None else _plain(over),
        "asOf": _time(forecast.as_of),
    }


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _row(name: str, bots: Sequence[BotUsage]) -> str:
    seconds = sum(bot.seconds for bot in bots)
    gb_hours = sum((bot.storage_gb_hours for bot in bots), Decimal(0))
    cost = sum((bot.cost for bot in bots), Decimal(0))
    return COLUMNS.format(
        name,
        sum(bot.pods for bot in bots),
        sum(bot.running for bot in bots),
        f"{seconds:,}",
        f"{Decimal(seconds) / 3600:,.6f}",
        f"{gb_hours:,.6f}",
        f"{cost:,.6f}",
    )
