"""A world to meter in: namespaces, simulated pods with known lifetimes, and a raw recorder."""

from __future__ import annotations

import json
import os
import random
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import psycopg
import urllib3

from tests.support.controlplane.cluster import Cluster
from tests.support.controlplane.waiting import PATIENCE_SECONDS, until

ROOT = Path(__file__).resolve().parents[2]
FINALIZER = "botplane.io/metering"
NODES = ("node-0", "node-1")
METERING_RULES = [
    {
        "apiGroups": [""],
        "resources": ["pods", "persistentvolumeclaims"],
        "verbs": ["get", "list", "watch", "patch"],
    },
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["get", "list"],
    },
]

Span = tuple[str, int, str, str]
"""Uid of the pod, restart, start and end of one run of the container `bot`."""


class Kube:
    """The API server as the admin sees it, over connections that stay open."""

    def __init__(self, cluster: Cluster) -> None:
        self.server = cluster.server
        context = ssl.create_default_context(cafile=str(cluster.ca))
        headers = {"Authorization": f"Bearer {cluster.tokens['admin']}"}
        self.http = urllib3.PoolManager(
            ssl_context=context, headers=headers, maxsize=12, retries=False
        )

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        media_type: str = "application/json",
    ) -> Any:
        """Send a request and return the answer; None when the object is not there."""
        answer = self.http.request(
            method,
            self.server + path,
            body=None if body is None else json.dumps(body).encode(),
            headers={**self.http.headers, "Content-Type": media_type},
            timeout=120,
        )
        if answer.status == 404:
            return None
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.data[:300]!r}"
        return json.loads(answer.data)

    def patch(self, path: str, body: Any) -> Any:
        """Change an object by a merge patch."""
        return self.send("PATCH", path, body, "application/merge-patch+json")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A pod that the generator made, and the runs that its annotations say it has."""

    name: str
    namespace: str
    uid: str
    spans: tuple[tuple[int, str, str], ...]
    deleted_after: float

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"


@dataclass(kw_only=True)
class Tenant:
    """A tenant's namespace and labels, as the operator would make them."""

    name: str
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    bot_uid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def namespace(self) -> str:
        return f"tenant-{self.name}"

    @property
    def labels(self) -> dict[str, str]:
        """Those of what is metered of its bot."""
        return {
            "app.kubernetes.io/managed-by": "botplane",
            "botplane.io/tenant": self.name,
            "botplane.io/tenant-uid": self.uid,
            "botplane.io/bot": "arb-1",
            "botplane.io/bot-uid": self.bot_uid,
        }


class World:
    """What a test does to the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.kube = Kube(cluster)
        self.tenants: list[Tenant] = []
        _grant(self.kube)

    def tenant(self) -> Tenant:
        """Make a tenant with a restricted namespace."""
        tenant = Tenant(name=f"m{uuid.uuid4().hex[:8]}")
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"metadata": {"name": tenant.namespace, "labels": labels}}
        self.kube.send("POST", "/api/v1/namespaces", body)
        account = f"/api/v1/namespaces/{tenant.namespace}/serviceaccounts/default"
        until(lambda: self.kube.send("GET", account), what="service account")
        self.tenants.append(tenant)
        return tenant

    def pod(self, tenant: Tenant, **more: Any) -> dict[str, Any]:
        """Create a pod; `annotations` drive it, `labels`, `finalizers` and `spec` override."""
        body = _pod(tenant, more.get("annotations", {}))
        body["metadata"]["labels"] |= more.get("labels", {})
        body["metadata"]["finalizers"] = more.get("finalizers", [FINALIZER])
        body["spec"] |= more.get("spec", {})
        path = f"/api/v1/namespaces/{tenant.namespace}/pods"
        created: dict[str, Any] = self.kube.send("POST", path, body)
        return created

    def delete(self, pod: dict[str, Any] | Plan, **options: Any) -> None:
        """Delete a pod."""
        self.kube.send("DELETE", path_of(pod), options or None)

    def running(self, pod: dict[str, Any]) -> dict[str, Any]:
        """Return a pod as soon as it runs."""
        return self._in_phase(pod, "Running")

    def ended(self, pod: dict[str, Any]) -> dict[str, Any]:
        """Return a pod as soon as it has ended by itself."""
        return self._in_phase(pod, "Succeeded")

    def gone(self, pod: dict[str, Any], within: float = PATIENCE_SECONDS) -> None:
        """Wait until a pod is gone."""

        def is_gone() -> bool:
            found = self.kube.send("GET", path_of(pod))
            return found is None or found["metadata"]["uid"] != pod["metadata"]["uid"]

        until(is_gone, within=within, what=f"{path_of(pod)} is gone")

    def is_released(self, pod: dict[str, Any]) -> bool:
        """Say whether a pod is gone or carries no finalizer; its kubelet may still hold it."""
        found = self.kube.send("GET", path_of(pod))
        return found is None or not found["metadata"].get("finalizers")

    def _in_phase(self, pod: dict[str, Any], phase: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            there: dict[str, Any] | None = self.kube.send("GET", path_of(pod))
            return there if there and there["status"].get("phase") == phase else None

        there = until(found, what=f"{path_of(pod)} is {phase}")
        assert there is not None
        return there

    def left(self) -> int:
        """Return how many pods are left in the tenants' namespaces."""
        return sum(
            len(self.kube.send("GET", f"/api/v1/namespaces/{t.namespace}/pods")["items"])
            for t in self.tenants
        )

    def close(self) -> None:
        """Free every pod and remove the namespaces, so that the next test is alone."""
        for tenant in self.tenants:
            self.kube.send("DELETE", f"/api/v1/namespaces/{tenant.namespace}")
            listed = self.kube.send("GET", f"/api/v1/namespaces/{tenant.namespace}/pods")
            for pod in listed["items"]:
                pod["metadata"].setdefault("namespace", tenant.namespace)
                self.kube.patch(path_of(pod), {"metadata": {"finalizers": None}})
                self.delete(pod, gracePeriodSeconds=0)
        until(lambda: self.left() == 0, what="no pods left behind")


