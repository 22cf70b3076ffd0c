"""Many pods at once: each is billed to the second, and the API server is not flooded."""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.faults.calls import Delay, Rule
from tests.faults.kproxy import Proxy
from tests.faults.metering_world import (
    Plan,
    Recorder,
    World,
    billed,
    delete_all,
    make_pods,
    metering,
    pass_time,
    seconds,
    sql,
)
from tests.faults.rehearsal import WHOLE
from tests.support.controlplane import audit, identities
from tests.support.controlplane.cluster import Cluster
from tests.support.controlplane.waiting import until

PODS, TENANTS, KILLS = 500, 5, 5
UNDISTURBED = 2000
BURST = 5000 if WHOLE else 250
MOST_WRITES_A_SECOND = 50
HELD_UP, BEHIND = 8, 100
"""As many as are sent at once, and two seconds of others."""
METERING = "system:serviceaccount:botplane-system:botplane-metering"
ENDED = {"started-at": "2026-10-01T00:00:00Z", "finished-at": "2026-10-01T01:00:00Z"}


@dataclass(frozen=True)
class Lives:
    """Pods that are made and deleted while a raw watch takes notes."""

    plans: list[Plan]
    recorder: Recorder
    deleting: threading.Thread


@pytest.mark.skipif(not WHOLE, reason="minutes: BOTPLANE_FAULTS=all")
def test_2000_pods_are_billed_to_the_second(
    world: World, usage: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(20261126)
    began = time.monotonic()
    with metering(world.cluster, usage, log), _living(world, UNDISTURBED, dice) as lives:
        lives.deleting.join()
        until(lambda: world.left() == 0, within=180, what="all pods released", every=1)
        told = _judged(world, usage, lives)

    with capsys.disabled():
        print(f"\nC-1: {told}, {time.monotonic() - began:.0f} s")


def test_500_pods_are_billed_to_the_second_while_metering_is_killed(
    world: World, usage: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(20261124)
    began = time.monotonic()
    with _living(world, PODS, dice, metering(world.cluster, usage, log)) as lives:
        for kill in range(KILLS):
            with metering(world.cluster, usage, log):
                pass_time(dice.uniform(2, 8))
            if kill == KILLS // 2:
                pass_time(20)
        with metering(world.cluster, usage, log):
            lives.deleting.join()
            until(lambda: world.left() == 0, what="all pods released")
        told = _judged(world, usage, lives)

    with capsys.disabled():
        print(f"\nC-2: {told}, {KILLS + 1} kills in {time.monotonic() - began:.0f} s")


def test_a_burst_of_ends_leaves_no_pod_behind_and_spares_the_api_server(
    world: World, usage: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tenants = [world.tenant() for _ in range(TENANTS)]
    with ThreadPoolExecutor(8) as threads:
        make = lambda number: world.pod(tenants[number % TENANTS], annotations=ENDED)  # noqa: E731
        pods = list(threads.map(make, range(BURST)))
        # Who is deleted before it runs has nothing to bill.
        list(threads.map(world.ended, pods))
        list(threads.map(world.delete, pods))
    assert world.cluster.audit_log is not None
    since = audit.position(world.cluster.audit_log)
    began = time.monotonic()

    with metering(world.cluster, usage, log):
        until(lambda: world.left() == 0, within=300, what="all pods released", every=1)
    took = time.monotonic() - began

    asked = audit.requests(world.cluster.audit_log, user=METERING, since=since)
    writes = sorted(request.arrived_at.timestamp() for request in asked if request.is_write)
    rate = (len(writes) - 1) / (writes[-1] - writes[0])
    uids = {pod["metadata"]["uid"] for pod in pods}
    with capsys.disabled():
        print(
            f"\nC-6: {BURST} pods ended at once, {world.left()} left after {took:.0f} s; "
            f"{len(writes)} writes, {rate:.1f} a second, at most "
            f"{_busiest(writes)} in one of them (bar {MOST_WRITES_A_SECOND})"
        )
    assert billed(usage, uids) == {(uid, 0, *ENDED.values()) for uid in uids}
    assert len(writes) == BURST
    assert _busiest(writes) <= MOST_WRITES_A_SECOND


def test_writes_that_were_held_up_do_not_arrive_beside_a_second_of_others(
    world: World, usage: str, log: Path, tmp_path: Path
) -> None:
    tenant = world.tenant()
    with ThreadPoolExecutor(8) as threads:
        make = lambda _: world.pod(tenant, annotations=ENDED)  # noqa: E731
        list(threads.map(world.delete, threads.map(make, range(HELD_UP + BEHIND))))
    assert world.cluster.audit_log is not None
    since = audit.position(world.cluster.audit_log)
    proxy = Proxy(world.cluster, tmp_path / "calls.jsonl")
    proxy.add(Rule(lambda call: call.is_write, Delay(1.5), times=HELD_UP))

    with closing(proxy), metering(_through(proxy, world.cluster, tmp_path), usage, log):
        until(lambda: world.left() == 0, what="all pods released")

    asked = audit.requests(world.cluster.audit_log, user=METERING, since=since)
    writes = sorted(request.arrived_at.timestamp() for request in asked if request.is_write)
    assert len(writes) == HELD_UP + BEHIND
    assert _busiest(writes) <= MOST_WRITES_A_SECOND


def _through(proxy: Proxy, cluster: Cluster, folder: Path) -> Cluster:
    kubeconfig = identities.write_kubeconfig(
        folder / "metering.kubeconfig",
        server=proxy.url,
        ca=cluster.ca,
        token=cluster.tokens["metering"],
    )
    return replace(cluster, kubeconfigs={"metering": kubeconfig})


@contextmanager
def _living(
    world: World,
    count: int,
    dice: random.Random,
    while_born: AbstractContextManager[object] | None = None,
) -> Iterator[Lives]:
    for _ in range(TENANTS):
        world.tenant()
    with Recorder(world.kube) as recorder:
        with while_born or nullcontext():
            plans = make_pods(world, count, dice)
        deleting = threading.Thread(target=delete_all, args=[world, recorder, plans])
        deleting.start()
        try:
            yield Lives(plans, recorder, deleting)
        finally:
            deleting.join()


def _judged(world: World, usage: str, lives: Lives) -> str:
    """Compare what was billed with what was planned and what was seen; return the figures."""
    uids = {plan.uid for plan in lives.plans}
    truth = {(plan.uid, *span) for plan in lives.plans for span in plan.spans}
    assert lives.recorder.spans(uids) == truth
    found = billed(usage, uids)
    inexact = sql(
        usage,
        "SELECT pod_uid FROM runtime_interval WHERE close_quality IS DISTINCT FROM 'exact'",
    )
    ((rows, distinct),) = sql(
        usage,
        "SELECT count(*), count(DISTINCT (pod_uid, restart)) FROM runtime_interval",
    )
    assert found == truth
    assert rows == distinct == len(truth)
    assert inexact == []
    return (
        f"{len(lives.plans)} pods, {len(truth)} runs, {seconds(truth)} s true, "
        f"{seconds(found)} s billed, difference {seconds(found) - seconds(truth)} s; "
        f"{rows - distinct} rows twice, {world.left()} pods left, {len(inexact)} inexact"
    )


def _busiest(moments: list[float]) -> int:
    """Return how many of some sorted moments lie within one second, at most."""
    return max(bisect_left(moments, at + 1) - number for number, at in enumerate(moments))
