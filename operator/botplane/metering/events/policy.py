"""What a usage event must be, and what became of one. Pure: it knows neither HTTP nor Postgres.

Events are CloudEvents 1.0 in JSON. Who they belong to is never read from them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, TypeGuard
from uuid import UUID

from pydantic_core import from_json

from botplane.errors import Rejected

MOST_EVENTS: Final = 1000
MOST_BYTES: Final = 1 << 20
OLDEST: Final = timedelta(days=45)
NEWEST: Final = timedelta(minutes=5)
MOST_DIMS: Final = 8
TOO_OLD: Final = "TooOld"
CORRECTION: Final = "botplane/correction"
"""The source of what people correct; nobody can report as it."""

TRADES: Final = "trades"
METERS: Final = frozenset(
    {"rpc_calls", "storage_gb_hours", "bandwidth_gb", "ai_units", "premium_features", TRADES}
)
"""The meters of the table `meter` that events report; the others are measured."""

REFUSALS: Final = {
    "NotAnObject": "An event is a JSON object.",
    "IdInvalid": "`id` is a text of 1 to 128 characters, none of them a control character.",
    "SpecVersionUnsupported": '`specversion` is "1.0".',
    "SourceInvalid": f"`source` is a text as `id` is, and not {CORRECTION}.",
    "MeterUnknown": f"`type` is one of {', '.join(sorted(METERS))}.",
    "DataInvalid": "`data` is a JSON object.",
    "TimeInvalid": "`time` is a moment with its zone, such as 2026-11-26T14:00:00Z.",
    TOO_OLD: f"`time` is more than {OLDEST.days} days ago.",
    "InFuture": f"`time` is more than {NEWEST.seconds // 60} minutes ahead.",
    "DimsInvalid": f"`data.dims` holds {MOST_DIMS} texts at most, named like `venue` or `pair_2`.",
    "ValueInvalid": '`data.value` is 3 or "2.5": 18 digits and 12 decimals at most; of a trade, 1.',
    "TradeInvalid": "`data.dims` of a trade holds trade_id, pnl, volume and currency as texts.",
}
"""What is right where an event was wrong, by the code of its refusal."""

_TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]{1,128}")
_DIM = re.compile(r"[a-z][a-z0-9_]{0,30}")
_AMOUNT = re.compile(r"(0|[1-9][0-9]{0,17})(\.[0-9]{1,12})?")
_SIGNED = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,12})?")
_CURRENCY = re.compile(r"[A-Z]{3}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class Verdict(StrEnum):
    """What became of one event."""

    ACCEPTED = "accepted"
    """It is on disk and will be billed."""
    DUPLICATE = "duplicate"
    """The same event was accepted before; nothing changed."""
    CONFLICT = "conflict"
    """Another event with this source and id was accepted before; this one is not counted."""
    REJECTED = "rejected"
    """It will never be accepted: `code` says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageEvent:
    """One valid event.

    Attributes:
        source: Who reports; with `event_id` the identity within the tenant.
        event_id: Unique within the source.
        meter: What was used.
        occurred_at: When, UTC.
        quantity: How much, in the unit of the meter.
        dims: What else is known, as canonical JSON of texts.
    """

    source: str
    event_id: str
    meter: str
    occurred_at: datetime
    quantity: Decimal
    dims: str

    def body_hash(self, bot_id: UUID | None) -> bytes:
        """Return a hash of what the event says: equal for a repetition, whatever its format."""
        parts = (
            self.meter,
            self.occurred_at.isoformat(),
            f"{self.quantity.normalize():f}",
            self.dims,
            "" if bot_id is None else str(bot_id),
        )
        return hashlib.sha256("\x1f".join(parts).encode()).digest()


@dataclass(frozen=True, kw_only=True)
class CorrectionTerms:
    """A correction of usage as people write it.

    Attributes:
        reference: Makes a repeated correction one.
        meter: What was counted wrongly.
        quantity: How much more was used, in the unit of the meter; less, with a minus sign.
        at: When, UTC.
        reason: Why it was wrong.
    """

    reference: str
    meter: str
    quantity: str
    at: datetime
    reason: str


@dataclass(frozen=True, kw_only=True)
class Trade:
    """One closed trade, as an event of meter `trades` tells it."""

    tenant_id: UUID
    bot_id: UUID | None
    trade_id: str
    closed_at: datetime
    pnl: Decimal
    volume: Decimal
    currency: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """An event that is refused, with its id where it has a legible one."""

    event_id: str | None
    code: str


def parse_body(body: bytes, *, is_batch: bool) -> list[Any]:
    """Return the events of a request as they stand in it.

    Raises:
        Rejected: The body as a whole is not JSON, not of its content type, or too much.
    """
    try:
        parsed = from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise Rejected("BodyInvalid", f"The body is not JSON: {str(error)[:200]}") from None
    if not is_batch:
        return [parsed]
    if not isinstance(parsed, list):
        raise Rejected("BodyInvalid", "A batch is a JSON array of events.")
    if len(parsed) > MOST_EVENTS:
        raise Rejected(
            "BatchTooLarge", f"The batch has {len(parsed)} events; send {MOST_EVENTS} at most."
        )
    return parsed


