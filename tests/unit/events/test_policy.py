"""Which events are taken, and what is said of the others."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botplane.errors import Rejected
from botplane.metering.events.policy import (
    REFUSALS,
    Refusal,
    Trade,
    UsageEvent,
    parse_body,
    read_event,
    trade_of,
)

NOW = datetime(2026, 11, 10, 12, tzinfo=UTC)
TENANT = UUID(int=7)
TRADE = {"trade_id": "t-1", "pnl": "-12.50", "volume": "1000", "currency": "USD"}


def a_raw(**more: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": "1",
        "source": "bot/arb",
        "type": "ai_units",
        "time": "2026-11-10T11:59:00Z",
        "data": {"value": "2.5"},
    } | more


def code(raw: Any) -> str | None:
    read = read_event(raw, NOW)
    return read.code if isinstance(read, Refusal) else None


def test_event_is_read_exactly() -> None:
    raw = a_raw(
        time="2026-11-10T12:59:00.123456789+01:00",
        data={"value": "123456789012345678.000000000001", "dims": {"model": "größe", "a": "b"}},
    )

    assert read_event(raw, NOW) == UsageEvent(
        source="bot/arb",
        event_id="1",
        meter="ai_units",
        occurred_at=datetime(2026, 11, 10, 11, 59, 0, 123456, tzinfo=UTC),
        quantity=Decimal("123456789012345678.000000000001"),
        dims='{"a":"b","model":"größe"}',
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([], "NotAnObject"),
        (None, "NotAnObject"),
        (a_raw(id=7), "IdInvalid"),
        (a_raw(id=""), "IdInvalid"),
        (a_raw(id="x" * 129), "IdInvalid"),
        (a_raw(id="a\x00b"), "IdInvalid"),
        (a_raw(id="\ud800"), "IdInvalid"),
        (a_raw(specversion="0.3"), "SpecVersionUnsupported"),
        (a_raw(source=None), "SourceInvalid"),
        (a_raw(type="bot_seconds"), "MeterUnknown"),
        (a_raw(type=["ai_units"]), "MeterUnknown"),
        (a_raw(data=None), "DataInvalid"),
        (a_raw(time=None), "TimeInvalid"),
        (a_raw(time="2026-11-10T11:59:00"), "TimeInvalid"),
        (a_raw(time="2026-11-10"), "TimeInvalid"),
        (a_raw(time="2026-13-10T11:59:00Z"), "TimeInvalid"),
        (a_raw(time="0001-01-01T00:00:00+23:59"), "TimeInvalid"),
        (a_raw(time="2026-09-26T11:59:59Z"), "TooOld"),
        (a_raw(time="2026-11-10T12:05:01Z"), "InFuture"),
        (a_raw(data={}), "ValueInvalid"),
        (a_raw(data={"value": 2.5}), "ValueInvalid"),
        (a_raw(data={"value": True}), "ValueInvalid"),
        (a_raw(data={"value": -1}), "ValueInvalid"),
        (a_raw(data={"value": "-1"}), "ValueInvalid"),
        (a_raw(data={"value": "NaN"}), "ValueInvalid"),
        (a_raw(data={"value": "Infinity"}), "ValueInvalid"),
        (a_raw(data={"value": "1e9"}), "ValueInvalid"),
        (a_raw(data={"value": "٣"}), "ValueInvalid"),
        (a_raw(data={"value": "1_000"}), "ValueInvalid"),
        (a_raw(data={"value": "1\n"}), "ValueInvalid"),
        (a_raw(data={"value": 10**18}), "ValueInvalid"),
        (a_raw(data={"value": "0.0000000000001"}), "ValueInvalid"),
        (a_raw(data={"value": "1", "dims": []}), "DimsInvalid"),
        (a_raw(data={"value": "1", "dims": {"A": "b"}}), "DimsInvalid"),
        (a_raw(data={"value": "1", "dims": {"a": 1}}), "DimsInvalid"),
        (a_raw(data={"value": "1", "dims": {f"a{n}": "b" for n in range(9)}}), "DimsInvalid"),
        (a_raw(type="trades", data={"dims": TRADE | {"pnl": "NaN"}}), "TradeInvalid"),
        (a_raw(type="trades", data={"dims": TRADE | {"volume": "-1"}}), "TradeInvalid"),
        (a_raw(type="trades", data={"dims": TRADE | {"currency": "usd"}}), "TradeInvalid"),
        (a_raw(type="trades", data={}), "TradeInvalid"),
        (a_raw(type="trades", data={"value": "2", "dims": TRADE}), "ValueInvalid"),
    ],
)
def test_what_is_wrong_with_an_event_is_told(raw: Any, expected: str) -> None:
    assert code(raw) == expected
    assert expected in REFUSALS


@pytest.mark.parametrize(
    "raw",
    [
        a_raw(time="2026-09-26T12:00:00Z"),
        a_raw(time="2026-11-10T12:05:00Z"),
        a_raw(data={"value": 0}),
        a_raw(data={"value": 10**18 - 1}),
        a_raw(data={"value": "1", "dims": {}}),
        a_raw(id="x" * 128),
        a_raw(type="trades", data={"dims": TRADE}),
        a_raw(subject="tenant-b", tenantid="b"),
    ],
)
def test_edges_are_taken(raw: Any) -> None:
    assert code(raw) is None


def test_trade_is_read_from_its_dims() -> None:
    read = read_event(a_raw(type="trades", data={"dims": TRADE}), NOW)
    assert isinstance(read, UsageEvent)

    assert trade_of(read, TENANT, None) == Trade(
        tenant_id=TENANT,
        bot_id=None,
        trade_id="t-1",
        closed_at=datetime(2026, 11, 10, 11, 59, tzinfo=UTC),
        pnl=Decimal("-12.50"),
        volume=Decimal(1000),
        currency="USD",
    )


def test_hash_is_equal_for_the_same_statement_in_another_form() -> None:
    one = read_event(a_raw(data={"value": "2.50", "dims": {"a": "1", "b": "2"}}), NOW)
    same = read_event(
        a_raw(
            time="2026-11-10T12:59:00+01:00", data={"value": "2.5", "dims": {"b": "2", "a": "1"}}
        ),
        NOW,
    )

    assert isinstance(one, UsageEvent)
    assert isinstance(same, UsageEvent)
    assert one.body_hash(None) == same.body_hash(None)
    assert one.body_hash(None) != one.body_hash(uuid4())


@pytest.mark.parametrize(
    "change",
    [
        {"type": "rpc_calls"},
        {"time": "2026-11-10T11:59:00.000001Z"},
        {"data": {"value": "2.500000000001"}},
        {"data": {"value": "2.5", "dims": {"a": "1"}}},
    ],
)
def test_hash_differs_for_another_statement(change: dict[str, Any]) -> None:
    one, other = read_event(a_raw(), NOW), read_event(a_raw(**change), NOW)

    assert isinstance(one, UsageEvent)
    assert isinstance(other, UsageEvent)
    assert one.body_hash(None) != other.body_hash(None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[NaN]",
        b"[Infinity]",
        b'{"id": 1}',
        b"[" * 100_000,
        b'["\xff"]',
        b'["\\ud800"]',
        b"[" + b"1," * 1000 + b"1]",
        b"null",
    ],
)
def test_body_that_is_no_batch_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        parse_body(body, is_batch=True)

    assert refused.value.reason in {"BodyInvalid", "BatchTooLarge"}


def test_body_of_huge_numbers_is_read_in_no_time() -> None:
    body = b'[{"id": "1", "data": {"value": ' + b"9" * 1_000_000 + b"}}]"

    try:
        parsed = parse_body(body, is_batch=True)
    except Rejected:
        return
    assert code(parsed[0]) is not None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["id", "source", "type", "time", "data", "specversion"]),
)
def test_any_value_in_any_field_is_read_or_refused(value: Any, name: str) -> None:
    read = read_event(a_raw(**{name: value}), NOW)

    if isinstance(read, UsageEvent):
        read.body_hash(None)
        json.loads(read.dims)
