"""Bots call RPC through the gateway: answered, counted once, and refused at a hard limit."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from botplane.billing.store import publish_plan
from botplane.metering.events.store import revoke_keys
from botplane.tenants.store import register_tenant
from botplane.usage.standing import SPEND
from botplane.usage.status import limit_verdict
from botplane.usage.store import enforce_limits, open_blocks, standings
from tests.events.gateway import (
    BODY,
    CHAIN,
    Bot,
    Gateway,
    a_bot,
    counted,
    gateway_process,
    known,
)
from tests.support.billing import a_plan, an_account
from tests.support.controlplane import postgres as servers
from tests.support.controlplane.waiting import until
from tests.support.rpc_vendor import RESULT, SECRET, RPCVendor, rpc_vendor

CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "1"}]}
STRICT = CALLS | {"included": "5", "onExceed": "Block"}


@pytest.fixture(scope="module")
def shared_vendor() -> Iterator[RPCVendor]:
    with rpc_vendor() as made:
        yield made


@pytest.fixture(scope="module")
def shared_gateway(
    postgres: servers.Postgres,
    template: str,
    shared_vendor: RPCVendor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """A gateway with a database of its own; each test has its own tenants."""
    name = f"test_{uuid4().hex[:12]}"
    url = postgres.create_database(name, template=template)
    with gateway_process(url, shared_vendor.url, tmp_path_factory.mktemp("gateway")) as started:
        yield started
    postgres.drop_database(name)


@pytest.fixture
def gateway(shared_gateway: Gateway) -> Gateway:
    """The gateway; it serves."""
    if shared_gateway.process is None:
        shared_gateway.start()
    return shared_gateway


@pytest.fixture
def vendor(shared_vendor: RPCVendor) -> RPCVendor:
    """The vendor, without faults and memories."""
    shared_vendor.faults, shared_vendor.dials = [], []
    shared_vendor.pauses.clear()
    return shared_vendor


@pytest.fixture
def conn(gateway: Gateway) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the gateway's database."""
    with psycopg.connect(gateway.database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def bot(gateway: Gateway, conn: psycopg.Connection[Any]) -> Bot:
    return known(gateway, a_bot(conn))


def test_an_answer_comes_back_as_it_is_and_the_vendor_learns_nothing_of_the_bot(
    gateway: Gateway, vendor: RPCVendor, bot: Bot
) -> None:
    reply = gateway.call(
        bot.key,
        Cookie="a=b",
        X_Forwarded_For="10.0.0.1",
        Accept_Encoding="gzip",
        User_Agent="bot/1",
    )

    assert reply.status == 200
    assert reply.content == b'{"jsonrpc":"2.0","id":"a","result":%s}' % RESULT
    assert set(reply.headers) == {"content-type", "content-length"}
    (dial,) = vendor.dials
    assert json.loads(dial.body) == {
        "jsonrpc": "2.0",
        "id": json.loads(dial.body)["id"],
        "method": "getSlot",
        "params": [1],
    }
    sent = str(dial.headers) + dial.body.decode()
    assert not [word for word in (bot.key, "a=b", "10.0.0.1", "gzip", "bot/1") if word in sent]


# What the bot gets, whether the call is billed, and words of the refusal.
FAULTS: dict[str, tuple[int, bool, str]] = {
    "null": (200, True, ""),
    "reverted": (200, True, ""),
    "reverted with 400": (200, True, ""),
    "leaks its key": (200, True, ""),
    "leaks its key in escapes": (200, True, "names itself"),
    "a result with its key": (200, True, "names itself"),
    "a result with its key in escapes": (200, True, "names itself"),
    "an error that is text": (502, False, "is not JSON-RPC"),
    "a result beside no error": (200, True, '"id":"a","result":1}'),
    "an error beside no result": (200, True, '"id":"a","error":{"code":3,'),
    "not UTF-8 within": (502, False, "is not JSON-RPC"),
    "leaks its host": (200, True, ""),
    "500": (502, False, "answered with HTTP 500"),
    "429": (502, False, "answered with HTTP 429"),
    "401": (502, False, "answered with HTTP 401"),
    "redirect": (502, False, "answered with HTTP 302"),
    "html": (502, False, "is not JSON-RPC"),
    "empty": (502, False, "is not JSON-RPC"),
    "cut JSON": (502, False, "is not JSON-RPC"),
    "not UTF-8": (502, False, "is not JSON-RPC"),
    "another's answer": (502, False, "belongs to no call"),
    "no id": (502, False, "belongs to no call"),
    "result and error": (502, False, "belongs to no call"),
    "neither": (502, False, "belongs to no call"),
    "a list": (502, False, "is not JSON-RPC"),
    "deep": (502, False, "is not JSON-RPC"),
    "17 MB": (502, False, "answered more than 16,777,216 bytes"),
    "chunked": (200, True, ""),
    "cut short": (502, False, "broke off"),
    "shorter than sent": (502, False, ""),
    "both framings": (502, False, ""),
    "two lengths": (502, False, ""),
    "no HTTP": (502, False, "did not answer in HTTP"),
    "early hints": (502, False, "answered what nobody asked for"),
}


def test_whatever_a_vendor_does_bots_get_an_answer_and_no_secret(
    gateway: Gateway, vendor: RPCVendor, bot: Bot, conn: psycopg.Connection[Any]
) -> None:
    for fault, (status, _, words) in FAULTS.items():
        vendor.faults = [fault]
        reply = gateway.call(bot.key)
        assert (fault, reply.status) == (fault, status)
        assert words in reply.content.decode(), fault
        assert reply.body["id"] == "a", fault
        shown = f"{reply.headers}{reply.content!r}"
        assert SECRET not in shown, fault
        assert vendor.host not in shown, fault
        assert gateway.call(bot.key).content.endswith(RESULT + b"}"), f"after {fault}"

    assert len(vendor.dials) == 2 * len(FAULTS)
    billed = len(FAULTS) + sum(is_billed for _, is_billed, _ in FAULTS.values())
    until(lambda: counted(conn, bot) == billed, what=f"{billed} calls are counted")
    told = gateway.log.read_text() + gateway.probe("/metrics")[1]
    assert SECRET not in told
    assert vendor.host not in told


def test_a_call_that_may_have_acted_is_not_said_to_have_failed(
    gateway: Gateway, vendor: RPCVendor, bot: Bot
) -> None:
    sending = BODY.replace(b"getSlot", b"sendTransaction")
    vendor.faults = ["ok", "reset", "ok", "500", "ok", "html", "ok", "another's answer"]
    unread = "gave an answer that cannot be read"
    for told in ("broke off", "answered with HTTP 500", unread, unread):
        assert gateway.call(bot.key).status == 200

        reply = gateway.call(bot.key, sending)

        assert (reply.status, reply.reason) == (504, "OutcomeUnknown")
        assert f"{told}. sendTransaction may have had its effect: look first." in str(reply.body)
    assert vendor.methods == ["getSlot", "sendTransaction"] * 4


def test_a_read_is_asked_again_where_the_vendor_had_closed_the_connection(
    gateway: Gateway, vendor: RPCVendor, bot: Bot
) -> None:
    vendor.faults = ["ok", "reset", "ok", "reset", "reset"]

    told = [gateway.call(bot.key).status for _ in range(3)]

    assert told == [200, 200, 502]
    assert len(vendor.dials) == 5


NO_CALLS: list[tuple[dict[str, Any], int]] = [
    ({"key": "unknown"}, 401),
    ({"Authorization": "Basic abc"}, 401),
    ({"Authorization": "Bearer " + "x" * 300}, 401),
    ({"method": "GET"}, 405),
    ({"path": "/metrics"}, 404),
    ({"path": f"/{CHAIN}/../metrics"}, 404),
    ({"path": "http://169.254.169.254/"}, 404),
    ({"Content_Type": "text/plain"}, 415),
    ({"body": b"[]"}, 400),
    ({"body": b"[" + b" " * (256 << 10) + b"]"}, 413),
]


def test_what_is_no_call_is_refused_and_reaches_no_vendor(
    gateway: Gateway, vendor: RPCVendor, bot: Bot
) -> None:
    for change, status in NO_CALLS:
        reply = gateway.call(**{"key": bot.key} | change)

        assert (change, reply.status) == (change, status)
        assert reply.reason, change
        assert reply.body["error"]["message"], change
    assert vendor.dials == []


def test_each_call_of_a_batch_has_its_answer_in_order(
    gateway: Gateway, vendor: RPCVendor, bot: Bot, conn: psycopg.Connection[Any]
) -> None:
    calls = [{"jsonrpc": "2.0", "id": n % 7, "method": f"m{n}"} for n in range(50)]
    vendor.faults = ["500"]

    reply = gateway.call(bot.key, json.dumps(calls).encode())

    assert reply.status == 200
    assert [answer["id"] for answer in reply.body] == [n % 7 for n in range(50)]
    assert sorted(vendor.methods) == sorted(f"m{n}" for n in range(50))
    assert sum("error" in answer for answer in reply.body) == 1
    until(lambda: counted(conn, bot) == 49, what="49 calls are counted")


def test_answers_never_change_places_whatever_clients_and_vendor_break_off(
    gateway: Gateway, vendor: RPCVendor, bot: Bot
) -> None:
    vendor.faults = ["ok", "reset", "another's answer", "500", "null"] * 30

    def ask(number: int) -> None:
        if number % 5 == 0:
            _break_off(gateway, bot.key)
        body = BODY.replace(b'"a"', b'"n-%d"' % number)
        reply = gateway.call(bot.key, body)
        assert (reply.status in {200, 502}, reply.body["id"]) == (True, f"n-{number}")

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(125)))


