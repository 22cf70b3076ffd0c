"""Who leads: one that was paused does no harm afterwards, and a lost Lease locks nobody out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.faults.proxied import NAME, ProxiedOperator
from tests.support.controlplane import processes
from tests.support.installation import Installation
from tests.support.world import World, a_name, a_plan

SECOND = "operator-second"
LEASE = ("lease", "botplane-operator", "--namespace=botplane-system")


@pytest.fixture
def world(botplane: Installation, proxied: ProxiedOperator) -> Iterator[World]:
    yield World(botplane)
    proxied.proxy.clear()


@pytest.fixture
def word(botplane: Installation, proxied: ProxiedOperator, tmp_path: Path) -> Iterator[Path]:
    """A file at which the leader freezes with a plan and an account in flight."""
    path = tmp_path / "stop"
    proxied.restart(BOTPLANE_STOP_AT_WORD=str(path))
    yield path
    botplane.stop(SECOND)
    proxied.restart(BOTPLANE_STOP_AT_WORD="")


def test_a_leader_that_wakes_up_overwrites_nothing_of_its_successor(
    world: World, proxied: ProxiedOperator, word: Path
) -> None:
    installed, restarts = world.installed, proxied.restarts
    plan, tenant = declared(world)
    installed.start_second_operator()
    world.eventually(lambda: installed.answers(SECOND, "readyz"), "the second one is ready")
    leader = processes.find(installed.cluster.state, NAME)
    assert leader is not None

    word.touch()
    declare(world, plan, tenant, "11")
    world.eventually(lambda: leader.status() == psutil.STATUS_STOPPED, "the leader freezes")
    word.unlink()
    installed.wait_for_leader(SECOND)
    declare(world, plan, tenant, "12")
    world.eventually(lambda: stored(world, plan, tenant) == ("12", "12"), "the second one writes")
    leader.resume()

    world.eventually(lambda: proxied.restarts > restarts, "the old one has ended")
    assert stored(world, plan, tenant) == ("12", "12")
    said = installed.log(NAME)
    assert "another operator leads: second" in said
    assert "nothing is to be done" in said
    declare(world, plan, tenant, "13")
    world.eventually(lambda: stored(world, plan, tenant) == ("13", "13"), "the second one goes on")


def test_a_lease_deleted_by_hand_locks_nobody_out(world: World, proxied: ProxiedOperator) -> None:
    plan, tenant = declared(world)

    world.installed.kubectl("delete", *LEASE)

    declare(world, plan, tenant, "11")
    world.eventually(lambda: stored(world, plan, tenant) == ("11", "11"), "who leads goes on")
    proxied.kill()
    world.installed.kubectl("delete", *LEASE, "--ignore-not-found")
    proxied.start()
    declare(world, plan, tenant, "12")
    world.eventually(lambda: stored(world, plan, tenant) == ("12", "12"), "who comes next leads")


def test_a_leader_that_postgres_does_not_know_starts_again_and_goes_on(
    world: World, proxied: ProxiedOperator
) -> None:
    plan, tenant = declared(world)
    restarts = proxied.restarts

    # As after a failover to a standby that lacks what was committed last.
    with psycopg.connect(world.installed.database_url) as conn:
        conn.execute("DELETE FROM leadership")

    declare(world, plan, tenant, "11")
    world.eventually(lambda: stored(world, plan, tenant) == ("11", "11"), "it leads again")
    assert proxied.restarts == restarts + 1
    assert "another operator leads: nobody" in world.installed.log(NAME)


def declared(world: World) -> tuple[str, str]:
    """Return a plan and a tenant on it, by name, that are in Postgres."""
    plan = a_name("plan")
    world.create(a_plan(plan, fee="10.00"))
    limits = {"currency": "USD", "spendLimit": "10.00"}
    tenant = world.tenant(planRef={"name": plan}, billing=limits)
    assert stored(world, plan, tenant) == ("10", "10")
    return plan, tenant


def declare(world: World, plan: str, tenant: str, amount: str) -> None:
    """Change the fee of the plan and the spend limit of the tenant."""
    world.patch("Plan", "", plan, {"spec": {"fee": f"{amount}.00"}})
    world.patch("Tenant", "", tenant, {"spec": {"billing": {"spendLimit": f"{amount}.00"}}})


def stored(world: World, plan: str, tenant: str) -> tuple[str, ...]:
    """Return the fee that holds now and the spend limit, as Postgres has them."""
    with psycopg.connect(world.installed.database_url) as conn:
        row = conn.execute(
            "SELECT (SELECT fee_minor / 100 FROM plan_version WHERE plan = %s"
            " ORDER BY version DESC LIMIT 1),"
            " (SELECT spend_limit::int FROM tenant WHERE name = %s AND closed_at IS NULL)",
            [plan, tenant],
        ).fetchone()
    return tuple(map(str, row or ()))
