"""What the simulated cluster promises to every other test."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.error
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.controlplane import audit, embedded, processes
from tests.support.controlplane.api import Api
from tests.support.controlplane.cluster import Cluster
from tests.support.controlplane.paths import CHECKOUT
from tests.support.controlplane.waiting import until

STARTED, FINISHED = "2026-10-01T00:00:00Z", "2026-10-31T12:34:56Z"
FINALIZER = "botplane.io/metering"


def a_pod_spec() -> dict[str, Any]:
    return {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "bot",
                "image": "bot:1",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    }


class Pods:
    """Pods of one restricted namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.path = f"/api/v1/namespaces/{namespace}/pods"
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"

    def create(self, finalizers: tuple[str, ...] = (), **annotations: str) -> str:
        """Create a pod; `run_seconds="5"` stands for `kwok.botplane.io/run-seconds: "5"`."""
        name = f"bot-{uuid.uuid4().hex[:8]}"
        metadata = {
            "name": name,
            "finalizers": list(finalizers),
            "annotations": _ours(annotations),
        }
        self.api.create(self.path, {"metadata": metadata, "spec": a_pod_spec()})
        return name

    def annotate(self, name: str, **annotations: str) -> None:
        self.api.patch(f"{self.path}/{name}", {"metadata": {"annotations": _ours(annotations)}})

    def delete(self, name: str) -> None:
        self.api.delete(f"{self.path}/{name}")

    def release(self, name: str) -> None:
        self.api.patch(f"{self.path}/{name}", {"metadata": {"finalizers": None}})

    def when(self, name: str, phase: str) -> dict[str, Any]:
        """Return the pod as soon as it is in a phase."""

        def reached() -> dict[str, Any] | None:
            pod: dict[str, Any] | None = self.api.get(f"{self.path}/{name}")
            return pod if pod and pod["status"]["phase"] == phase else None

        found = until(reached, what=f"pod {phase}")
        assert found is not None
        return found

    def is_gone(self, name: str) -> bool:
        listed = self.api.get(self.path)
        return listed and name not in [pod["metadata"]["name"] for pod in listed["items"]]


def _ours(annotations: dict[str, str]) -> dict[str, str]:
    return {
        f"kwok.botplane.io/{key.replace('_', '-')}": value for key, value in annotations.items()
    }


def times(pod: dict[str, Any]) -> tuple[str | None, str | None]:
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return ended["startedAt"], ended["finishedAt"]


@pytest.fixture
def pods(control_plane: Cluster) -> Iterator[Pods]:
    api, namespace = control_plane.api(), f"pods-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.create("/api/v1/namespaces", {"metadata": {"name": namespace, "labels": labels}})
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    until(lambda: api.get(account), what="default service account")
    yield Pods(api, namespace)
    api.delete(f"/api/v1/namespaces/{namespace}")


def test_a_pod_runs_from_the_time_it_is_told(pods: Pods) -> None:
    name = pods.create(started_at=STARTED)

    status = pods.when(name, "Running")["status"]

    assert status["containerStatuses"][0]["state"] == {"running": {"startedAt": STARTED}}
    assert status["containerStatuses"][0]["ready"] is True
    assert status["startTime"] == STARTED
    assert status["podIP"].startswith("10.")
    true = {c["type"] for c in status["conditions"] if c["status"] == "True"}
    assert true >= {"Initialized", "PodScheduled", "ContainersReady", "Ready"}


def test_a_pod_that_ends_by_itself_keeps_its_start(pods: Pods) -> None:
    name = pods.create(started_at=STARTED, finished_at=FINISHED)

    assert times(pods.when(name, "Succeeded")) == (STARTED, FINISHED)


def test_a_pod_ends_the_given_seconds_after_its_start(pods: Pods) -> None:
    name = pods.create(started_at=STARTED, run_seconds="86400", exit_code="3")

    assert times(pods.when(name, "Failed")) == (STARTED, "2026-10-02T00:00:00Z")


def test_a_deleted_pod_with_a_finalizer_keeps_both_times_until_it_is_released(pods: Pods) -> None:
    name = pods.create((FINALIZER,), started_at=STARTED)
    pods.when(name, "Running")

    pods.annotate(name, killed_at=FINISHED)
    pods.delete(name)

    pod = pods.when(name, "Failed")
    assert times(pod) == (STARTED, FINISHED)
    assert "deletionTimestamp" in pod["metadata"]
    pods.release(name)
    until(lambda: pods.is_gone(name), what="released pod gone")


def test_a_deleted_pod_without_a_finalizer_goes(pods: Pods) -> None:
    name = pods.create()
    pods.when(name, "Running")

    pods.delete(name)

    until(lambda: pods.is_gone(name), what="pod gone")


def test_a_pod_deleted_before_it_ran_has_no_times(pods: Pods) -> None:
    name = pods.create((FINALIZER,), run_delay="1h")
    path = f"{pods.path}/{name}"
    until(lambda: pods.api.get(path)["spec"].get("nodeName"), what="scheduled")

    pods.delete(name)

    assert times(pods.when(name, "Failed")) == (None, None)
    pods.release(name)


def test_a_crash_restarts_the_container_and_keeps_the_times_of_its_last_run(pods: Pods) -> None:
    name = pods.create(started_at=STARTED)
    pods.when(name, "Running")

    restarted = "2026-11-01T00:00:00Z"
    pods.annotate(name, crash="1", crashed_at=FINISHED, restarted_at=restarted)

    def crashed() -> Any:
        status = pods.when(name, "Running")["status"]["containerStatuses"][0]
        return status if status["restartCount"] == 1 else None

    status = until(crashed, what="restart")
    assert status["state"] == {"running": {"startedAt": restarted}}
    ended = status["lastState"]["terminated"]
    assert (ended["startedAt"], ended["finishedAt"]) == (STARTED, FINISHED)
    assert ended["exitCode"] == 1


