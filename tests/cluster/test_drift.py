"""Any managed object that is deleted or edited by hand is back, at once."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.world import World

MOST_SECONDS = 5.0
TENANT_OBJECTS = [
    ("ConfigMap", "tenant-policy"),
    ("NetworkPolicy", "default-deny"),
    ("NetworkPolicy", "allow-dns"),
    ("NetworkPolicy", "allow-gateway"),
    ("NetworkPolicy", "allow-internet"),
    ("ResourceQuota", "plan"),
    ("LimitRange", "plan"),
    ("ServiceAccount", "default"),
    ("RoleBinding", "tenant-operators"),
    ("RoleBinding", "botplane-operator"),
]
BOT_OBJECTS = [
    ("ServiceAccount", "bot"),
    ("ConfigMap", "bot"),
    ("Secret", "bot"),
    ("Deployment", "bot"),
    ("Service", "bot"),
    ("HorizontalPodAutoscaler", "bot"),
    ("NetworkPolicy", "bot"),
    ("PodDisruptionBudget", "bot"),
    ("Ingress", "bot"),
    ("PersistentVolumeClaim", "bot.backup"),
    ("CronJob", "bot.backup"),
]
EDITS: dict[tuple[str, str], dict[str, Any]] = {
    ("Namespace", ""): {
        "metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}
    },
    ("ConfigMap", "tenant-policy"): {"data": {"maxBots": "999"}},
    ("NetworkPolicy", "default-deny"): {"spec": {"ingress": [{}]}},
    ("ResourceQuota", "plan"): {"spec": {"hard": {"requests.cpu": "999"}}},
    ("LimitRange", "plan"): {"spec": {"limits": []}},
    ("RoleBinding", "tenant-operators"): {"subjects": []},
    ("ServiceAccount", "bot"): {"automountServiceAccountToken": True},
    ("ConfigMap", "bot"): {"data": {"config.json": "{}"}},
    ("Secret", "bot"): {"data": {"gateway-key": "c3RvbGVu"}},
    ("Deployment", "bot"): {"metadata": {"labels": {"botplane.io/bot": None}}},
    ("Deployment", "bot "): {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}},
    ("Deployment", " bot"): {"metadata": {"ownerReferences": None}},
    ("NetworkPolicy", "allow-dns"): {"spec": {"ingress": [{}], "policyTypes": ["Ingress"]}},
    ("Service", "bot "): {"spec": {"externalIPs": ["8.8.8.8"]}},
    ("ConfigMap", "bot "): {"data": {"more.json": "{}"}},
    ("Service", "bot"): {"spec": {"selector": {"app.kubernetes.io/instance": "other"}}},
    ("HorizontalPodAutoscaler", "bot"): {"spec": {"maxReplicas": 50}},
}


@pytest.fixture(scope="module")
def place(world_of_module: World) -> tuple[World, str]:
    world = world_of_module
    tenant = world.tenant(members=[{"kind": "User", "name": "ana", "role": "Operator"}])
    world.bot(
        tenant,
        ports=[{"name": "http", "containerPort": 8080, "exposure": "Public"}],
        storage={"size": "1Gi"},
        backup={"schedule": "0 3 * * *"},
        autoscaling={"maxReplicas": 3, "targetCPUPercent": 70},
    )
    return world, f"tenant-{tenant}"


@pytest.fixture(scope="module")
def seconds() -> Iterator[list[float]]:
    measured: list[float] = []
    yield measured
    watched = sorted(measured)
    print(
        f"\n{len(watched)} repairs: p50 {statistics.median(watched):.3f} s, max {watched[-1]:.3f} s"
    )


@pytest.mark.parametrize(("kind", "name"), TENANT_OBJECTS + BOT_OBJECTS)
def test_a_deleted_object_is_back(
    place: tuple[World, str], seconds: list[float], kind: str, name: str
) -> None:
    world, namespace = place
    before = world.read(kind, namespace, name)
    assert before is not None

    world.delete(kind, namespace, name)

    def back() -> bool:
        there = world.read(kind, namespace, name)
        if there is None or there["metadata"]["uid"] == before["metadata"]["uid"]:
            return False
        return _content(there) == _content(before)

    seconds.append(world.seconds_until(back, f"{kind} {name} is back", MOST_SECONDS))


@pytest.mark.parametrize(("kind", "name"), EDITS)
def test_an_edited_object_is_as_before(
    place: tuple[World, str], seconds: list[float], kind: str, name: str
) -> None:
    world, namespace = place
    change = EDITS[kind, name]
    where = ("", namespace) if kind == "Namespace" else (namespace, name.strip())
    before = _content(world.read(kind, *where))

    world.patch(kind, *where, change)

    def restored() -> bool:
        return _content(world.read(kind, *where)) == before

    seconds.append(world.seconds_until(restored, f"{kind} {name} is restored", MOST_SECONDS))


def _content(body: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a user would compare: labels and everything that is declared."""
    if body is None:
        return {}
    # The API server chose these when the object was made.
    drawn = {"clusterIP", "clusterIPs", "volumeName"}
    content = {k: v for k, v in body.items() if k not in {"metadata", "status"}}
    if isinstance(content.get("spec"), dict):
        content["spec"] = {k: v for k, v in content["spec"].items() if k not in drawn}
    meta = body["metadata"]
    return content | {"labels": meta.get("labels"), "owners": meta.get("ownerReferences")}
