"""Attacks on what botplane made in the namespace: limits, services, hosts, pods. Pure."""

from __future__ import annotations

from typing import Any

from botplane.api import labels as lb
from botplane.isolation.attacks import (
    Actor,
    Attack,
    Call,
    Holds,
    Json,
    Refused,
    Scene,
    Step,
    Works,
    create,
    delete,
    patch,
    vap,
)

NETWORKING = "/apis/networking.k8s.io/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
AUTOSCALING = "/apis/autoscaling/v2"
PROBE = "isolation-check"


def object_attacks(scene: Scene) -> list[Attack]:
    """Return the attacks on objects that only botplane writes."""
    return [
        *_managed(scene),
        *_services(scene),
        *_hosts(scene),
        *_metering(scene),
        *_observed(scene),
    ]


def _managed(scene: Scene) -> list[Attack]:
    targets = (
        scene.path("resourcequotas", "plan"),
        scene.path("limitranges", "plan"),
        scene.path("serviceaccounts", "default"),
        scene.path("networkpolicies", "default-deny", NETWORKING),
        scene.path("rolebindings", "botplane-operator", RBAC),
    )
    change = labels_of({"x.example/y": "z"})
    collections = tuple(path.rpartition("/")[0] for path in targets)
    parameters = scene.path("configmaps", "tenant-policy")
    open_policy = {
        "metadata": {"name": PROBE},
        "spec": {
            "podSelector": {},
            "ingress": [{"from": [{"namespaceSelector": {}}]}],
            "egress": [{}],
        },
    }
    role = {"metadata": {"name": PROBE}, "rules": []}
    return [
        Attack(
            id="ISO-020",
            actor="A, A+",
            title="quota, limits, accounts, network policies, role bindings",
            steps=(
                Refused(
                    calls=tuple(patch(Actor.TENANT, path, change) for path in targets)
                    + tuple(delete(Actor.TENANT, path) for path in (*targets, *collections)),
                    reason="cannot (patch|delete|deletecollection) resource",
                ),
                Refused(
                    calls=tuple(patch(Actor.GRANTED, path, change) for path in targets)
                    + tuple(delete(Actor.GRANTED, path) for path in (*targets, *collections)),
                    reason=vap("botplane-managed", "written by botplane only"),
                ),
                Works(call=patch(Actor.ADMIN, targets[0], change)),
            ),
        ),
        Attack(
            id="ISO-020",
            actor="A",
            title="the limits that admission goes by: tenant-policy",
            steps=(
                Refused(
                    calls=(
                        patch(Actor.TENANT, parameters, {"data": {"maxReplicas": "999"}}),
                        patch(Actor.TENANT, parameters, labels_of({lb.MANAGED_BY: None})),
                        delete(Actor.TENANT, parameters),
                        delete(Actor.GRANTED, scene.path("configmaps")),
                    ),
                    reason=vap("botplane-(issued|metadata)"),
                ),
                Works(call=create(Actor.TENANT, scene.path("configmaps"), _named())),
            ),
        ),
        Attack(
            id="ISO-021",
            actor="A+",
            title="roles that hand rights on",
            steps=(
                Refused(
                    calls=(create(Actor.TENANT, scene.path("roles", api=RBAC), role),),
                    reason='cannot create resource "roles"',
                ),
                Refused(
                    calls=(create(Actor.GRANTED, scene.path("roles", api=RBAC), role),),
                    reason=vap("botplane-managed"),
                ),
                Works(call=create(Actor.ADMIN, scene.path("roles", api=RBAC), role)),
            ),
        ),
        Attack(
            id="ISO-075",
            actor="A+",
            title="a network policy that opens the namespace",
            steps=(
                Refused(
                    calls=(
                        create(
                            Actor.GRANTED,
                            scene.path("networkpolicies", api=NETWORKING),
                            open_policy,
                        ),
                    ),
                    reason=vap("botplane-managed"),
                ),
                Works(
                    call=create(
                        Actor.DEPUTY, scene.path("networkpolicies", api=NETWORKING), open_policy
                    )
                ),
            ),
        ),
        Attack(
            id="ISO-075",
            actor="X",
            title="a network policy of somebody else that stands in the namespace",
            steps=(
                Holds(
                    call=Call(
                        actor=Actor.ADMIN,
                        method="GET",
                        path=scene.path("networkpolicies", api=NETWORKING),
                    ),
                    judge=foreign_policies,
                ),
            ),
        ),
    ]


