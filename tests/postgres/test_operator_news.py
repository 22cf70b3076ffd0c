"""What the operator hears of Postgres after it was away."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from botplane.bot_keys import BotKeys
from botplane.clock import utc_now
from botplane.errors import Retryable
from botplane.metering.events.store import keys_of_bots
from botplane.postgres import Postgres
from tests.support.billing import a_plan, an_account, waits_for_a_lock
from tests.support.controlplane.postgres import Postgres as Server
from tests.support.declared import MASTER_KEY
from tests.support.operator_calls import operator_calls
from tests.support.until import until


@pytest.fixture
def operators(migrated: str) -> Iterator[Postgres]:
    """The operator's side of an empty database."""
    postgres = operator_calls(migrated)
    yield postgres
    postgres.close()


async def test_the_return_of_postgres_is_told_though_the_first_round_after_it_fails(
    operators: Postgres, conn: psycopg.Connection[Any], migrated: str
) -> None:
    with pytest.raises(Retryable):
        await operators.call(_away)
    with psycopg.connect(migrated) as other:
        other.execute("LOCK TABLE tenant IN ACCESS EXCLUSIVE MODE")
        failing = asyncio.create_task(operators.follow())
        await until(lambda: waits_for_a_lock(conn), seconds=20)
        conn.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        assert await failing is None

    news = await operators.follow()

    assert news is not None
    assert news.is_back


async def test_a_standby_that_took_over_without_the_last_news_is_told_them_again(
    postgres: Server, template: str
) -> None:
    name, account, bot = f"test_{uuid.uuid4().hex[:12]}", an_account(), uuid.uuid4()
    url = postgres.create_database(name, template=template)
    operators = operator_calls(url)
    keys = BotKeys(operators, MASTER_KEY, utc_now)

    async def tell() -> None:
        await operators.publish(a_plan())
        await operators.accounts().register(account)
        await keys.settle({bot: account.tenant_id})

    await tell()
    with psycopg.connect(url) as conn:
        leader = conn.execute("SELECT epoch, holder, since FROM leadership").fetchone()
    postgres.drop_database(name)
    postgres.create_database(name, template=template)
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO leadership (epoch, holder, since) VALUES (%s, %s, %s)", leader)
    with pytest.raises(Retryable):
        await operators.call(_away)
    assert await operators.follow() is not None

    await tell()

    with psycopg.connect(url, autocommit=True) as conn:
        assert conn.execute("SELECT name FROM tenant").fetchall() == [("acme",)]
        assert {(key.bot_id, key.scopes) for key in keys_of_bots(conn)} == {
            (bot, ("usage:write",)),
            (bot, ("rpc:call",)),
        }
    operators.close()
    postgres.drop_database(name)


def _away(_conn: psycopg.Connection[Any]) -> None:
    raise psycopg.OperationalError("the server closed the connection")
