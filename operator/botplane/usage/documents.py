"""Usage for people (table) and for programs (JSON). Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botplane.usage.store import BotUsage

COLUMNS = "{:<24} {:>6} {:>8} {:>14} {:>16} {:>16}"


def render_table(bots: Sequence[BotUsage]) -> str:
    """Return a table with the exact seconds, their hours, and a row of sums."""
    rows = [COLUMNS.format("BOT", "PODS", "RUNNING", "SECONDS", "HOURS", "COST")]
    total = sum((bot.cost for bot in bots), Decimal(0))
    rows += [_row(b.bot or "(no bot)", b.pods, b.running, b.seconds, b.cost) for b in bots]
    rows.append(
        _row(
            "total",
            sum(b.pods for b in bots),
            sum(b.running for b in bots),
            sum(b.seconds for b in bots),
            total,
        )
    )
    return "\n".join(rows)


def render_json(bots: Sequence[BotUsage]) -> str:
    """Return a list of objects; costs are strings and not rounded."""
    entries = [
        {
            "bot": bot.bot,
            "pods": bot.pods,
            "running": bot.running,
            "seconds": bot.seconds,
            "cost": f"{bot.cost:f}",
        }
        for bot in bots
    ]
    return json.dumps(entries, indent=2)


def _row(name: str, pods: int, running: int, seconds: int, cost: Decimal) -> str:
    hours = Decimal(seconds) / 3600
    return COLUMNS.format(name, pods, running, f"{seconds:,}", f"{hours:,.6f}", f"{cost:,.6f}")