def read_event(raw: Any, now: datetime) -> UsageEvent | Refusal:
    """Return the event that a JSON value says, or why it says none."""
    if not isinstance(raw, dict):
        return Refusal(event_id=None, code="NotAnObject")
    event_id = raw.get("id")
    if not _is_text(event_id):
        return Refusal(event_id=None, code="IdInvalid")
    read = _Reader(raw, now)
    if read.code is not None:
        return Refusal(event_id=event_id, code=read.code)
    return UsageEvent(
        source=raw["source"],
        event_id=event_id,
        meter=raw["type"],
        occurred_at=read.occurred_at,
        quantity=read.quantity,
        dims=read.dims,
    )


def read_correction(terms: CorrectionTerms, now: datetime) -> UsageEvent:
    """Return the event that corrects usage as its terms say; its quantity may be below zero.

    Raises:
        Rejected: The terms are not possible.
    """
    if terms.meter not in METERS - {TRADES}:
        known = ", ".join(sorted(METERS - {TRADES}))
        raise Rejected(
            "MeterUnknown", f"Usage of {terms.meter} is not reported by events; {known} is."
        )
    if not _SIGNED.fullmatch(terms.quantity) or not Decimal(terms.quantity):
        text = "is not a number such as -1000 or 2.5, other than 0, with 12 decimals at most"
        raise Rejected("TermsInvalid", f"The quantity {terms.quantity!r} {text}.")
    for name, text in (("reference", terms.reference), ("reason", terms.reason)):
        if not _is_text(text):
            raise Rejected("TermsInvalid", f"The {name} {text!r} is not 1 to 128 letters.")
    if terms.at > now:
        raise Rejected("TermsInvalid", f"{terms.at:%Y-%m-%dT%H:%M:%SZ} has not been yet.")
    return UsageEvent(
        source=CORRECTION,
        event_id=terms.reference,
        meter=terms.meter,
        occurred_at=terms.at,
        quantity=Decimal(terms.quantity),
        dims=json.dumps({"reason": terms.reason}, ensure_ascii=False),
    )


def trade_of(event: UsageEvent, tenant_id: UUID, bot_id: UUID | None) -> Trade:
    """Return the trade that an event of meter `trades` reports."""
    dims: dict[str, str] = json.loads(event.dims)
    return Trade(
        tenant_id=tenant_id,
        bot_id=bot_id,
        trade_id=dims["trade_id"],
        closed_at=event.occurred_at,
        pnl=Decimal(dims["pnl"]),
        volume=Decimal(dims["volume"]),
        currency=dims["currency"],
    )


class _Reader:
    """The fields of one event, read in order until one is wrong; `code` says which."""

    __slots__ = ("code", "dims", "occurred_at", "quantity")

    def __init__(self, raw: Mapping[str, Any], now: datetime) -> None:
        self.occurred_at = now
        self.quantity = Decimal(0)
        self.dims = "{}"
        data = raw.get("data")
        if raw.get("specversion") != "1.0":
            self.code: str | None = "SpecVersionUnsupported"
        elif not _is_text(raw.get("source")) or raw["source"] == CORRECTION:
            self.code = "SourceInvalid"
        elif not isinstance(meter := raw.get("type"), str) or meter not in METERS:
            self.code = "MeterUnknown"
        elif not isinstance(data, dict):
            self.code = "DataInvalid"
        else:
            self.code = (
                self._read_time(raw.get("time"), now)
                or self._read_dims(data.get("dims"), meter)
                or self._read_value(data.get("value", "1" if meter == TRADES else None), meter)
            )

    def _read_time(self, text: Any, now: datetime) -> str | None:
        if not isinstance(text, str) or not _TIME.fullmatch(text):
            return "TimeInvalid"
        try:
            self.occurred_at = datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            return "TimeInvalid"
        if self.occurred_at < now - OLDEST:
            return TOO_OLD
        return "InFuture" if self.occurred_at > now + NEWEST else None

    def _read_value(self, value: Any, meter: str) -> str | None:
        text = str(value) if type(value) is int and 0 <= value < 10**18 else value
        if not isinstance(text, str) or not _AMOUNT.fullmatch(text):
            return "ValueInvalid"
        self.quantity = Decimal(text)
        return "ValueInvalid" if meter == TRADES and self.quantity != 1 else None

    def _read_dims(self, dims: Any, meter: str) -> str | None:
        if dims is not None and dims != {}:
            if not isinstance(dims, dict) or len(dims) > MOST_DIMS:
                return "DimsInvalid"
            if not all(_DIM.fullmatch(key) and _is_text(value) for key, value in dims.items()):
                return "DimsInvalid"
            self.dims = json.dumps(dims, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        if meter != TRADES:
            return None
        return None if _is_trade(dims or {}) else "TradeInvalid"


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and _TEXT.fullmatch(value) is not None


def _is_trade(dims: Mapping[str, str]) -> bool:
    return (
        "trade_id" in dims
        and _SIGNED.fullmatch(dims.get("pnl", "")) is not None
        and _AMOUNT.fullmatch(dims.get("volume", "")) is not None
        and _CURRENCY.fullmatch(dims.get("currency", "")) is not None
    )
