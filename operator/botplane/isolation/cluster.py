"""Attacks on the namespace itself and on what is above it: definitions, tenants, roles. Pure."""

from __future__ import annotations

from botplane.api import labels as lb
from botplane.isolation.attacks import (
    INVALID,
    Actor,
    Attack,
    Call,
    Holds,
    Json,
    Refused,
    Scene,
    Works,
    create,
    delete,
    patch,
    vap,
)
from botplane.isolation.objects import PROBE, RBAC, labels_of

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
TENANTS = "/apis/botplane.io/v1alpha1/tenants"
HEAD = {"apiVersion": "botplane.io/v1alpha1", "kind": "Tenant"}


def cluster_attacks(scene: Scene) -> list[Attack]:
    """Return the attacks on namespaces and on cluster-scoped objects."""
    return [*_namespaces(scene), *_cluster(scene)]


def _namespaces(scene: Scene) -> list[Attack]:
    space = f"/api/v1/namespaces/{scene.namespace}"
    changes: list[Json] = [
        labels_of({lb.TENANT: None}),
        labels_of({lb.TENANT_UID: "00000000-0000-0000-0000-000000000000"}),
        labels_of({"pod-security.kubernetes.io/enforce": "privileged"}),
        {"metadata": {"annotations": {f"{lb.GROUP}/adopt-by": "somebody"}}},
    ]
    bare = {"metadata": {"name": scene.namespace}, "spec": {"finalizers": ["kubernetes"]}}
    finalize = Call(actor=Actor.GRANTED, method="PUT", path=f"{space}/finalize", body=bare)
    foreign = Call(
        actor=Actor.NAMESPACES,
        method="PUT",
        path="/api/v1/namespaces/default/status",
        body={"metadata": {"name": "default", "labels": {lb.TENANT: scene.tenant}}},
    )
    owner = {"apiVersion": "v1", "kind": "Namespace", "name": "default", "uid": "0"}
    return [
        Attack(
            id="ISO-005",
            actor="A",
            title="a namespace of one's own, or one that looks like the system's",
            steps=(
                Refused(
                    calls=tuple(
                        create(Actor.TENANT, "/api/v1/namespaces", {"metadata": {"name": name}})
                        for name in ("tenant-isolation-check", "kube-isolation-check")
                    ),
                    reason='cannot create resource "namespaces"',
                ),
                Works(
                    call=create(Actor.ADMIN, "/api/v1/namespaces", {"metadata": {"name": PROBE}})
                ),
            ),
        ),
        Attack(
            id="ISO-010",
            actor="A+",
            title="the namespace's tenant or Pod Security label, also by /status and /finalize",
            steps=(
                Refused(
                    calls=(
                        *(patch(Actor.GRANTED, space, change) for change in changes),
                        *(patch(Actor.GRANTED, f"{space}/status", change) for change in changes),
                        finalize,
                    ),
                    reason=vap("botplane-namespaces"),
                ),
                Refused(
                    calls=(patch(Actor.TENANT, space, changes[0]),),
                    reason='cannot patch resource "namespaces"',
                ),
                Works(call=patch(Actor.GRANTED, space, labels_of({"team.example/x": "y"}))),
            ),
        ),
        Attack(
            id="ISO-011",
            actor="X",
            title="a namespace that is no tenant's becomes one by its label",
            steps=(
                Refused(calls=(foreign,), reason=vap("botplane-namespaces", "labels")),
                Works(
                    call=patch(
                        Actor.ADMIN, "/api/v1/namespaces/default", labels_of({"x.example/y": "z"})
                    )
                ),
            ),
        ),
        Attack(
            id="ISO-012",
            actor="A+",
            title="a finalizer or an owner on the namespace; deleting it",
            steps=(
                Refused(
                    calls=(
                        patch(Actor.GRANTED, space, {"metadata": {"finalizers": ["x.example/y"]}}),
                        patch(Actor.GRANTED, space, {"metadata": {"ownerReferences": [owner]}}),
                        delete(Actor.GRANTED, space),
                    ),
                    reason=vap("botplane-namespaces"),
                ),
                Works(call=patch(Actor.GRANTED, space, labels_of({"team.example/x": "y"}))),
            ),
        ),
        Attack(
            id="ISO-013",
            actor="X",
            title="Pod Security weakened by an administrator without the verb bypass",
            steps=(
                Refused(
                    calls=(patch(Actor.GRANTED, space, changes[2]),),
                    reason=vap("botplane-namespaces", "Pod Security"),
                ),
                Works(call=patch(Actor.ADMIN, space, changes[2])),
            ),
        ),
    ]


