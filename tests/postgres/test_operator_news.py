"""What the operator hears of Postgres after it was away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from botplane.clock import utc_now
from botplane.errors import Retryable
from botplane.postgres import Postgres
from tests.support.billing import waits_for_a_lock
from tests.support.until import until


@pytest.fixture
def operators(migrated: str) -> Iterator[Postgres]:
    """The operator's side of an empty database."""
    postgres = Postgres(migrated, utc_now)
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


def _away(_conn: psycopg.Connection[Any]) -> None:
    raise psycopg.OperationalError("the server closed the connection")