def _break_off(gateway: Gateway, key: str) -> None:
    """Send a call and be gone before its answer."""
    head = f"POST /{CHAIN} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as wire:
        wire.sendall(head.encode() + BODY)


def test_a_call_whose_bot_is_gone_before_the_answer_is_counted(
    gateway: Gateway, vendor: RPCVendor, bot: Bot, conn: psycopg.Connection[Any]
) -> None:
    vendor.faults = ["hang"]
    _break_off(gateway, bot.key)
    until(lambda: vendor.dials, what="the call is made")
    vendor.pauses.set()

    until(lambda: counted(conn, bot) == 1, what="the call is counted")


def test_one_tenant_cannot_take_the_place_of_all(
    gateway: Gateway, vendor: RPCVendor, bot: Bot, conn: psycopg.Connection[Any]
) -> None:
    other = known(gateway, a_bot(conn))
    vendor.faults = ["hang"] * 22
    batch = b"[" + b",".join([BODY] * 50) + b"]"
    with ThreadPoolExecutor(15) as threads:
        waiting = [threads.submit(gateway.call, bot.key) for _ in range(14)]
        until(lambda: len(vendor.dials) == 14, what="14 calls wait")
        waiting.append(threads.submit(gateway.call, bot.key, batch))
        until(lambda: len(vendor.dials) == 22, what="8 of a batch of 50 wait too")
        more = gateway.call(bot.key)
        fine = gateway.call(other.key)
        vendor.pauses.set()

    assert (more.status, more.reason) == (429, "TooManyCalls")
    assert more.headers["retry-after"] == "2"
    assert fine.status == 200
    assert {call.result().status for call in waiting} == {200}
    assert gateway.call(bot.key).status == 200