def _cluster(scene: Scene) -> list[Attack]:
    definition = f"{DEFINITIONS}/botdeployments.botplane.io"
    confirm = {"annotations": {f"{lb.GROUP}/confirm-delete": "botdeployments.botplane.io"}}
    tenant = {"organizationName": "X", "adminEmail": "x@x.example", "planRef": {"name": "x"}}
    wrong = ("kube-system", "default", "a" * 64, "-a", "A", "a.b", "openshift-x", "system")

    def named(name: str) -> Call:
        return create(Actor.ADMIN, TENANTS, {**HEAD, "metadata": {"name": name}, "spec": tenant})

    configurations = "/apis/admissionregistration.k8s.io/v1"
    return [
        Attack(
            id="ISO-081",
            actor="A, X",
            title="tenant names that are reserved, too long or ambiguous",
            steps=(
                Refused(
                    calls=tuple(named(name) for name in wrong),
                    reason="metadata.name|name",
                    statuses=INVALID,
                ),
                Works(call=named("isolation-check-a-b")),
            ),
        ),
        Attack(
            id="ISO-100",
            actor="X",
            title="a protected tenant deleted",
            steps=(
                Refused(
                    calls=(delete(Actor.ADMIN, f"{TENANTS}/{scene.tenant}"),),
                    reason=vap("botplane-tenant-deletion", "protected"),
                ),
                Works(
                    call=patch(
                        Actor.ADMIN,
                        f"{TENANTS}/{scene.tenant}",
                        {"spec": {"deletion": {"protection": "Disabled"}}},
                    )
                ),
            ),
        ),
        Attack(
            id="ISO-101",
            actor="X",
            title="our definitions deleted, with all tenants and bots",
            steps=(
                Refused(
                    calls=(delete(Actor.ADMIN, definition),),
                    reason=vap("botplane-definitions", "deletes every"),
                ),
                Works(call=patch(Actor.ADMIN, definition, {"metadata": confirm})),
            ),
        ),
        Attack(
            id="ISO-111",
            actor="X",
            title="a webhook of ours that could stop the cluster",
            steps=tuple(
                Holds(
                    call=Call(actor=Actor.ADMIN, method="GET", path=f"{configurations}/{kind}"),
                    judge=_no_webhook,
                )
                for kind in ("validatingwebhookconfigurations", "mutatingwebhookconfigurations")
            ),
        ),
        Attack(
            id="ISO-122",
            actor="X",
            title="rights of the operator and of metering: no wildcard, no way up",
            steps=tuple(
                Holds(
                    call=Call(
                        actor=Actor.ADMIN, method="GET", path=f"{RBAC}/clusterroles/botplane:{name}"
                    ),
                    judge=_modest,
                )
                for name in ("operator", "metering", "tenant-operator", "tenant-viewer")
            ),
        ),
    ]


def _no_webhook(document: Json) -> str:
    ours = [w["metadata"]["name"] for w in document["items"] if "botplane" in str(w)]
    return f"webhooks of botplane: {', '.join(ours)}" if ours else ""


def _modest(role: Json) -> str:
    for rule in role["rules"]:
        verbs = set(rule["verbs"])
        if "*" in verbs or "*" in rule.get("resources", ()) or "*" in rule.get("apiGroups", ()):
            return f"a wildcard in {rule}"
        if verbs & {"escalate", "impersonate", "bypass"}:
            return f"a way up in {rule}"
        if "bind" in verbs and not rule.get("resourceNames"):
            return f"bind without names in {rule}"
    return ""
