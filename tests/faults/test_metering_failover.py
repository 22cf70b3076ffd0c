"""A standby takes over from Postgres: all that was let go is there, or the loss has a bound."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from botplane.store.migrate import migrate
from tests.faults.metering_world import Span, World, billed, metering, pass_time, sql
from tests.support.controlplane import postgres as servers
from tests.support.controlplane.postgres import STANDBY, Postgres
from tests.support.controlplane.waiting import until
from tests.support.fixtures import state_folder

HEARTBEAT_SECONDS = 60
EARLY, LATE = 6, 3
LIVES = {"started-at": "2026-10-01T00:00:00Z", "killed-at": "2026-10-01T01:00:00Z"}
INTERVALS = "SELECT pod_uid FROM runtime_interval"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A primary that will be lost, and its standby; the addresses are those of one database."""

    primary: Postgres
    standby: Postgres
    url: str
    standby_url: str


@pytest.fixture
def pair() -> Iterator[Pair]:
    with state_folder() as first, state_folder() as second:
        primary = servers.start(first)
        if primary.state is None:
            pytest.skip("the server of DATABASE_URL is not ours to lose")
        url = primary.create_database("usage")
        migrate(url)
        standby = primary.standby(second)
        standby_url = standby.database_url("usage")
        yield Pair(primary=primary, standby=standby, url=url, standby_url=standby_url)
        standby.stop()
        primary.stop()


def test_no_pod_goes_before_a_synchronous_standby_has_its_usage(
    world: World, pair: Pair, log: Path
) -> None:
    _tell(pair.primary.url, f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
    # What a careless administrator sets for speed holds for no usage.
    _tell(pair.primary.url, "ALTER DATABASE usage SET synchronous_commit = 'local'")
    _tell(pair.primary.url, "SELECT pg_reload_conf()")
    pod = world.running(world.pod(world.tenant(), annotations=LIVES))
    with metering(world.cluster, pair.url, log):
        until(lambda: sql(pair.url, INTERVALS), what="run known")
        pair.standby.kill9()
        world.delete(pod)
        pass_time(5)
        was_released = world.is_released(pod)
        pair.standby.restart()
        world.gone(pod)
        pair.primary.kill9()
    pair.standby.promote()

    assert not was_released
    uid = pod["metadata"]["uid"]
    assert billed(pair.standby_url, {uid}) == {(uid, 0, *LIVES.values())}


def test_what_an_asynchronous_standby_did_not_hear_of_costs_its_lag_and_a_heartbeat(
    world: World, pair: Pair, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant = world.tenant()
    with metering(world.cluster, pair.url, log):
        survivor, *early = [world.running(world.pod(tenant)) for _ in range(1 + EARLY)]
        is_known = lambda: len(sql(pair.standby_url, INTERVALS)) == 1 + EARLY  # noqa: E731
        until(is_known, what="runs known")
        pass_time(2)
        true, lag = _let_go_unheard(world, pair, early)
    pair.standby.restart()
    pair.standby.promote()
    with metering(world.cluster, pair.standby_url, log):
        world.delete(survivor)
        world.gone(survivor)
        is_open = f"{INTERVALS} WHERE ended_at IS NULL"
        until(lambda: not sql(pair.standby_url, is_open), what="all closed")

    known = {str(uid) for (uid,) in sql(pair.standby_url, INTERVALS)}
    found = {span[0]: _seconds(span) for span in billed(pair.standby_url, known)}
    lost = [_seconds(span) - found.get(span[0], 0) for span in true]
    bound = lag + HEARTBEAT_SECONDS
    with capsys.disabled():
        print(
            f"\nC-10: {len(true)} pods let go while the standby was deaf for {lag:.0f} s: "
            f"{sum(lost)} s lost of {sum(map(_seconds, true))}, {max(lost)} s at most of one pod "
            f"(bound {bound:.0f} s)"
        )
    assert len(true) == EARLY + LATE
    assert sum(lost) > 0, "nothing was lost: the test has shown nothing"
    assert all(0 <= seconds <= bound for seconds in lost)
    ((quality,),) = sql(
        pair.standby_url,
        "SELECT close_quality FROM runtime_interval WHERE pod_uid = %s",
        survivor["metadata"]["uid"],
    )
    assert quality == "exact"


def _let_go_unheard(world: World, pair: Pair, pods: list[Any]) -> tuple[set[Span], float]:
    """End pods, and some that are born meanwhile, while the standby is deaf; lose the primary."""
    pair.standby.kill9()
    deaf_since = time.monotonic()
    pods = pods + [world.running(world.pod(world.tenants[0])) for _ in range(LATE)]
    pass_time(4)
    for pod in pods:
        world.delete(pod)
    for pod in pods:
        world.gone(pod)
    true = billed(pair.url, {pod["metadata"]["uid"] for pod in pods})
    pair.primary.kill9()
    return true, time.monotonic() - deaf_since


def _seconds(span: Span) -> int:
    *_, start, end = span
    return int((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def _tell(url: str, statement: LiteralString) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