def foreign_policies(listed: Json) -> str:
    """Return which NetworkPolicies are not botplane's: policies add up, so each can only open."""
    names = [
        item["metadata"]["name"]
        for item in listed["items"]
        if item["metadata"].get("labels", {}).get(lb.MANAGED_BY) != lb.MANAGED_BY_VALUE
    ]
    if not names:
        return ""
    return f"not made by botplane, and can only open what is closed: {', '.join(sorted(names))}"


def _services(scene: Scene) -> list[Attack]:
    port = {"ports": [{"port": 80}], "selector": {"x": "y"}}
    shapes: list[dict[str, Any]] = [
        {"type": "NodePort", **port},
        {"type": "LoadBalancer", **port},
        {"type": "ExternalName", "externalName": f"bot.{scene.others[0]}.svc"},
        {"externalIPs": ["8.8.8.8"], **port},
        {"loadBalancerIP": "8.8.8.8", "type": "LoadBalancer", **port},
    ]
    path = scene.path("services")

    def service(spec: dict[str, Any]) -> Json:
        return {"metadata": {"generateName": f"{PROBE}-"}, "spec": spec}

    bent = tuple(
        create(actor, path, service(spec))
        for spec in shapes
        for actor in (Actor.GRANTED, Actor.DEPUTY)
    )
    steps: list[Step] = [
        Refused(calls=bent, reason=vap("botplane-services", "ClusterIP")),
        Refused(
            calls=(create(Actor.TENANT, path, service(port)),),
            reason='cannot create resource "services"',
        ),
        Refused(
            calls=(create(Actor.GRANTED, path, service(port)),),
            reason=vap("botplane-services", "by botplane only"),
        ),
    ]
    if scene.service:
        steps.append(Works(call=create(Actor.DEPUTY, path, service(port))))
        lure = {"status": {"loadBalancer": {"ingress": [{"ip": "8.8.8.8"}]}}}
        status = scene.path("services", scene.service) + "/status"
        steps.append(
            Refused(
                calls=(patch(Actor.GRANTED, status, lure),),
                reason=f"{vap('botplane-services')}|may only be used when",
                statuses=frozenset({403, 422}),
            )
        )
    slices = scene.path("endpointslices", api="/apis/discovery.k8s.io/v1")
    stolen = {
        "metadata": {"name": PROBE, "labels": {"kubernetes.io/service-name": "x"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    }
    storage = scene.path("csistoragecapacities", api="/apis/storage.k8s.io/v1")
    boundless = {"metadata": {"name": PROBE}, "storageClassName": "x", "capacity": "100Ti"}
    return [
        Attack(
            id="ISO-040",
            actor="A+, C",
            title="node ports, load balancers, external names and addresses",
            steps=tuple(steps),
        ),
        Attack(
            id="ISO-041",
            actor="A+",
            title="endpoints that point to somebody else's pod, capacity that nobody has",
            steps=(
                Refused(
                    calls=(
                        create(Actor.GRANTED, slices, stolen),
                        create(Actor.GRANTED, storage, boundless),
                    ),
                    reason=vap("botplane-managed"),
                ),
                Works(call=create(Actor.ADMIN, slices, stolen)),
            ),
        ),
    ]


def _hosts(scene: Scene) -> list[Attack]:
    path = scene.path("ingresses", api=NETWORKING)
    own = f"{PROBE}.{scene.host_domain}"
    base = scene.host_domain.partition(".")[2]
    backend = {"service": {"name": "x", "port": {"number": 80}}}

    def ingress(host: str, url: str = "/", **more: Any) -> Json:
        http = {"paths": [{"path": url, "pathType": "Prefix", "backend": backend}]}
        rule: dict[str, Any] = {"http": http} | ({"host": host} if host else {})
        meta = {"generateName": f"{PROBE}-", "annotations": more.pop("annotations", {})}
        return {"metadata": meta, "spec": {"rules": [rule]} | more}

    bent = [
        ingress("*.example.com"),
        ingress(f"*.{scene.host_domain}"),
        ingress(f"bot.rival.{base}"),
        ingress(f"x{scene.host_domain}"),
        ingress(""),
        ingress(own, tls=[{"hosts": [f"bot.rival.{base}"], "secretName": "x"}]),
        ingress(own, defaultBackend=backend),
        ingress(own, annotations={"nginx.ingress.kubernetes.io/server-snippet": "return 200;"}),
        ingress(own, "/x{};"),
    ]
    return [
        Attack(
            id="ISO-042",
            actor="A+, C",
            title="hosts of others, wildcards, no host, snippets, paths that inject",
            steps=(
                Refused(
                    calls=tuple(create(Actor.DEPUTY, path, body) for body in bent),
                    reason=f"{vap('botplane-ingresses')}|Invalid value",
                    statuses=frozenset({403, 422}),
                ),
                Refused(
                    calls=(create(Actor.GRANTED, path, ingress(own)),),
                    reason=vap("botplane-(managed|ingresses)"),
                ),
                *((Works(call=create(Actor.DEPUTY, path, ingress(own))),) if base else ()),
            ),
        )
    ]


def _metering(scene: Scene) -> list[Attack]:
    if not scene.pod:
        return []
    path = scene.path("pods", scene.pod)
    freed = {"metadata": {"finalizers": None}}
    forged = labels_of({lb.TENANT_UID: "00000000-0000-0000-0000-000000000000", lb.BOT: "another"})
    return [
        Attack(
            id="ISO-057",
            actor="A+, G",
            title="the metering finalizer removed from a running pod",
            steps=(
                Refused(
                    calls=(
                        patch(Actor.GRANTED, path, freed),
                        patch(Actor.GRANTED, f"{path}/status", freed),
                    ),
                    reason=vap("botplane-(metering|metadata|observed)"),
                ),
                Refused(
                    calls=(patch(Actor.COLLECTOR, path, freed),),
                    reason=vap("botplane-metering", "by metering"),
                ),
                Works(call=patch(Actor.METERING, path, freed)),
            ),
        ),
        Attack(
            id="ISO-120",
            actor="A+",
            title="usage put on another's bill by the labels of a pod",
            steps=(
                Refused(
                    calls=(
                        patch(Actor.GRANTED, path, forged),
                        patch(Actor.GRANTED, f"{path}/status", forged),
                    ),
                    reason=vap("botplane-(metadata|observed)", "(labels|status)"),
                ),
                Works(call=patch(Actor.GRANTED, path, labels_of({"team.example/x": "y"}))),
            ),
        ),
    ]


def _observed(scene: Scene) -> list[Attack]:
    quota = scene.path("resourcequotas", "plan") + "/status"
    unused = {"status": {"used": {"count/configmaps": "0"}}}
    target = {"apiVersion": "v1", "kind": "Node", "name": "node-0"}
    bound = {"metadata": {"name": scene.pod or PROBE}, "target": target}
    calls = [patch(Actor.GRANTED, quota, unused)]
    if scene.pod:
        pod = scene.path("pods", scene.pod)
        calls += [
            patch(Actor.GRANTED, pod, {"spec": {"activeDeadlineSeconds": 1}}),
            patch(Actor.GRANTED, f"{pod}/status", {"status": {"phase": "Succeeded"}}),
            create(Actor.GRANTED, f"{pod}/binding", bound),
        ]
    return [
        Attack(
            id="ISO-124",
            actor="A+",
            title="the use of a quota, the end, the node and the spec of a pod, told by hand",
            steps=(
                Refused(
                    calls=tuple(calls), reason=vap("botplane-observed", "in the whole cluster")
                ),
                Works(call=patch(Actor.ADMIN, quota, unused)),
            ),
        )
    ]


def _named() -> Json:
    return {"metadata": {"generateName": f"{PROBE}-"}}


def labels_of(labels: dict[str, str | None]) -> Json:
    """Return a change of labels; None removes one."""
    return {"metadata": {"labels": labels}}
