"""Calls through the gateway are billed once, whatever ends, breaks or is away meanwhile."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from botplane.gateway.app import Gateway as App
from botplane.gateway.counts import Counts
from botplane.gateway.http import HTTPRequest
from botplane.gateway.policy import Access, Caller
from botplane.gateway.providers import Providers
from botplane.gateway.run import GatewayProcess
from botplane.metering.events.store import revoke_keys, secret_hash
from botplane.store.migrate import migrate
from botplane.store.pool import Database, Role
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
from tests.events.test_gateway import (
    bot,
    conn,
    gateway,
    shared_gateway,
    shared_vendor,
    vendor,
)
from tests.events.test_outage import mortal
from tests.faults.pgproxy import PostgresProxy
from tests.support.alerts import Alerts
from tests.support.controlplane import postgres as servers
from tests.support.controlplane.waiting import until
from tests.support.cut_connection import CutConnection
from tests.support.rpc_vendor import RPCVendor
from tests.support.until import until as soon

__all__ = ["bot", "conn", "gateway", "mortal", "shared_gateway", "shared_vendor", "vendor"]


async def test_a_call_counts_in_the_month_in_which_it_was_made(vendor: RPCVendor) -> None:
    times = [datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)]
    caller = Caller(tenant_id=uuid4(), bot_id=uuid4())
    access = Access(callers={secret_hash("key"): caller}, stopped={}, read_at=time.monotonic())
    providers, counts = Providers({CHAIN: vendor.url}), Counts(source="gateway/1")
    app = App(providers, counts, lambda: access, lambda: times[-1])
    headers = {b"authorization": b"Bearer key", b"content-type": b"application/json"}
    request = HTTPRequest(method="POST", path=f"/{CHAIN}", headers=headers, body=bytearray(BODY))
    vendor.faults = ["hang"]

    calling = asyncio.create_task(app.answer(request))
    await soon(lambda: len(vendor.dials) == 1)
    times.append(datetime(2026, 12, 1, tzinfo=UTC))
    vendor.pauses.set()
    assert (await calling).status == 200
    providers.close()

    [batch] = counts.take()
    assert [event.occurred_at for event in batch.events] == times[:1]


def test_an_end_loses_no_call_and_a_kill_bills_none_that_was_not_made(
    gateway: Gateway, bot: Bot, conn: psycopg.Connection[Any]
) -> None:
    for _ in range(30):
        assert gateway.call(bot.key).status == 200
    assert gateway.end(signal.SIGTERM) == 0
    assert counted(conn, bot) == 30

    gateway.start()
    known(gateway, bot)
    for _ in range(30):
        assert gateway.call(bot.key).status == 200
    gateway.end(signal.SIGKILL)
    assert 30 <= counted(conn, bot) <= 60

    gateway.start()
    assert gateway.call(known(gateway, bot).key).status == 200
    gateway.end(signal.SIGTERM)
    assert 31 <= counted(conn, bot) <= 61


def test_two_gateways_of_one_database_count_together(
    gateway: Gateway,
    vendor: RPCVendor,
    bot: Bot,
    conn: psycopg.Connection[Any],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    with gateway_process(gateway.database_url, vendor.url, folder) as second:
        known(second, bot)
        for process in [gateway, second] * 20:
            assert process.call(bot.key).status == 200
        assert (gateway.end(), second.end()) == (0, 0)

    assert counted(conn, bot) == 40


@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_lost_answer_to_a_commit_counts_no_call_twice(
    gateway: Gateway, conn: psycopg.Connection[Any], nth: int
) -> None:
    bot, url = a_bot(conn), gateway.database_url
    with CutConnection(url, nth) as cut:
        broken = GatewayProcess(
            Database(cut.url, Role.GATEWAY, max_size=1), partial(datetime.now, UTC)
        )
        whole = GatewayProcess(Database(url, Role.GATEWAY), partial(datetime.now, UTC))
        caller = Caller(tenant_id=bot.tenant_id, bot_id=bot.bot_id)
        for _ in range(7):
            broken.counts.add(caller, datetime.now(UTC))
        is_written = await broken.write()
        whole.counts = broken.counts
        assert await whole.write()

    assert is_written is (nth > 1)
    assert counted(conn, bot) == 7
    assert broken.counts.waiting == 0


async def test_an_end_writes_what_is_left_although_its_connections_break(
    gateway: Gateway, conn: psycopg.Connection[Any]
) -> None:
    bot, wire = a_bot(conn), PostgresProxy(gateway.database_url, of=b"stage")
    ended = GatewayProcess(Database(wire.url, Role.GATEWAY), partial(datetime.now, UTC))
    caller = Caller(tenant_id=bot.tenant_id, bot_id=bot.bot_id)
    wire.cut_commits = 2
    for calls in (7, 3):
        for _ in range(calls):
            ended.counts.add(caller, datetime.now(UTC))
        if calls == 7:
            assert not await ended.write()

    await ended.write_all()
    wire.close()

    assert (wire.cuts, ended.counts.waiting, counted(conn, bot)) == (2, 0, 10)


def test_calls_are_served_while_postgres_is_away_and_counted_when_it_is_back(
    mortal: servers.Postgres, vendor: RPCVendor, tmp_path: Path
) -> None:
    url = mortal.create_database("calls")
    migrate(url)
    with psycopg.connect(url, autocommit=True) as conn:
        bot = a_bot(conn)
    with gateway_process(url, vendor.url, tmp_path) as gateway:
        known(gateway, bot)
        mortal.kill9()
        assert gateway.call(bot.key).status == 200
        failed = "Calls were not written"
        until(lambda: failed in gateway.log.read_text(), what="a write has failed")
        assert gateway.call(bot.key).status == 200
        assert gateway.probe("/livez")[0] == gateway.probe("/readyz")[0] == 200
        told, alerts = [gateway.probe("/metrics")[1]] * 4, Alerts(tmp_path)
        seen = float(told[0].rpartition("access_read_timestamp_seconds ")[2].split()[0])
        assert not alerts.fires("BotplaneGatewayBlind", told, since=seen)
        assert alerts.fires("BotplaneGatewayBlind", told, since=seen + 70)
        mortal.restart()
        made = len(vendor.dials)
        with psycopg.connect(url, autocommit=True) as conn:
            until(lambda: counted(conn, bot) == made, what=f"{made} calls are counted")
            revoke_keys(conn, [(bot.tenant_id, f"{bot.bot_id}-gateway")], datetime.now(UTC))
        until(lambda: gateway.call(bot.key).status == 401, what="the key is refused")


async def test_what_was_read_last_ages_while_postgres_is_away(mortal: servers.Postgres) -> None:
    url = mortal.create_database("keys")
    migrate(url)
    database = Database(url, Role.GATEWAY, max_size=1)
    process = GatewayProcess(database, partial(datetime.now, UTC))
    assert not process.is_ready()
    following = asyncio.create_task(process.follow())
    await soon(process.is_ready)
    with capture_logs() as told:
        mortal.kill9()
        await soon(lambda: len(told) > 0, seconds=40)
        read_last = process.access()
        await soon(lambda: len(told) > 1, seconds=40)
        assert process.access() is read_last
    following.cancel()
    database.close()