def test_a_container_may_crash_several_times_before_it_ends(pods: Pods) -> None:
    name = pods.create(crash="3", run_seconds="1")

    status = pods.when(name, "Succeeded")["status"]["containerStatuses"][0]

    assert status["restartCount"] == 3


def test_a_job_completes(pods: Pods) -> None:
    template = {"spec": {**a_pod_spec(), "restartPolicy": "Never"}}
    pods.api.create(pods.jobs, {"metadata": {"name": "backup"}, "spec": {"template": template}})

    def succeeded() -> Any:
        return pods.api.get(f"{pods.jobs}/backup")["status"].get("succeeded")

    assert until(succeeded, what="job succeeded") == 1


def test_a_rollout_leaves_the_metered_pods_behind(pods: Pods) -> None:
    template = {
        "metadata": {"labels": {"app": "bot"}, "finalizers": [FINALIZER]},
        "spec": a_pod_spec(),
    }
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "bot"}}, "template": template}
    pods.api.create(pods.deployments, {"metadata": {"name": "bot"}, "spec": spec})

    def in_phase(phase: str) -> list[str]:
        listed = pods.api.get(pods.path)["items"]
        return [pod["metadata"]["name"] for pod in listed if pod["status"]["phase"] == phase]

    until(lambda: len(in_phase("Running")) == 2, what="first pods run")
    first = in_phase("Running")

    change = {"spec": {"template": {"metadata": {"annotations": {"version": "2"}}}}}
    pods.api.patch(f"{pods.deployments}/bot", change)

    until(lambda: sorted(in_phase("Failed")) == sorted(first), what="old pods ended")
    until(lambda: len(in_phase("Running")) == 2, what="new pods run")
    pods.api.delete(f"{pods.deployments}/bot")
    until(lambda: len(in_phase("Failed")) == 4, what="all ended")
    for name in in_phase("Failed"):
        pods.release(name)


def test_pods_created_while_the_nodes_are_dead_run_when_they_are_back(
    control_plane: Cluster, pods: Pods
) -> None:
    if control_plane.kind != "embedded":
        pytest.skip("the nodes are not ours to kill")
    control_plane.kill9("kwok")
    name = pods.create()
    path = f"{pods.path}/{name}"
    until(lambda: pods.api.get(path)["spec"].get("nodeName"), what="scheduled")

    control_plane.restart("kwok")

    pods.when(name, "Running")


def test_the_operator_may_not_do_what_no_role_gives_it(control_plane: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        control_plane.api("operator").create(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles", {"metadata": {"name": "forbidden"}}
        )


def test_the_audit_log_counts_the_accepted_writes_of_each_user(control_plane: Cluster) -> None:
    log = control_plane.audit_log
    assert log is not None
    api, name = control_plane.api(), f"audit-{uuid.uuid4().hex[:8]}"
    before = audit.position(log)

    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    api.get(f"/api/v1/namespaces/{name}")
    api.delete(f"/api/v1/namespaces/{name}")
    with pytest.raises(urllib.error.HTTPError):
        control_plane.api("metering").delete(f"/api/v1/namespaces/{name}")

    assert audit.count_writes(log, user="admin", since=before) == 2
    metering = "system:serviceaccount:botplane-system:botplane-metering"
    assert audit.count_writes(log, user=metering, since=before) == 0
    assert [r.code for r in audit.requests(log, user=metering, since=before)] == [403]


def test_a_killed_api_server_comes_back_at_the_same_address(control_plane: Cluster) -> None:
    if control_plane.kind != "embedded":
        pytest.skip("the API server is not ours to kill")

    control_plane.kill9("kube-apiserver")
    assert not control_plane.api().is_ready()
    control_plane.restart("kube-apiserver")

    until(control_plane.api().is_ready, what="API server ready again")


def test_nothing_is_left_after_a_stop(tmp_path: Path) -> None:
    layout = embedded.start(tmp_path)
    started = [processes.record(tmp_path, name).pid for name in processes.names(tmp_path)]
    assert len(started) == 5

    embedded.stop(tmp_path)

    assert [pid for pid in started if psutil.pid_exists(pid)] == []
    assert processes.names(tmp_path) == ()
    for port in layout.ports.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


STARTER = """
import sys, time
from pathlib import Path
from tests.support.controlplane import embedded, postgres, watchdog
state = Path(sys.argv[1])
guard = watchdog.watch_over(state)
embedded.start(state)
postgres.start(state)
print("up", flush=True)
time.sleep(600)
"""


def test_nothing_is_left_when_the_starter_is_killed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(state)], cwd=CHECKOUT, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        started = [processes.record(state, name).pid for name in processes.names(state)]
        assert len(started) == 6

        starter.send_signal(signal.SIGKILL)

    def all_gone() -> bool:
        return not any(psutil.pid_exists(pid) for pid in started) and not state.exists()

    until(all_gone, what="everything ended and removed")


def test_a_recycled_process_id_is_not_killed(tmp_path: Path) -> None:
    sleeper = processes.Program(name="sleeper", argv=("/bin/sleep", "60"))
    processes.start(sleeper, tmp_path)
    pid = processes.record(tmp_path, "sleeper").pid
    record = tmp_path / "pids" / "sleeper.json"
    honest = record.read_text()
    started = processes.record(tmp_path, "sleeper").started
    record.write_text(honest.replace(str(started), str(started - 100)))

    processes.stop(tmp_path, ("sleeper",), within=1)

    assert psutil.pid_exists(pid)
    record.write_text(honest)
    processes.stop(tmp_path, ("sleeper",), within=1)
    assert not psutil.pid_exists(pid)
