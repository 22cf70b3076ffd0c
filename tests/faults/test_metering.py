"""Metering on a real control plane and a real Postgres, while both and itself are killed."""

from __future__ import annotations

import random
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import urllib3

from tests.faults.metering_world import (
    Recorder,
    World,
    billed,
    delete_all,
    make_pods,
    metering,
    pass_time,
    path_of,
    sql,
)
from tests.faults.pgproxy import PostgresProxy
from tests.support.controlplane.ports import free_ports
from tests.support.controlplane.postgres import Postgres
from tests.support.controlplane.waiting import until

START, END = "2026-10-01T00:00:00Z", "2026-10-01T01:00:00Z"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
WHEN_DELETED = {"started-at": START, "killed-at": END}


def test_a_killed_postgres_and_lost_commit_answers_lose_nothing(
    world: World, usage: str, postgres: Postgres, log: Path
) -> None:
    dice = random.Random(7)
    proxy = PostgresProxy(usage)
    with Recorder(world.kube) as recorder, metering(world.cluster, proxy.url, log):
        plans = make_pods(world, 60, dice, pace=1.5)
        deleting = threading.Thread(target=delete_all, args=[world, recorder, plans])
        deleting.start()
        for _ in range(2):
            pass_time(3)
            proxy.cut_commits = 3
            pass_time(3)
            postgres.kill9()
            pass_time(3)
            postgres.restart()
        deleting.join()
        until(lambda: world.left() == 0, what="all pods released")

    assert proxy.cuts >= 2
    assert billed(usage, {p.uid for p in plans}) == {(p.uid, *s) for p in plans for s in p.spans}
    proxy.close()


def test_no_pod_goes_while_postgres_is_down(
    world: World, usage: str, postgres: Postgres, log: Path
) -> None:
    tenant = world.tenant()
    pod = world.running(world.pod(tenant, annotations=WHEN_DELETED))
    with metering(world.cluster, usage, log):
        until(lambda: sql(usage, "SELECT 1 FROM pod"), what="pod known")
        postgres.kill9()
        world.delete(pod)
        pass_time(5)
        was_released = world.is_released(pod)
        postgres.restart()
        world.gone(pod)

    assert not was_released
    assert billed(usage, {pod["metadata"]["uid"]}) == {(pod["metadata"]["uid"], 0, START, END)}


def test_two_meterings_at_once_bill_once(world: World, usage: str, log: Path) -> None:
    dice = random.Random(9)
    with (
        Recorder(world.kube) as recorder,
        metering(world.cluster, usage, log),
        metering(world.cluster, usage, log),
    ):
        plans = make_pods(world, 80, dice, pace=4)
        delete_all(world, recorder, plans)
        until(lambda: world.left() == 0, what="all pods released")

    assert billed(usage, {p.uid for p in plans}) == {(p.uid, *s) for p in plans for s in p.spans}


def test_a_namespace_goes_after_its_terminating_pods_are_billed(
    world: World, usage: str, log: Path
) -> None:
    tenant = world.tenant()
    pods = [world.pod(tenant, annotations=WHEN_DELETED) for _ in range(10)]
    for pod in pods:
        world.running(pod)
    path = f"/api/v1/namespaces/{tenant.namespace}"
    world.kube.send("DELETE", path)

    with metering(world.cluster, usage, log):
        until(
            lambda: world.kube.send("GET", path) is None,
            what="namespace gone",
        )

    uids = {pod["metadata"]["uid"] for pod in pods}
    assert billed(usage, uids) == {(uid, 0, START, END) for uid in uids}
    world.tenants.clear()


def test_a_pod_deleted_by_force_is_billed_by_its_own_end(
    world: World, usage: str, log: Path
) -> None:
    pod = world.running(world.pod(world.tenant(), annotations=WHEN_DELETED))
    with metering(world.cluster, usage, log):
        world.delete(pod, gracePeriodSeconds=0)
        world.gone(pod)

    assert billed(usage, {pod["metadata"]["uid"]}) == {(pod["metadata"]["uid"], 0, START, END)}