def path_of(pod: dict[str, Any] | Plan) -> str:
    """Return the path of a pod."""
    if isinstance(pod, Plan):
        return pod.path
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def make_pods(world: World, count: int, dice: random.Random, pace: float = 1.0) -> list[Plan]:
    """Create pods with random lifetimes of one second to forty days, told within a minute.

    Args:
        world: Where; they are spread over the tenants that it has.
        count: How many.
        dice: What decides on their lives.
        pace: How fast their lives are told.
    """
    tenants = world.tenants or [world.tenant()]
    drawn = [(dice.choice(tenants), _draw(dice, pace)) for _ in range(count)]

    def make(one: tuple[Tenant, tuple[dict[str, str], Any, float]]) -> Plan:
        tenant, (annotations, spans, deleted_after) = one
        metadata = world.pod(tenant, annotations=annotations)["metadata"]
        return Plan(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            spans=spans,
            deleted_after=deleted_after,
        )

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(make, drawn))


class Recorder:
    """Writes down every run that a raw watch shows; knows nothing of metering's own reading.

    It records within a `with` block.
    """

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._starts: dict[tuple[str, int], str] = {}
        self._spans: dict[tuple[str, int], tuple[str, str]] = {}
        self._stop = threading.Event()
        listed = kube.send("GET", "/api/v1/pods?limit=1&resourceVersion=0")
        self._version = listed["metadata"]["resourceVersion"]
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # It may be waiting for the next event.
        if (answer := self._answer) is not None:
            answer.shutdown()
        self._thread.join(30)

    def spans(self, uids: set[str]) -> set[Span]:
        """Return what was recorded of some pods."""
        return {(u, r, *span) for (u, r), span in list(self._spans.items()) if u in uids}

    def restarts(self, uid: str) -> int:
        """Return the highest restart that was seen running, or -1."""
        return max((r for u, r in list(self._starts) if u == uid), default=-1)

    def wait_for_last_run(self, plan: Plan) -> None:
        """Wait until the last run of a pod has been seen."""
        last = plan.spans[-1][0]
        until(lambda: self.restarts(plan.uid) >= last, what=f"{plan.name} runs")

    def _watch(self) -> None:
        while not self._stop.is_set():
            path = f"/api/v1/pods?watch=1&timeoutSeconds=20&resourceVersion={self._version}"
            answer = self._kube.http.request(
                "GET", self._kube.server + path, preload_content=False, timeout=30
            )
            self._answer = answer
            rest = b""
            with suppress(urllib3.exceptions.ProtocolError):
                for chunk in answer.stream(65536):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._note(json.loads(line)["object"])
                    if self._stop.is_set():
                        break
            answer.close()

    def _note(self, pod: dict[str, Any]) -> None:
        self._version = pod["metadata"]["resourceVersion"]
        uid = pod["metadata"]["uid"]
        for status in pod.get("status", {}).get("containerStatuses", []):
            count, state = status["restartCount"], status["state"]
            if "running" in state:
                self._starts[uid, count] = state["running"]["startedAt"]
            ends = [(count, state.get("terminated"))]
            ends.append((count - 1, status.get("lastState", {}).get("terminated")))
            for restart, end in ends:
                if end and end.get("startedAt"):
                    self._spans[uid, restart] = (end["startedAt"], end["finishedAt"])


