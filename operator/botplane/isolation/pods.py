"""Attacks by pods: what a tenant tries when it could make them by hand. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from botplane.api import labels as lb
from botplane.isolation.attacks import (
    CONNECTED,
    Actor,
    Attack,
    Call,
    Refused,
    Scene,
    Works,
    create,
    patch,
    vap,
)

POD_SECURITY = 'violates PodSecurity "restricted'


def a_pod(scene: Scene, **changes: Any) -> dict[str, Any]:
    """Return a pod as a bot's; `container` changes its container, the rest its spec."""
    container = {
        "name": lb.BOT_CONTAINER,
        "image": scene.image,
        "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {
        "serviceAccountName": scene.bot,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    inside = changes.pop("container", {})
    metadata = {
        "generateName": "isolation-check-",
        "labels": {lb.INSTANCE: scene.bot},
        "finalizers": [lb.METERING_FINALIZER],
    }
    return {
        "metadata": metadata | changes.pop("metadata", {}),
        "spec": spec | {"containers": [_merged(container, inside)]} | changes,
    }


def pod_attacks(scene: Scene) -> list[Attack]:
    """Return ISO-030 to ISO-036."""
    return [
        _attack(scene, "ISO-030", "privileged or host-bound pods", POD_SECURITY, HOST_BOUND),
        *(
            _attack(scene, id_, title, vap("botplane-pods", text), changes)
            for id_, title, text, changes in SHAPES
        ),
        Attack(
            id="ISO-031",
            actor="A+",
            title="a token of a bot's service account",
            steps=(
                Refused(
                    calls=(_token(scene, Actor.TENANT),),
                    reason='cannot create resource "serviceaccounts/token"',
                ),
                Refused(calls=(_token(scene, Actor.GRANTED),), reason=vap("botplane-tokens")),
                Works(call=_token(scene, Actor.ADMIN)),
            ),
        ),
        Attack(
            id="ISO-030",
            actor="A+",
            title="a pod made by hand, like a bot's in every field",
            steps=(
                Refused(
                    calls=(create(Actor.TENANT, scene.path("pods"), a_pod(scene)),),
                    reason='cannot create resource "pods"',
                ),
                Refused(
                    calls=(create(Actor.GRANTED, scene.path("pods"), a_pod(scene)),),
                    reason=vap("botplane-pods", "not by hand"),
                ),
                _control(scene),
            ),
        ),
        _entry(scene),
    ]


def _attack(
    scene: Scene, id_: str, title: str, reason: str, changes: list[dict[str, Any]]
) -> Attack:
    calls = tuple(_calls(scene, changes))
    return Attack(
        id=id_,
        actor="A+",
        title=title,
        steps=(Refused(calls=calls, reason=reason), _control(scene)),
    )


def _calls(scene: Scene, changes: list[dict[str, Any]]) -> Iterator[Call]:
    for change in changes:
        # Kubernetes' own controllers are bound by the shape of a pod as well.
        for actor in (Actor.GRANTED, Actor.CONTROLLER):
            yield create(actor, scene.path("pods"), a_pod(scene, **change))


def _control(scene: Scene) -> Works:
    return Works(call=create(Actor.CONTROLLER, scene.path("pods"), a_pod(scene)))


def _token(scene: Scene, actor: Actor) -> Call:
    path = scene.path("serviceaccounts", scene.bot) + "/token"
    return create(actor, path, {"spec": {"expirationSeconds": 600}})


def _entry(scene: Scene) -> Attack:
    nobody = scene.path("pods", "isolation-check-nobody")
    paths = (
        f"{nobody}/exec?command=id&stdout=true",
        f"{nobody}/attach?stdout=true",
        f"{nobody}/portforward",
        f"{nobody}/proxy",
        f"{scene.path('services', 'isolation-check-nobody')}/proxy",
    )

    def enter(actor: Actor) -> tuple[Call, ...]:
        return tuple(Call(actor=actor, method="GET", path=path) for path in paths)

    debug = {"spec": {"ephemeralContainers": [{"name": "debug", "image": scene.image}]}}
    steps: list[Refused | Works] = [
        Refused(calls=enter(Actor.TENANT), reason="cannot (get|create) resource"),
        Refused(calls=enter(Actor.GRANTED), reason=vap("botplane-entry", "verb support")),
        Works(call=enter(Actor.ADMIN)[0], statuses=CONNECTED),
    ]
    if scene.pod:
        path = scene.path("pods", scene.pod) + "/ephemeralcontainers"
        steps.append(
            Refused(
                calls=(patch(Actor.GRANTED, path, debug),),
                reason=f"{vap('botplane-entry', 'verb support')}|{POD_SECURITY}",
            )
        )
    return Attack(
        id="ISO-035", actor="A, A+", title="exec, attach, port-forward, proxy", steps=tuple(steps)
    )


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    nested = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return below | above | nested


def _volume(source: dict[str, Any]) -> dict[str, Any]:
    return {"volumes": [{"name": "v", **source}]}


def _secured(**context: Any) -> dict[str, Any]:
    return {"container": {"securityContext": context}}


HOST_BOUND: list[dict[str, Any]] = [
    _volume({"hostPath": {"path": "/"}}),
    {"hostNetwork": True},
    {"hostPID": True},
    {"hostIPC": True},
    {"container": {"ports": [{"containerPort": 8080, "hostPort": 8080}]}},
    _secured(privileged=True, allowPrivilegeEscalation=True),
    _secured(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
    _secured(runAsUser=0),
    {"securityContext": {"runAsNonRoot": True}},
    _secured(allowPrivilegeEscalation=True),
]
"""The ten of ISO-030; the benchmark looks at them one by one."""

_TOKEN = {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
_CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
_CONTROL_PLANE = {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}

SHAPES: list[tuple[str, str, str, list[dict[str, Any]]]] = [
    (
        "ISO-031",
        "a service account of another",
        "that of its bot",
        [
            {"serviceAccountName": "default"},
            {"serviceAccountName": "default", "metadata": {"labels": {lb.INSTANCE: "default"}}},
        ],
    ),
    (
        "ISO-031",
        "an automounted token",
        "automountServiceAccountToken",
        [{"automountServiceAccountToken": True}],
    ),
    ("ISO-031", "a projected token", "token volumes", [_volume(_TOKEN)]),
    (
        "ISO-032",
        "the priority of the system",
        "priority class system-cluster-critical",
        [{"priorityClassName": "system-cluster-critical"}],
    ),
    ("ISO-033", "a chosen node", "nodeName", [{"nodeName": "node-0"}]),
    ("ISO-033", "nodes of the control plane", "tolerations", [{"tolerations": [_CONTROL_PLANE]}]),
    (
        "ISO-034",
        "images from elsewhere, look-alike registries",
        "images must come from",
        [
            {"container": {"image": image}}
            for image in (
                "evil.example/bot:1",
                "docker.io/library/nginx",
                "registry.example.evil.com/sniperforge/bot:1",
                "registry.example/sniperforge.evil/bot:1",
                "registry.example/sniperforge/../evil/bot:1",
                "sniperforge/bot/../evil:1",
                "sniperforge/bot:5000/evil:1",
                "evil.example/registry.example/sniperforge/bot:1",
            )
        ],
    ),
    (
        "ISO-036",
        "a volume of a driver, of an image, of a claim of its own",
        "csi, image, ephemeral",
        [
            _volume({"csi": {"driver": "secrets.example"}}),
            _volume({"image": {"reference": "evil.example/tools:1"}}),
            _volume({"ephemeral": {"volumeClaimTemplate": {"spec": _CLAIM}}}),
        ],
    ),
    (
        "ISO-036",
        "a shared process namespace",
        "shareProcessNamespace",
        [{"shareProcessNamespace": True}],
    ),
    (
        "ISO-036",
        "a writable root file system",
        "readOnlyRootFilesystem",
        [_secured(readOnlyRootFilesystem=False)],
    ),
    (
        "ISO-062",
        "resources that are not sold",
        "not sold",
        [
            {
                "container": {
                    "resources": {"requests": {name: "1"}, "limits": {name: "1"}},
                }
            }
            for name in ("nvidia.com/gpu", "example.com/fpga")
        ]
        + [{"resourceClaims": [{"name": "gpu", "resourceClaimName": "gpu"}]}],
    ),
    (
        "ISO-120",
        "a bot's pod that is not metered",
        "carries the finalizer",
        [{"metadata": {"finalizers": ["other.example/x"]}}],
    ),
]
