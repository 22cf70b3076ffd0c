"""The multi-tenancy benchmark (kubectl-mtb), row by row: MTB 1 to 23. Pure.

Unlike the original, a row holds only when the call is refused for the right reason.
"""

from __future__ import annotations

from typing import Any

from botplane.api import labels as lb
from botplane.isolation.access import ANYBODY, ISOLATION_KINDS, MEMBER
from botplane.isolation.attacks import (
    Actor,
    Attack,
    Call,
    Holds,
    Json,
    MayNot,
    Refused,
    Scene,
    Step,
    Verdict,
    Works,
    create,
    delete,
    patch,
    vap,
)
from botplane.isolation.pods import POD_SECURITY, a_pod

VERBS = ("create", "update", "patch", "delete", "deletecollection")


def benchmark(scene: Scene) -> list[Attack]:
    """Return the 23 rows in their order."""
    network = "rows of the network are enforced by the node's network"
    return [
        _row(1, "access to cluster resources", MayNot(namespace="", allowed=ANYBODY)),
        _row(2, "multitenant resources", *_managed(scene)),
        _pods(scene, 3, "added capabilities", [_inside(_capabilities("SYS_ADMIN"))]),
        _pods(
            scene,
            4,
            "running as root",
            [
                {"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}},
                _inside({"runAsUser": 0}),
            ],
        ),
        _pods(
            scene,
            5,
            "privileged containers",
            [_inside({"privileged": True, "allowPrivilegeEscalation": True})],
        ),
        _pods(scene, 6, "privilege escalation", [_inside({"allowPrivilegeEscalation": True})]),
        _row(
            7,
            "modification of resource quotas",
            MayNot(
                namespace=scene.namespace,
                only=("resourcequotas",),
                allowed=frozenset({"get resourcequotas", "list resourcequotas"})
                | {"watch resourcequotas"},
                granted=("get resourcequotas",),
            ),
        ),
        _row(
            8,
            "access to other tenants' resources",
            *(MayNot(namespace=other) for other in scene.others),
            MayNot(
                namespace=scene.namespace,
                only=("pods",),
                allowed=MEMBER,
                granted=("list pods",),
            ),
        ),
        _row(9, "quota of cpu, memory and storage", Holds(call=_quota(scene), judge=_amounts)),
        _row(10, "quota of object counts", Holds(call=_quota(scene), judge=_counts)),
        _pods(scene, 11, "hostPath volumes", [_volume({"hostPath": {"path": "/"}})]),
        _row(12, "NodePort services", *_node_port(scene)),
        _pods(
            scene,
            13,
            "host network and host ports",
            [
                {"hostNetwork": True},
                {"container": {"ports": [{"containerPort": 8080, "hostPort": 8080}]}},
            ],
        ),
        _pods(scene, 14, "host PID", [{"hostPID": True}]),
        _pods(scene, 15, "host IPC", [{"hostIPC": True}]),
        _known(
            16,
            "imagePullPolicy Always",
            Verdict.NEEDS_NODE,
            "kubelets of 1.35 and newer check the right to a cached image themselves",
        ),
        _pods(
            scene,
            17,
            "volumes that are not claims",
            [
                _volume({"nfs": {"server": "nfs.example", "path": "/"}}),
                _volume({"iscsi": {"targetPortal": "x", "iqn": "iqn.2026-11.example:x", "lun": 0}}),
                _volume({"hostPath": {"path": "/"}}),
            ],
        ),
        _known(18, "reclaim policy Delete", Verdict.NEEDS_NODE, "ISO-064: a storage driver's"),
        _row(19, "use of existing volumes", *_existing_volume(scene)),
        _known(20, "network access across tenants", Verdict.NEEDS_NODE, network),
        _self_service(scene, 21, "network policies", "networkpolicies.networking.k8s.io"),
        _self_service(scene, 22, "roles", "roles.rbac.authorization.k8s.io"),
        _self_service(scene, 23, "role bindings", "rolebindings.rbac.authorization.k8s.io"),
    ]


def _row(number: int, title: str, *steps: Step) -> Attack:
    return Attack(id=f"ISO-MTB-{number:02}", actor="A", title=title, steps=steps)


def _known(number: int, title: str, verdict: Verdict, reason: str) -> Attack:
    return Attack(id=f"ISO-MTB-{number:02}", actor="A", title=title, verdict=verdict, reason=reason)


def _pods(scene: Scene, number: int, title: str, changes: list[dict[str, Any]]) -> Attack:
    path = scene.path("pods")
    calls = tuple(create(Actor.GRANTED, path, a_pod(scene, **change)) for change in changes)
    control = create(Actor.CONTROLLER, path, a_pod(scene))
    return _row(number, title, Refused(calls=calls, reason=POD_SECURITY), Works(call=control))


def _managed(scene: Scene) -> tuple[Step, ...]:
    quota = scene.path("resourcequotas", "plan")
    policy = scene.path("networkpolicies", "default-deny", "/apis/networking.k8s.io/v1")
    change = {"metadata": {"labels": {"x.example/y": "z"}}}
    return (
        Refused(
            calls=tuple(delete(Actor.TENANT, path) for path in (quota, policy)),
            reason="cannot delete resource",
        ),
        Refused(
            calls=(
                *(delete(Actor.GRANTED, path) for path in (quota, policy)),
                *(patch(Actor.GRANTED, path, change) for path in (quota, policy)),
            ),
            reason=vap("botplane-managed"),
        ),
        MayNot(
            namespace=scene.namespace,
            only=ISOLATION_KINDS,
            allowed=MEMBER,
            granted=("get resourcequotas",),
        ),
    )


def _node_port(scene: Scene) -> tuple[Step, ...]:
    def service(type_: str) -> Json:
        spec = {"type": type_, "ports": [{"port": 80}], "selector": {lb.INSTANCE: "x"}}
        return {"metadata": {"generateName": "isolation-check-"}, "spec": spec}

    path = scene.path("services")
    return (
        Refused(
            calls=(create(Actor.GRANTED, path, service("NodePort")),),
            reason=vap("botplane-services", "ClusterIP"),
        ),
        Works(call=create(Actor.DEPUTY, path, service("ClusterIP"))),
    )


def _existing_volume(scene: Scene) -> tuple[Step, ...]:
    def claim(**spec: Any) -> Json:
        plain = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": scene.storage_class,
        }
        named = {"generateName": "isolation-check-", "finalizers": [lb.METERING_FINALIZER]}
        return {"metadata": named, "spec": plain | spec}

    path = scene.path("persistentvolumeclaims")
    bent = (claim(volumeName="foreign"), claim(selector={"matchLabels": {"x": "y"}}))
    return (
        Refused(
            calls=tuple(create(Actor.DEPUTY, path, body) for body in bent),
            reason=vap("botplane-volumes", "a volume of a tenant is new"),
        ),
        Works(call=create(Actor.DEPUTY, path, claim())),
    )