@contextmanager
def metering(
    cluster: Cluster, database_url: str, log: Path, health_port: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run metering as a process of its own, with only the rights that it is granted."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "operator"),
        "DATABASE_URL": database_url,
        "KUBECONFIG": str(cluster.kubeconfigs["metering"]),
        "HEALTH_PORT": str(health_port or ""),
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", START], env=environment, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


START = """
import signal, sys, threading, os
sys.path.insert(0, os.environ.get("METERING_CODE", sys.path[0]))
from botplane.metering import reconcile
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
port = os.environ["HEALTH_PORT"]
reconcile.run(os.environ["DATABASE_URL"], None, int(port) if port else None, stop)
"""


def billed(database_url: str, uids: set[str]) -> set[Span]:
    """Return the closed runs that Postgres has, segments joined."""
    query = """
        SELECT pod_uid::text, restart, min(started_at), max(ended_at)
        FROM runtime_interval WHERE container = 'bot'
        GROUP BY tenant_id, pod_uid, restart HAVING bool_and(ended_at IS NOT NULL)
    """
    rows = sql(database_url, query)
    return {(uid, restart, _text(a), _text(b)) for uid, restart, a, b in rows if uid in uids}


def sql(database_url: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Ask Postgres."""
    with psycopg.connect(database_url) as connection:
        return connection.execute(query, values).fetchall()


def seconds(spans: set[Span]) -> int:
    """Return how many seconds the runs add up to."""
    return sum(
        int((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
        for _, _, start, end in spans
    )


def delete_all(world: World, recorder: Recorder, plans: list[Plan]) -> None:
    """Delete each pod when its time has come and its last run has begun."""
    began = time.monotonic()
    for plan in sorted(plans, key=lambda plan: plan.deleted_after):
        pass_time(began + plan.deleted_after - time.monotonic())
        recorder.wait_for_last_run(plan)
        world.delete(plan)


def pass_time(seconds: float) -> None:
    """Let the world go on for a while: faults are spread over time."""
    threading.Event().wait(max(0.0, seconds))


def _draw(
    dice: random.Random, pace: float
) -> tuple[dict[str, str], tuple[tuple[int, str, str], ...], float]:
    """Return annotations, the runs they stand for, and when to delete the pod (in seconds)."""
    start = datetime(2026, 10, 1, tzinfo=UTC) + timedelta(seconds=dice.randrange(10 * 86400))
    length = dice.choice(
        [dice.randrange(1, 60), dice.randrange(60, 86400), dice.randrange(3456000)]
    )
    end = start + timedelta(seconds=length)
    begins = dice.uniform(0, 15) / pace
    annotations = {"started-at": _text(start), "run-delay": f"{begins:.1f}s"}
    spans: tuple[tuple[int, str, str], ...] = ((0, _text(start), _text(end)),)
    kind = dice.choice(["finishes", "finishes", "is killed", "is killed", "crashes"])
    if kind == "is killed":
        annotations["killed-at"] = _text(end)
    else:
        annotations |= {
            "finished-at": _text(end),
            "finish-delay": f"{dice.uniform(0, 20) / pace:.1f}s",
        }
    if kind == "crashes":
        crashed = start + timedelta(seconds=dice.randrange(length + 1))
        again = min(end, crashed + timedelta(seconds=dice.randrange(300)))
        annotations |= {
            "crash": "1",
            "crash-delay": f"{dice.uniform(0, 8) / pace:.1f}s",
            "crashed-at": _text(crashed),
            "restarted-at": _text(again),
        }
        spans = ((0, _text(start), _text(crashed)), (1, _text(again), _text(end)))
    return annotations, spans, begins + dice.uniform(0, 35) / pace


def _pod(tenant: Tenant, annotations: dict[str, str]) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"bot-{uuid.uuid4().hex[:10]}",
            "finalizers": [FINALIZER],
            "labels": tenant.labels,
            "annotations": {f"kwok.botplane.io/{k}": v for k, v in annotations.items()},
        },
        "spec": {
            "nodeName": random.choice(NODES),
            "terminationGracePeriodSeconds": 5,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "bot",
                    "image": "bot:1",
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def _grant(kube: Kube) -> None:
    rbac, name = "/apis/rbac.authorization.k8s.io/v1", "test-metering"
    role = {"metadata": {"name": name}, "rules": METERING_RULES}
    binding = {
        "metadata": {"name": name},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": name,
        },
        "subjects": [
            {
                "kind": "ServiceAccount",
                "name": "botplane-metering",
                "namespace": "botplane-system",
            }
        ],
    }
    for kind, body in (("clusterroles", role), ("clusterrolebindings", binding)):
        if kube.send("GET", f"{rbac}/{kind}/{name}") is None:
            kube.send("POST", f"{rbac}/{kind}", body)


def _text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