@pytest.mark.parametrize("limit", ["spend", "included"])
def test_a_hard_limit_refuses_calls_in_the_words_of_the_condition_until_there_is_room(
    gateway: Gateway, conn: psycopg.Connection[Any], vendor: RPCVendor, limit: str
) -> None:
    now = datetime.now(UTC)
    prices = [STRICT] if limit == "included" else [CALLS]
    publish_plan(conn, a_plan(limit, prices=prices), now.replace(year=now.year - 1))
    amount = None if limit == "included" else Decimal(5)
    account = an_account(limit, plan=limit, spend_limit=amount)
    register_tenant(conn, account, now.replace(year=now.year - 1))
    bot, other = (known(gateway, a_bot(conn, of)) for of in (account.tenant_id, None))
    assert [gateway.call(bot.key).status for _ in range(5)] == [200] * 5
    until(lambda: counted(conn, bot) == 5, what="5 calls are counted")

    stands = standings(conn, datetime.now(UTC))[0]
    enforce_limits(conn, stands.values(), datetime.now(UTC))
    until(lambda: gateway.call(bot.key).status == 402, what="calls are refused")

    reply, dials = gateway.call(bot.key), len(vendor.dials)
    blocks = open_blocks(conn, datetime.now(UTC))[account.tenant_id]
    condition = limit_verdict(stands[account.tenant_id], blocks)
    assert (SPEND in blocks) == (limit == "spend")
    assert reply.body["error"]["message"] == condition.message
    assert (reply.reason, reply.body["id"]) == (condition.reason, "a")
    batch = gateway.call(bot.key, b"[" + BODY + b"," + BODY + b"]")
    assert batch.status == 402
    assert [answer["error"]["code"] for answer in batch.body] == [-32010, -32010]
    assert gateway.call(other.key).status == 200
    assert len(vendor.dials) == dials + 1

    if limit == "spend":
        register_tenant(conn, replace(account, spend_limit=Decimal(99)), datetime.now(UTC))
    else:
        roomy = a_plan(limit, prices=[STRICT | {"included": "99"}])
        publish_plan(conn, roomy, datetime.now(UTC))
    enforce_limits(conn, standings(conn, datetime.now(UTC))[0].values(), datetime.now(UTC))
    until(lambda: gateway.call(bot.key).status == 200, what="there is room")


def test_a_revoked_key_opens_nothing_any_more(
    gateway: Gateway, bot: Bot, conn: psycopg.Connection[Any]
) -> None:
    assert gateway.call(bot.key).status == 200
    revoke_keys(conn, [(bot.tenant_id, f"{bot.bot_id}-gateway")], datetime.now(UTC))

    until(lambda: gateway.call(bot.key).status == 401, what="the key is refused")


def test_a_key_for_reports_opens_no_rpc(gateway: Gateway, conn: psycopg.Connection[Any]) -> None:
    reporting = a_bot(conn, scope="usage:write")
    known(gateway, a_bot(conn))

    assert gateway.call(reporting.key).status == 401
