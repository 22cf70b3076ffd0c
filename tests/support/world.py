"""Tenants and bots as a test declares them, and what it may expect of the world."""

from __future__ import annotations

import base64
import time
import urllib.error
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from tests.support.controlplane.api import Api
from tests.support.controlplane.waiting import PATIENCE_SECONDS, NotInTimeError, until
from tests.support.installation import Installation

T = TypeVar("T")
GROUP = "botplane.io/v1alpha1"
PATHS = {
    "Tenant": "/apis/botplane.io/v1alpha1/tenants",
    "Plan": "/apis/botplane.io/v1alpha1/plans",
    "Namespace": "/api/v1/namespaces",
}
NAMESPACED = {
    "BotDeployment": ("/apis/botplane.io/v1alpha1", "botdeployments"),
    "ResourceQuota": ("/api/v1", "resourcequotas"),
    "LimitRange": ("/api/v1", "limitranges"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Secret": ("/api/v1", "secrets"),
    "Service": ("/api/v1", "services"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "Pod": ("/api/v1", "pods"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "Ingress": ("/apis/networking.k8s.io/v1", "ingresses"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "CronJob": ("/apis/batch/v1", "cronjobs"),
    "Job": ("/apis/batch/v1", "jobs"),
    "PodMonitor": ("/apis/monitoring.coreos.com/v1", "podmonitors"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
}


def a_name(word: str = "t") -> str:
    """Return a name that no other test uses."""
    return f"{word}-{uuid.uuid4().hex[:8]}"


def a_tenant(name: str, **spec: Any) -> dict[str, Any]:
    """Return a Tenant; what the test does not mention is plain."""
    plain = {
        "organizationName": f"{name} SL",
        "adminEmail": f"ops@{name}.example",
        "planRef": {"name": "professional"},
    }
    return _object("Tenant", {"name": name}, plain | spec)


def a_bot(tenant: str, name: str = "bot", **spec: Any) -> dict[str, Any]:
    """Return a BotDeployment of a tenant; what the test does not mention is plain."""
    plain = {"botType": "arbitrage", "version": "1.0.0"}
    if "image" in spec:
        del plain["version"]
    return _object("BotDeployment", {"name": name, "namespace": f"tenant-{tenant}"}, plain | spec)


def a_plan(name: str, **spec: Any) -> dict[str, Any]:
    """Return a Plan; what the test does not mention is plain."""
    plain = {
        "currency": "USD",
        "fee": "10.00",
        "quota": {"cpu": "8", "memory": "16Gi", "storage": "20Gi"},
        "maxBots": 3,
        "maxReplicas": 3,
        "bot": {"maxCPU": "2", "maxMemory": "4Gi", "maxStorage": "10Gi"},
        "storageClasses": ["standard"],
    }
    return _object("Plan", {"name": name}, plain | spec)


def path_of(kind: str, namespace: str = "", name: str = "") -> str:
    """Return the API path of an object or of a collection."""
    if kind in PATHS:
        return f"{PATHS[kind]}/{name}".rstrip("/")
    root, plural = NAMESPACED[kind]
    return f"{root}/namespaces/{namespace}/{plural}/{name}".rstrip("/")


def read(api: Api, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
    """Return an object, or None when it does not exist."""
    found: dict[str, Any] | None = api.get(path_of(kind, namespace, name))
    return found


def condition(body: dict[str, Any] | None, type_: str) -> tuple[str, str, str]:
    """Return status, reason and message of a condition; empty when it is not there."""
    for entry in (((body or {}).get("status")) or {}).get("conditions", ()):
        if entry["type"] == type_:
            return entry["status"], entry["reason"], entry["message"]
    return "", "", ""


Key = tuple[str, str, str]


def tenant_key(name: str) -> Key:
    """Return kind, namespace and name of a tenant."""
    return ("Tenant", "", name)


def bot_key(tenant: str, name: str = "bot") -> Key:
    """Return kind, namespace and name of a bot."""
    return ("BotDeployment", f"tenant-{tenant}", name)


class World:
    """A running installation, as a test looks at it."""

    def __init__(self, installed: Installation) -> None:
        self.installed = installed
        self.api = installed.cluster.api()

    def tenant(self, name: str = "", **spec: Any) -> str:
        """Create a tenant and return its name once it is Ready."""
        name = name or a_name()
        self.create(a_tenant(name, **spec))
        self.wait_for(tenant_key(name), "Ready", "True")
        return name

    def bot(self, tenant: str, name: str = "bot", **spec: Any) -> dict[str, Any]:
        """Create a bot and return it once it is Ready."""
        self.create(a_bot(tenant, name, **spec))
        return self.wait_for(bot_key(tenant, name), "Ready", "True")

    def create(self, body: dict[str, Any]) -> None:
        """Create an object with one plain call."""
        meta = body["metadata"]
        self.api.create(path_of(body["kind"], meta.get("namespace", "")), body)

    def patch(self, kind: str, namespace: str, name: str, change: dict[str, Any]) -> None:
        """Change an object by a JSON merge patch."""
        self.api.patch(path_of(kind, namespace, name), change)

    def patch_status(self, kind: str, namespace: str, name: str, status: dict[str, Any]) -> None:
        """Change the status of an object, as its controller would."""
        self.api.patch(f"{path_of(kind, namespace, name)}/status", {"status": status})

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object; one that is gone already is fine."""
        try:
            self.api.delete(path_of(kind, namespace, name))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:
                raise

    def read(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """Return an object, or None when it does not exist."""
        return read(self.api, kind, namespace, name)

    def issued_key(self, tenant: str, key: str, bot: str = "bot") -> str:
        """Return what a bot finds under a key of its Secret, once that is there."""
        secret = self.eventually(
            lambda: self.read("Secret", f"tenant-{tenant}", bot), "the bot has its Secret"
        )
        return base64.b64decode(secret["data"][key]).decode()

    def list(self, kind: str, namespace: str) -> list[dict[str, Any]]:
        """Return all objects of a kind in a namespace."""
        found = self.api.get(path_of(kind, namespace))
        return list(found["items"]) if found else []

    def wait_for(
        self, key: Key, type_: str, value: str, within: float = PATIENCE_SECONDS
    ) -> dict[str, Any]:
        """Return the object once the condition has this status (or this reason)."""

        def judged() -> dict[str, Any] | None:
            body = self.read(*key)
            if body is None or _is_old_news(body):
                return None
            status, reason, _ = condition(body, type_)
            return body if value in (status, reason) else None

        try:
            return until(judged, within=within, what=f"{key} {type_}={value}")
        except NotInTimeError as error:
            raise AssertionError(f"{error}; seen: {condition(self.read(*key), type_)}") from error

    def eventually(
        self, check: Callable[[], T | None], what: str, within: float = PATIENCE_SECONDS
    ) -> T:
        """Return what the check finds, once it finds something."""
        return until(check, within=within, what=what)

    def seconds_until(
        self, check: Callable[[], Any], what: str, within: float = PATIENCE_SECONDS
    ) -> float:
        """Return how long it takes until the check finds something."""
        started = time.monotonic()
        until(check, within=within, what=what, every=0.005)
        return time.monotonic() - started


def _is_old_news(body: dict[str, Any]) -> bool:
    return bool(body["status"]["observedGeneration"] != body["metadata"]["generation"])


def _object(kind: str, meta: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": GROUP, "kind": kind, "metadata": meta, "spec": spec}
