"""Trades in Postgres: the base of the commission."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from psycopg.types.json import Jsonb

from botplane.billing.adjustments.store import granting, record
from botplane.billing.money import decimal, plain
from botplane.errors import Rejected
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID

    from psycopg import Connection

    from botplane.billing.adjustments.store import Order

SQL = load_queries(__package__)


class Recorded(StrEnum):
    """What became of a trade that was given."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    """The id is known with other content; what is stored stays."""


@dataclass(frozen=True, kw_only=True)
class Trade:
    """One closed trade.

    Attributes:
        trade_id: Unique for the tenant; a second trade of the same id is not counted.
        closed_at: Decides the billing period.
        pnl: Profit, or loss below zero, in the major unit of `currency`.
        volume: Traded volume, not below zero, in the same unit.
        currency: ISO 4217; None is the tenant's.
        fx_rate: What one unit of `currency` is in the tenant's. A trade in another currency
            without a rate is held back until the same trade is given with one.
        fx_source: Who says so.
        fx_at: When it was so.
    """

    tenant_id: UUID
    trade_id: str
    bot_id: UUID | None
    closed_at: datetime
    pnl: Decimal
    volume: Decimal
    currency: str | None = None
    fx_rate: Decimal | None = None
    fx_source: str | None = None
    fx_at: datetime | None = None


def record_trades(conn: Connection[Any], trades: Sequence[Trade], now: datetime) -> list[Recorded]:
    """Store trades in any order and as often as they come; return what became of each.

    It may run inside the caller's transaction. Numbers of more than 18 decimals are rounded.

    Raises:
        Retryable: Postgres is away.
    """
    if not trades:
        return []
    given = {"trades": _records(trades), "now": now}
    with translated_errors(), conn.transaction():
        written = {tuple(row) for row in conn.execute(SQL["insert_trades"], given)}
        compared = conn.execute(SQL["compare_trades"], given).fetchall()
    outcomes = []
    for tenant_id, trade_id, same in compared:
        if not same:
            outcomes.append(Recorded.CONFLICT)
        elif (tenant_id, trade_id) in written:
            written.remove((tenant_id, trade_id))
            outcomes.append(Recorded.ACCEPTED)
        else:
            outcomes.append(Recorded.DUPLICATE)
    return outcomes


@dataclass(frozen=True, kw_only=True)
class RateTerms:
    """A rate of exchange as finance people write it.

    Attributes:
        currency: Of the trades, ISO 4217.
        rate: What one unit of it is in the currency of the tenant.
        source: Who says so, such as `ECB`.
        day: Midnight UTC of the day whose trades it is for.
    """

    currency: str
    rate: str
    source: str
    day: datetime


def set_exchange_rate(conn: Connection[Any], order: Order, terms: RateTerms) -> int:
    """Give a day's trades in a currency the rate that they wait for; return how many had waited.

    Trades that have a rate keep it. Where their period is billed, the next invoice has them.

    Raises:
        Rejected: There is no such tenant, or the terms are not possible.
        Retryable: Postgres is away.
    """
    rate = decimal(terms.rate, 18)
    if rate <= 0 or not terms.source.strip():
        raise Rejected(
            "TermsInvalid",
            f"A rate is more than 0 and has a source, not {terms.rate} of {terms.source!r}.",
        )
    with granting(conn, order, f"Rate {terms.rate} of {terms.currency}") as (tenant_id, _):
        row = vars(terms) | {"tenant_id": tenant_id, "rate": rate}
        waited = conn.execute(SQL["set_rate"], row).rowcount
        if waited:
            said = {"rate": terms.rate, "source": terms.source, "day": f"{terms.day:%Y-%m-%d}"}
            entry = ("trade.rate", terms.currency, {**said, "trades": waited})
            record(conn, order, tenant_id, entry)
    return waited


def held_trades(conn: Connection[Any]) -> int:
    """Count the trades that wait for a rate of exchange."""
    with translated_errors(), conn.transaction():
        row = conn.execute(SQL["held_trades"]).fetchone()
    return 0 if row is None else int(row[0])


def _records(trades: Sequence[Trade]) -> Jsonb:
    rows = [
        {
            "position": position,
            "tenant_id": str(trade.tenant_id),
            "trade_id": trade.trade_id,
            "bot_id": trade.bot_id and str(trade.bot_id),
            "closed_at": trade.closed_at.isoformat(),
            "pnl": plain(trade.pnl),
            "volume": plain(trade.volume),
            "currency": trade.currency,
            "fx_rate": None if trade.fx_rate is None else plain(trade.fx_rate),
            "fx_source": trade.fx_source,
            "fx_at": trade.fx_at and trade.fx_at.isoformat(),
        }
        for position, trade in enumerate(trades)
    ]
    return Jsonb(rows, dumps=json.dumps)
