"""Volumes are billed from bound to asked to go, by a metering that is killed and cut off."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.faults.metering_world import FINALIZER, Tenant, World, metering, pass_time, path_of, sql
from tests.faults.pgproxy import PostgresProxy
from tests.support.controlplane.cluster import Cluster
from tests.support.controlplane.postgres import Postgres
from tests.support.controlplane.waiting import until

GIB = 2**30
CLAIMS, KILLS = 24, 4
VOLUMES = "/api/v1/persistentvolumes"

Claim = dict[str, Any]
Stretch = tuple[int, datetime, datetime]
"""Bytes, start and end."""


@pytest.fixture
def world(control_plane: Cluster) -> Iterator[World]:
    world = World(control_plane)
    yield world
    for tenant in world.tenants:
        for claim in world.kube.send("GET", claims_of(tenant))["items"]:
            claim["metadata"]["finalizers"] = None
            world.kube.patch(place(claim), {"metadata": {"finalizers": None}})
            world.kube.send("DELETE", place(claim))
    world.close()


def test_a_volume_is_billed_from_bound_to_asked_to_go_at_each_of_its_sizes(
    world: World, usage: str, log: Path
) -> None:
    before = time.time()
    claim = bound(world, world.tenant())
    with metering(world.cluster, usage, log):
        until(lambda: sql(usage, "SELECT 1 FROM pod"), what="claim known")
        pass_time(2)
        asked, answered = resize(world, claim, "20Gi")
        pass_time(2)
        ended = delete(world, claim)
        until(lambda: is_gone(world, claim), what="claim gone")
        settled = "SELECT kind FROM pod WHERE settled_at IS NOT NULL"
        kinds = until(lambda: sql(usage, settled), what="claim settled")

    assert kinds == [("PersistentVolumeClaim",)]
    ((first, start, cut), (second, again, end)) = billed(usage, claim)
    assert (first, second) == (10 * GIB, 20 * GIB)
    assert before - 1 <= start.timestamp() <= claim["seen_bound"]
    assert asked - 1 <= cut.timestamp() <= answered
    assert cut == again
    assert end == ended


def test_what_happens_to_volumes_while_metering_is_dead_is_billed_to_the_second(
    world: World, usage: str, log: Path
) -> None:
    claim = bound(world, world.tenant())
    pass_time(1.1)
    asked, answered = resize(world, claim, "20Gi")
    pass_time(1.1)
    ended = delete(world, claim)
    pass_time(2)
    assert not is_gone(world, claim)

    with metering(world.cluster, usage, log):
        until(lambda: is_gone(world, claim), what="claim gone")

    ((size, start, end),) = billed(usage, claim)
    assert (size, end) == (20 * GIB, ended)
    # Nobody saw how large it was before: that time is on record, and not billed.
    assert asked - 1 <= start.timestamp() <= answered
    assert sql(usage, "SELECT ends_at FROM meter_gap") == [(start,)]


def test_volumes_are_billed_once_by_two_meterings_that_are_killed_and_cut_off(
    world: World, usage: str, postgres: Postgres, log: Path
) -> None:
    tenants = [world.tenant() for _ in range(2)]
    proxy = PostgresProxy(usage)
    claims = [bound(world, tenants[number % 2]) for number in range(CLAIMS)]
    ends: dict[str, datetime] = {}

    def end_all() -> None:
        for claim in claims:
            ends[claim["metadata"]["uid"]] = delete(world, claim)
            pass_time(0.3)

    ending = threading.Thread(target=end_all)
    with metering(world.cluster, usage, log):
        ending.start()
        for kill in range(KILLS):
            with metering(world.cluster, proxy.url, log):
                proxy.cut_commits = 2
                pass_time(1.5)
            if kill == KILLS // 2:
                postgres.kill9()
                pass_time(1)
                postgres.restart()
        ending.join()
        until(lambda: all(is_gone(world, c) for c in claims), what="all claims gone")
    proxy.close()

    for claim in claims:
        ((size, start, end),) = billed(usage, claim)
        assert (size, end) == (10 * GIB, ends[claim["metadata"]["uid"]])
        assert start.timestamp() <= claim["seen_bound"]
    assert sql(usage, "SELECT count(*) FROM runtime_interval") == [(CLAIMS,)]


def test_a_namespace_with_volumes_goes_once_they_are_billed(
    world: World, usage: str, log: Path
) -> None:
    tenant = world.tenant()
    claims = [bound(world, tenant) for _ in range(3)]
    path = f"/api/v1/namespaces/{tenant.namespace}"
    world.kube.send("DELETE", path)

    with metering(world.cluster, usage, log):
        until(lambda: world.kube.send("GET", path) is None, what="namespace gone")

    assert [len(billed(usage, claim)) for claim in claims] == [1, 1, 1]
    world.tenants.clear()


def test_a_claim_freed_by_hand_while_metering_is_dead_is_billed_no_second_too_many(
    world: World, usage: str, log: Path
) -> None:
    claim = bound(world, world.tenant())
    with metering(world.cluster, usage, log):
        until(lambda: sql(usage, "SELECT 1 FROM runtime_interval"), what="claim known")
    pass_time(2)
    world.kube.patch(place(claim), {"metadata": {"finalizers": None}})
    world.kube.send("DELETE", place(claim))
    until(lambda: is_gone(world, claim), what="claim gone")
    went = time.time()

    with metering(world.cluster, usage, log):
        until(lambda: billed(usage, claim), what="closed")

    ((size, start, end),) = billed(usage, claim)
    assert size == 10 * GIB
    assert start <= end
    assert went - 60 < end.timestamp() <= went
    assert sql(
        usage,
        "SELECT close_reason, close_quality, settled_at IS NOT NULL"
        " FROM runtime_interval JOIN pod USING (pod_uid)",
    ) == [("pod_gone", "bounded", True)]


def test_a_claim_that_a_pod_still_uses_costs_nothing_once_it_was_asked_to_go(
    world: World, usage: str, log: Path
) -> None:
    tenant = world.tenant()
    claim = bound(world, tenant)
    data = {"claimName": claim["metadata"]["name"]}
    volumes = [{"name": "data", "persistentVolumeClaim": data}]
    pod = world.running(world.pod(tenant, spec={"volumes": volumes}))
    with metering(world.cluster, usage, log):
        ended = delete(world, claim)
        until(lambda: billed(usage, claim), what="billed")
        left = world.kube.send("GET", place(claim))["metadata"]["finalizers"]
        world.delete(pod)
        until(lambda: is_gone(world, claim), what="claim gone")

    assert left in (["kubernetes.io/pvc-protection"], [FINALIZER, "kubernetes.io/pvc-protection"])
    assert [end for _, _, end in billed(usage, claim)] == [ended]
    assert world.kube.send("GET", path_of(pod)) is None


def test_a_claim_that_was_never_bound_is_free_and_released(
    world: World, usage: str, log: Path
) -> None:
    claim = make(world, world.tenant(), "data", "10Gi")
    with metering(world.cluster, usage, log):
        until(lambda: sql(usage, "SELECT 1 FROM pod"), what="claim known")
        delete(world, claim)
        until(lambda: is_gone(world, claim), what="claim gone")

    assert sql(usage, "SELECT * FROM runtime_interval") == []


def make(world: World, tenant: Tenant, name: str, size: str) -> Claim:
    """Create a claim as the operator does."""
    body = {
        "metadata": {
            "name": name,
            "namespace": tenant.namespace,
            "finalizers": [FINALIZER],
            "labels": tenant.labels,
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "resources": {"requests": {"storage": size}},
        },
    }
    claim: Claim = world.kube.send("POST", claims_of(tenant), body)
    return claim


def bound(world: World, tenant: Tenant, size: str = "10Gi") -> Claim:
    """Create a claim and a volume for it, and return it once they are bound."""
    name = f"data-{uuid.uuid4().hex[:8]}"
    # A volume that is there already is bound at once.
    world.kube.send("POST", VOLUMES, _volume(tenant, name, size))
    claim = make(world, tenant, name, size)

    def is_bound() -> Claim | None:
        found: Claim = world.kube.send("GET", place(claim))
        return found if found["status"].get("phase") == "Bound" else None

    found = until(is_bound, what="bound")
    return {**found, "seen_bound": time.time()}


def resize(world: World, claim: Claim, size: str) -> tuple[float, float]:
    """Let the volume of a claim have grown, as its driver tells; return between when and when."""
    asked = time.time()
    status = {"status": {"capacity": {"storage": size}}}
    world.kube.patch(f"{place(claim)}/status?fieldManager=resizer", status)
    return asked, time.time()


def delete(world: World, claim: Claim) -> datetime:
    """Ask a claim to go and return when the API server says that was."""
    answer = world.kube.send("DELETE", place(claim))
    return datetime.fromisoformat(answer["metadata"]["deletionTimestamp"])


def is_gone(world: World, claim: Claim) -> bool:
    """Say whether a claim does not exist any more."""
    return world.kube.send("GET", place(claim)) is None


def billed(usage: str, claim: Claim) -> list[Stretch]:
    """Return the closed stretches of a claim that Postgres has; empty while one is open."""
    rows = sql(
        usage,
        "SELECT storage_bytes, started_at, ended_at FROM runtime_interval"
        " WHERE pod_uid = %s ORDER BY seg",
        claim["metadata"]["uid"],
    )
    return [] if any(end is None for _, _, end in rows) else rows


def place(claim: Claim) -> str:
    """Return the path of a claim."""
    meta = claim["metadata"]
    return f"/api/v1/namespaces/{meta['namespace']}/persistentvolumeclaims/{meta['name']}"


def claims_of(tenant: Tenant) -> str:
    """Return the path of all claims of a tenant."""
    return f"/api/v1/namespaces/{tenant.namespace}/persistentvolumeclaims"


def _volume(tenant: Tenant, name: str, size: str) -> dict[str, Any]:
    return {
        "metadata": {"name": f"pv-{name}"},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": tenant.namespace, "name": name},
            "hostPath": {"path": f"/simulated/{name}"},
        },
    }
