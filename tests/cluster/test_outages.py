"""Postgres down, operator killed, leader stopped: work goes on where it can, and resumes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from botplane.store.migrate import migrate
from tests.support.controlplane.postgres import Postgres
from tests.support.operator_calls import operator_calls
from tests.support.world import World, a_bot, a_name, a_tenant, bot_key, tenant_key


@pytest.fixture
def own_postgres(world: World, postgres: Postgres) -> Iterator[Postgres]:
    """The server, to be killed; afterwards others find an operator that has it back."""
    if postgres.state is None:
        pytest.skip("the server of DATABASE_URL is not ours to kill")
    yield postgres
    tenant = a_name()
    world.create(a_tenant(tenant))
    world.wait_for(tenant_key(tenant), "Ready", "True")


def test_bots_go_on_while_postgres_is_down_and_accounts_open_afterwards(
    world: World, own_postgres: Postgres
) -> None:
    old, new = world.tenant(), a_name()
    own_postgres.kill9()

    try:
        world.create(a_bot(old))
        world.wait_for(bot_key(old), "Ready", "Running")
        world.create(a_tenant(new))
        body = world.wait_for(tenant_key(new), "BillingReady", "DatabaseUnavailable")
    finally:
        own_postgres.restart()

    conditions = {c["type"]: c["status"] for c in body["status"]["conditions"]}
    assert conditions["IsolationReady"] == "True"
    assert conditions["Ready"] == "False"
    assert conditions["Reconciling"] == "True"
    world.wait_for(tenant_key(new), "Ready", "True")


async def test_while_postgres_is_away_one_asks_and_all_others_are_told_at_once(
    own_postgres: Postgres, database: str
) -> None:
    # At the database of the installation it would take over from the operator.
    migrate(database)
    calls = operator_calls(database)
    own_postgres.kill9()

    try:
        assert await calls.follow() is None
        # The pool would let each of them wait for five seconds.
        answers = await asyncio.wait_for(
            asyncio.gather(*(calls.call(_ping) for _ in range(100)), return_exceptions=True), 4
        )
    finally:
        own_postgres.restart()
    while (news := await calls.follow()) is None:
        pass

    assert {getattr(answer, "reason", answer) for answer in answers} == {"DatabaseUnavailable"}
    assert news.is_back
    assert await calls.call(_ping) == 1
    calls.close()


def test_a_killed_operator_starts_again_and_catches_up(world: World) -> None:
    tenant = world.tenant()
    world.installed.kill9("operator")
    world.create(a_bot(tenant))
    world.delete("NetworkPolicy", f"tenant-{tenant}", "default-deny")

    world.installed.start("operator")

    # The lease of the killed one runs out first.
    world.wait_for(bot_key(tenant), "Ready", "Running")
    denied = ("NetworkPolicy", f"tenant-{tenant}", "default-deny")
    world.eventually(lambda: world.read(*denied), "what was deleted meanwhile is back")


def test_the_second_replica_takes_over_before_a_lease_would_run_out(world: World) -> None:
    tenant = world.tenant()
    world.installed.start_second_operator()
    world.eventually(
        lambda: world.installed.answers("operator-second", "readyz"), "second is ready"
    )

    started = time.monotonic()
    world.installed.stop("operator")
    world.create(a_bot(tenant))
    world.eventually(
        lambda: world.read("Deployment", f"tenant-{tenant}", "bot"), "the second one writes", 10
    )
    took = time.monotonic() - started

    world.installed.start("operator")
    world.installed.stop("operator-second")
    world.installed.wait_for_leader()
    print(f"\nfrom the stop of the leader to the first write of the next: {took:.2f} s")


def _ping(conn: Any) -> int:
    answer: int = conn.execute("SELECT 1").fetchone()[0]
    return answer