def test_a_pod_freed_by_hand_while_metering_watches_is_exact_and_settled(
    world: World, usage: str, log: Path
) -> None:
    pod = world.running(world.pod(world.tenant(), annotations=WHEN_DELETED))
    uid = pod["metadata"]["uid"]
    with metering(world.cluster, usage, log):
        until(lambda: sql(usage, "SELECT 1 FROM pod"), what="pod known")
        world.kube.patch(path_of(pod), {"metadata": {"finalizers": None}})
        world.delete(pod)
        world.gone(pod)
        settled = "SELECT 1 FROM pod WHERE settled_at IS NOT NULL"
        until(lambda: sql(usage, settled), what="pod settled")

    assert billed(usage, {uid}) == {(uid, 0, START, END)}


def test_a_pod_freed_by_hand_while_metering_is_dead_is_bounded_by_when_it_was_last_seen(
    world: World, usage: str, log: Path
) -> None:
    pod = world.running(world.pod(world.tenant()))
    with metering(world.cluster, usage, log):
        until(
            lambda: sql(usage, "SELECT 1 FROM runtime_interval"),
            what="run known",
        )
    pass_time(3)
    world.kube.patch(path_of(pod), {"metadata": {"finalizers": None}})
    world.delete(pod)
    world.gone(pod)
    ended = time.time()

    with metering(world.cluster, usage, log):
        closed = "SELECT close_quality FROM runtime_interval WHERE ended_at IS NOT NULL"
        until(lambda: sql(usage, closed), what="run closed")

    ((start, end, reason, quality, settled),) = sql(
        usage,
        """SELECT i.started_at, i.ended_at, close_reason, close_quality, settled_at IS NOT NULL
           FROM runtime_interval i JOIN pod USING (pod_uid)""",
    )
    assert (reason, quality, settled) == ("pod_gone", "bounded", True)
    assert start <= end
    assert ended - 60 < end.timestamp() <= ended


def test_a_pod_of_a_node_that_left_is_bounded_by_the_wish_to_delete_it(
    world: World, usage: str, log: Path
) -> None:
    pod = world.pod(world.tenant(), spec={"nodeName": "node-that-left"})
    _show(world, pod, {"running": {"startedAt": START}})
    with metering(world.cluster, usage, log):
        until(lambda: sql(usage, "SELECT 1 FROM runtime_interval"), what="run known")
        world.delete(pod)
        wish = world.kube.send("GET", path_of(pod))["metadata"]
        world.kube.patch(f"{path_of(pod)}/status", {"status": {"phase": "Failed"}})
        until(lambda: world.is_released(pod), what="pod released")

    ((end, reason, quality),) = sql(
        usage,
        "SELECT extract(epoch FROM ended_at)::int, close_reason, close_quality"
        " FROM runtime_interval",
    )
    grace = wish["deletionGracePeriodSeconds"]
    wished_at = datetime.fromisoformat(wish["deletionTimestamp"]).timestamp() - grace
    # The API server's clock is known to a second; never is more billed.
    assert wished_at - 1 <= end <= wished_at
    assert (reason, quality) == ("node_lost", "bounded")


def test_a_pod_of_a_node_without_power_is_billed_until_its_last_lease(
    world: World, usage: str, log: Path
) -> None:
    pod = world.pod(world.tenant(), spec={"nodeName": "dark"})
    _renew(world, "dark", "2026-10-01T00:10:00.000000Z")
    _show(world, pod, {"running": {"startedAt": START}})
    with metering(world.cluster, usage, log):
        until(lambda: sql(usage, "SELECT 1 FROM source_watermark"), what="heart beats")
    world.kube.patch(path_of(pod), {"metadata": {"finalizers": None}})
    world.delete(pod, gracePeriodSeconds=0)
    world.gone(pod)

    with metering(world.cluster, usage, log):
        closed = "SELECT 1 FROM runtime_interval WHERE ended_at IS NOT NULL"
        until(lambda: sql(usage, closed), what="run closed")
    world.kube.send("DELETE", f"{LEASES}/dark")

    billed_seconds = "extract(epoch FROM ended_at - started_at)::int"
    found = sql(usage, f"SELECT {billed_seconds}, close_quality FROM runtime_interval")
    assert found == [(600, "bounded")]


