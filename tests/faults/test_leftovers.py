"""What an older version of botplane has made, and this one does not want, goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.support.installation import Installation
from tests.support.world import World, bot_key

LEFT = "from-an-older-version"
NOTHING = {"podSelector": {}, "policyTypes": ["Ingress"]}
POD = {"containers": [{"name": "bot", "image": "sniperforge/bot:1"}], "restartPolicy": "Never"}
OF_TENANTS: dict[str, dict[str, Any]] = {
    "ConfigMap": {"apiVersion": "v1"},
    "ServiceAccount": {"apiVersion": "v1"},
    "LimitRange": {"apiVersion": "v1", "spec": {"limits": []}},
    "ResourceQuota": {"apiVersion": "v1", "spec": {"hard": {"count/jobs.batch": "100"}}},
    "NetworkPolicy": {"apiVersion": "networking.k8s.io/v1", "spec": NOTHING},
    "RoleBinding": {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "subjects": [],
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "botplane:tenant-viewer",
        },
    },
}
OF_BOTS: dict[str, dict[str, Any]] = {
    "Secret": {"apiVersion": "v1"},
    "Service": {"apiVersion": "v1", "spec": {"ports": [{"port": 80}]}},
    "PersistentVolumeClaim": {
        "apiVersion": "v1",
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "standard",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    },
    "PodDisruptionBudget": {"apiVersion": "policy/v1", "spec": {"maxUnavailable": 1}},
    "Ingress": {
        "apiVersion": "networking.k8s.io/v1",
        "spec": {"defaultBackend": {"service": {"name": "bot", "port": {"number": 80}}}},
    },
    "CronJob": {
        "apiVersion": "batch/v1",
        "spec": {
            "schedule": "0 0 1 1 *",
            "suspend": True,
            "jobTemplate": {"spec": {"template": {"spec": POD}}},
        },
    },
}


@pytest.fixture(scope="module")
def place(botplane: Installation) -> tuple[World, str]:
    world = World(botplane)
    tenant = world.tenant()
    world.bot(tenant)
    return world, tenant


def test_the_leftovers_of_a_tenant_go(place: tuple[World, str]) -> None:
    world, tenant = place
    namespace = f"tenant-{tenant}"
    for kind, content in OF_TENANTS.items():
        world.create(_left(kind, namespace, content, {"botplane.io/tenant": tenant}))

    world.eventually(lambda: not _there(world, namespace, OF_TENANTS), "all of them have gone")


def test_the_leftovers_of_a_bot_go(place: tuple[World, str]) -> None:
    world, tenant = place
    namespace = f"tenant-{tenant}"
    bot = world.read(*bot_key(tenant))
    assert bot is not None
    owner = {"apiVersion": bot["apiVersion"], "kind": "BotDeployment", "name": "bot"}
    for kind, content in OF_BOTS.items():
        left = _left(kind, namespace, content, {"botplane.io/bot": "bot"})
        left["metadata"]["ownerReferences"] = [
            owner | {"uid": bot["metadata"]["uid"], "controller": True}
        ]
        world.create(left)

    world.eventually(lambda: not _there(world, namespace, OF_BOTS), "all of them have gone")


def _there(world: World, namespace: str, kinds: Iterable[str]) -> list[str]:
    return [kind for kind in kinds if world.read(kind, namespace, LEFT) is not None]


def _left(
    kind: str, namespace: str, content: dict[str, Any], labels: dict[str, str]
) -> dict[str, Any]:
    managed = {"app.kubernetes.io/managed-by": "botplane"}
    meta = {"name": LEFT, "namespace": namespace, "labels": managed | labels}
    return {"kind": kind, "metadata": meta, **content}
