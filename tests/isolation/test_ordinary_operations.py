"""What everybody does every day goes on, with the operator running and with the operator killed.

There are no webhooks, so a dead operator stands in nobody's way: not in the namespaces of tenants,
and not in those that have nothing to do with botplane.
"""

from __future__ import annotations

from typing import Any

from botplane.isolation.attacks import Actor, Call, create, delete, patch
from botplane.isolation.pods import a_pod
from tests.isolation.conftest import MEMBER, Stage
from tests.isolation.deeds import as_user, scene
from tests.support.world import a_bot, a_name, a_plan, a_tenant, path_of

ADMIN = ""
NODE = "the node (as admin)"
SCHEDULER = "system:kube-scheduler"
REPLICAS = "system:serviceaccount:kube-system:replicaset-controller"
AUTOSCALER = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
IMPERSONATED = (MEMBER, SCHEDULER, REPLICAS, AUTOSCALER)
Operation = tuple[str, str, Call]
"""What it is, who does it, and the request."""


def cluster_wide() -> list[Operation]:
    """Return a day in a namespace that botplane does not look after."""
    space, name = a_name("plain"), "x"
    inside = f"/namespaces/{space}"
    core, apps = f"/api/v1{inside}", f"/apis/apps/v1{inside}"
    pod: dict[str, Any] = {"metadata": {"name": name}}
    container = {"name": "c", "image": "registry.example/c:1"}
    pod["spec"] = {"containers": [container], "schedulerName": "by-hand"}
    labels = {"matchLabels": {"app": name}}
    deployment = {"metadata": {"name": name}, "spec": {"replicas": 0, "selector": labels}}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    deployment["spec"] |= {"template": template}  # type: ignore[operator]
    role = {"metadata": {"name": name}, "rules": []}
    return [
        ("namespace: create", ADMIN, _make("/api/v1/namespaces", {"metadata": {"name": space}})),
        ("namespace: change", ADMIN, _change(f"/api/v1{inside}", _annotated())),
        ("account: create", ADMIN, _make(f"{core}/serviceaccounts", {"metadata": {"name": "me"}})),
        *_configuration(core, ADMIN),
        *_pod_life(core, pod, ADMIN, SCHEDULER),
        ("deployment: create", ADMIN, _make(f"{apps}/deployments", deployment)),
        ("deployment: scale", AUTOSCALER, _scale(apps, name)),
        ("token: request", NODE, _make(f"{core}/serviceaccounts/me/token", {"spec": {}})),
        *_leases(f"/apis/coordination.k8s.io/v1{inside}"),
        ("role: create", ADMIN, _make(f"/apis/rbac.authorization.k8s.io/v1{inside}/roles", role)),
        ("namespace: delete", ADMIN, _remove(f"/api/v1{inside}")),
    ]


def of_a_tenant(stage: Stage) -> list[Operation]:
    """Return a day of a tenant: its members', the controllers' and the node's."""
    space, bot = scene(stage.attacker), a_name("bot")
    core, name = f"/api/v1/namespaces/{space.namespace}", a_name("pod")
    pod = a_pod(space, metadata={"name": name}) | {}
    pod["metadata"] = {k: v for k, v in pod["metadata"].items() if k != "generateName"}
    return [
        *_configuration(core, MEMBER),
        ("bot: create", MEMBER, _make(space.bots(), a_bot(stage.attacker, bot))),
        ("bot: change", MEMBER, _change(space.bots(bot), {"spec": {"botType": "grid"}})),
        ("bot: scale", MEMBER, _change(f"{space.bots(bot)}/scale", _replicas(2))),
        ("bot: read", MEMBER, Call(actor=Actor.ADMIN, method="GET", path=space.bots(bot))),
        ("bot: delete", MEMBER, _remove(space.bots(bot))),
        *_pod_life(core, pod, REPLICAS, ""),
        ("deployment: scale", AUTOSCALER, _scale(space.path("", api="/apis/apps/v1"), "bot")),
        ("token: request", NODE, _make(f"{core}/serviceaccounts/bot/token", {"spec": {}})),
        *_leases(f"/apis/coordination.k8s.io/v1/namespaces/{space.namespace}"),
    ]