def test_a_kubelet_that_is_back_but_has_not_told_of_its_pods_proves_nothing(
    world: World, usage: str, log: Path
) -> None:
    pod = world.pod(world.tenant(), spec={"nodeName": "back"})
    started = pod["metadata"]["creationTimestamp"]
    _show(world, pod, {"running": {"startedAt": started}})
    pass_time(3)
    now = datetime.now(UTC)
    _renew(world, "back", now.strftime("%Y-%m-%dT%H:%M:%S.000000Z"))
    with metering(world.cluster, usage, log):
        until(lambda: sql(usage, "SELECT 1 FROM source_watermark"), what="heart beats")
        told = {"exitCode": 255, "reason": "Unknown", "startedAt": started}
        told["finishedAt"] = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        _show(world, pod, {"terminated": told})
        closed = "SELECT 1 FROM runtime_interval WHERE ended_at IS NOT NULL"
        until(lambda: sql(usage, closed), what="run closed")
    world.kube.send("DELETE", f"{LEASES}/back")

    found = sql(usage, "SELECT ended_at - started_at, close_quality FROM runtime_interval")
    assert found == [(timedelta(0), "estimated")]


def test_a_pod_that_never_started_is_released_and_not_billed(
    world: World, usage: str, log: Path
) -> None:
    tenant = world.tenant()
    unscheduled = world.pod(tenant, spec={"nodeName": None, "schedulerName": "nobody"})
    unstarted = world.pod(tenant, annotations={"run-delay": "600s"})
    with metering(world.cluster, usage, log):
        for pod in (unscheduled, unstarted):
            world.delete(pod)
            world.gone(pod)

    assert sql(usage, "SELECT * FROM runtime_interval") == []


def test_a_pod_that_nobody_pays_for_is_released_and_not_billed(
    world: World, usage: str, log: Path
) -> None:
    foreign = {"botplane.io/tenant": "somebody-else"}
    pod = world.running(world.pod(world.tenant(), annotations=WHEN_DELETED, labels=foreign))
    with metering(world.cluster, usage, log):
        world.delete(pod)
        world.gone(pod)

    assert sql(usage, "SELECT * FROM runtime_interval") == []
    assert log.read_text().count("no tenant pays for") == 1


def test_a_stopped_metering_ends_cleanly_and_at_once(world: World, usage: str, log: Path) -> None:
    with metering(world.cluster, usage, log) as process:
        marked = "SELECT 1 FROM source_watermark WHERE source = 'metering'"
        until(lambda: sql(usage, marked), what="watermark")
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=5) == 0


def test_probes_and_metrics_answer_while_postgres_is_down(
    world: World, usage: str, postgres: Postgres, log: Path
) -> None:
    (port,) = free_ports(1)
    with metering(world.cluster, usage, log, port):
        until(lambda: _get(port, "/readyz")[0] == 200, what="ready")
        postgres.kill9()
        pass_time(2)
        answers = [_get(port, path) for path in ("/livez", "/readyz", "/metrics")]
        postgres.restart()

    assert [status for status, _ in answers] == [200, 200, 200]
    assert "botplane_metering_pods_awaiting_settlement 0.0" in answers[2][1]


def _show(world: World, pod: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the status that the kubelet of a node, which is not there, has left behind."""
    status = {"name": "bot", "image": "bot:1", "imageID": "", "ready": True, "restartCount": 0}
    shown = {"phase": "Running", "containerStatuses": [status | {"state": state}]}
    world.kube.patch(f"{path_of(pod)}/status", {"status": shown})


def _renew(world: World, node: str, at: str) -> None:
    """Make the Lease of a node, as its kubelet renews it."""
    lease = {"renewTime": at, "holderIdentity": node}
    world.kube.send("POST", LEASES, {"metadata": {"name": node}, "spec": lease})


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        answer = urllib3.request("GET", f"http://127.0.0.1:{port}{path}", retries=False, timeout=5)
    except urllib3.exceptions.HTTPError:
        return 0, ""
    return answer.status, answer.data.decode()