def _self_service(scene: Scene, number: int, what: str, resource: str) -> Attack:
    steps = (MayNot(namespace=scene.namespace, only=(resource,)),)
    return Attack(
        id=f"ISO-MTB-{number:02}",
        actor="A",
        title=f"self-service of {what}",
        steps=steps,
        verdict=Verdict.DEVIATES,
        reason="level 2 wants it; our tenants get no rights on isolation, which is what is checked",
    )


def _quota(scene: Scene) -> Call:
    return Call(actor=Actor.ADMIN, method="GET", path=scene.path("resourcequotas", "plan"))


def _amounts(quota: Json) -> str:
    return _lacking(
        quota, "requests.cpu", "limits.cpu", "requests.memory", "limits.memory", "requests.storage"
    )


def _counts(quota: Json) -> str:
    wanted = ("pods", "services", "persistentvolumeclaims", "count/secrets", "count/configmaps")
    zero = ("services.nodeports", "services.loadbalancers")
    sold = [name for name in zero if quota["spec"]["hard"].get(name) != "0"]
    return _lacking(quota, *wanted, *zero) or (f"not zero: {', '.join(sold)}" if sold else "")


def _lacking(quota: Json, *names: str) -> str:
    missing = [name for name in names if name not in quota["spec"]["hard"]]
    return f"the quota lacks {', '.join(missing)}" if missing else ""


def _inside(context: dict[str, Any]) -> dict[str, Any]:
    return {"container": {"securityContext": context}}


def _capabilities(name: str) -> dict[str, Any]:
    return {"capabilities": {"drop": ["ALL"], "add": [name]}}


def _volume(source: dict[str, Any]) -> dict[str, Any]:
    return {"volumes": [{"name": "v", **source}]}