def of_the_platform() -> list[Operation]:
    """Return what an administrator declares; it is done once the operator is back."""
    plan, tenant = a_name("plan"), a_name("later")
    plans, tenants = path_of("Plan", ""), path_of("Tenant", "")
    opened = {"spec": {"deletion": {"protection": "Disabled"}}}
    return [
        ("plan: create", ADMIN, _make(plans, a_plan(plan))),
        ("plan: change", ADMIN, _change(f"{plans}/{plan}", {"spec": {"maxBots": 3}})),
        ("plan: delete", ADMIN, _remove(f"{plans}/{plan}")),
        ("tenant: create", ADMIN, _make(tenants, a_tenant(tenant))),
        ("tenant: suspend", ADMIN, _change(f"{tenants}/{tenant}", {"spec": {"suspend": True}})),
        ("tenant: unprotect", ADMIN, _change(f"{tenants}/{tenant}", opened)),
        ("tenant: delete", ADMIN, _remove(f"{tenants}/{tenant}")),
        ("node: status", NODE, _change("/api/v1/nodes/node-0/status", _annotated())),
    ]


def test_every_ordinary_operation_works(stage: Stage, mode: str) -> None:
    lines, failed = [], []

    for where, operations in (
        ("elsewhere", cluster_wide()),
        ("tenant", of_a_tenant(stage)),
        ("platform", of_the_platform()),
    ):
        for what, who, call in operations:
            answer = as_user(stage, who if who in IMPERSONATED else "", call)
            line = f"{where:<10} {what:<20} {who or 'admin':<62} {answer.status} {answer.message}"
            lines.append(line.rstrip())
            if answer.status not in {200, 201, 202}:
                failed.append(line)

    print(f"\n{mode}:", *lines, sep="\n")
    assert failed == []


def _make(path: str, body: dict[str, Any]) -> Call:
    return create(Actor.ADMIN, path, body)


def _change(path: str, change: dict[str, Any]) -> Call:
    return patch(Actor.ADMIN, path, change)


def _remove(path: str) -> Call:
    return delete(Actor.ADMIN, path)


def _replicas(number: int) -> dict[str, Any]:
    return {"spec": {"replicas": number}}


def _scale(apps: str, name: str) -> Call:
    """Return the autoscaler's request: it replaces the scale."""
    meta = {"name": name, "namespace": apps.rpartition("/")[2]}
    body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": meta, **_replicas(1)}
    path = f"{apps}/deployments/{name}/scale"
    return Call(actor=Actor.ADMIN, method="PUT", path=path, body=body)


def _annotated() -> dict[str, Any]:
    return {"metadata": {"annotations": {"seen": "yes"}}}


def _configuration(core: str, who: str) -> list[Operation]:
    name = a_name()
    config = {"metadata": {"name": name}, "data": {"k": "v"}}
    secret = {"metadata": {"name": name}, "stringData": {"k": "v"}}
    return [
        ("config map: create", who, _make(f"{core}/configmaps", config)),
        ("config map: change", who, _change(f"{core}/configmaps/{name}", {"data": {"k": "w"}})),
        ("config map: delete", who, _remove(f"{core}/configmaps/{name}")),
        ("secret: create", who, _make(f"{core}/secrets", secret)),
        ("secret: delete", who, _remove(f"{core}/secrets/{name}")),
    ]


def _pod_life(core: str, pod: dict[str, Any], maker: str, scheduler: str) -> list[Operation]:
    """Return a pod's life; without a scheduler the cluster's own binds it."""
    name = pod["metadata"]["name"]
    path = f"{core}/pods/{name}"
    target = {"apiVersion": "v1", "kind": "Node", "name": "node-0"}
    binding = {"metadata": {"name": name}, "target": target}
    condition = {"type": "seen", "status": "True"}
    event = {
        "metadata": {"name": a_name()},
        "involvedObject": {"kind": "Pod", "namespace": core.rpartition("/")[2], "name": name},
    }
    bound = [("pod: bind", scheduler, _make(f"{path}/binding", binding))] if scheduler else []
    return [
        ("pod: create", maker, _make(f"{core}/pods", pod)),
        *bound,
        ("pod: status", NODE, _change(f"{path}/status", {"status": {"conditions": [condition]}})),
        ("event: create", NODE, _make(f"{core}/events", event)),
        ("pod: evict", ADMIN, _make(f"{path}/eviction", {"metadata": {"name": name}})),
    ]


def _leases(root: str) -> list[Operation]:
    name = a_name()
    held = {"metadata": {"name": name}, "spec": {"holderIdentity": "me"}}
    return [
        ("lease: create", ADMIN, _make(f"{root}/leases", held)),
        (
            "lease: renew",
            ADMIN,
            _change(f"{root}/leases/{name}", {"spec": {"leaseTransitions": 1}}),
        ),
        ("lease: delete", ADMIN, _remove(f"{root}/leases/{name}")),
    ]
