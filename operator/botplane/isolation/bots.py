"""Attacks by what a tenant may write: bots, Secrets, ConfigMaps and their metadata. Pure."""

from __future__ import annotations

from typing import Any

from botplane.api import labels as lb
from botplane.isolation.attacks import (
    INVALID,
    Actor,
    Attack,
    Call,
    Json,
    Refused,
    Scene,
    Step,
    Works,
    create,
    patch,
    vap,
)

PROBE = "isolation-check"
TOO_LARGE = frozenset({413})
STATUS = {"status": {"replicas": 1000}}


def bot_attacks(scene: Scene) -> list[Attack]:
    """Return the attacks by custom resources and by the tenant's own Secrets and ConfigMaps."""
    return [
        *_schema(scene),
        *_plan(scene),
        *_metadata(scene),
        *_secrets(scene),
        *_volumes(scene),
    ]


def a_bot(scene: Scene, name: str = PROBE, **spec: Any) -> Call:
    """Return the call by which the tenant declares a bot."""
    version = {} if "image" in spec else {"version": "1.0.0"}
    return create(
        Actor.TENANT,
        f"{scene.bots()}?fieldValidation=Strict",
        {
            "apiVersion": "botplane.io/v1alpha1",
            "kind": "BotDeployment",
            "metadata": {"name": name},
            "spec": {"botType": "arbitrage", **version, **spec},
        },
    )


def _schema(scene: Scene) -> list[Attack]:
    wrong_digest = f"{scene.image.partition(':')[0]}@sha256:{'0' * 63}"
    return [
        _attack(
            "ISO-034",
            "an image whose digest has the wrong length",
            (a_bot(scene, image=wrong_digest),),
            "spec.image",
            scene,
        ),
        _attack(
            "ISO-050",
            "a Secret of another namespace by a reference",
            (
                a_bot(scene, walletKeysSecretRef={"name": "w", "namespace": scene.others[0]}),
                a_bot(scene, apiKeysSecretRef={"name": f"{scene.others[0]}/w"}),
            ),
            "SecretRef",
            scene,
        ),
        _attack(
            "ISO-051",
            "a raw pod, container or account by an unknown field",
            (
                a_bot(scene, podSpec={"hostNetwork": True}),
                a_bot(scene, serviceAccountName="default"),
                a_bot(scene, initContainers=[]),
                a_bot(scene, securityContext={}),
                a_bot(scene, nodeName="node-0"),
            ),
            "unknown field",
            scene,
        ),
        _attack(
            "ISO-052",
            "text that injects YAML, a template or a shell",
            (
                a_bot(scene, botType="a\nhostPID: true"),
                a_bot(scene, botType="{{ 7*7 }}"),
                a_bot(scene, image="a.example/b:1\nhostPID: true"),
                a_bot(scene, image="a.example/$(cat /etc/passwd):1"),
            ),
            "spec.(botType|image)",
            scene,
        ),
        Attack(
            id="ISO-054",
            actor="C",
            title="a bot of 4 MB, nested too deep, with too many ports, with too long texts",
            steps=(
                Refused(
                    calls=(a_bot(scene, runtimeConfig={"x": "x" * 4_000_000}),),
                    reason="too large",
                    statuses=TOO_LARGE,
                ),
                Refused(
                    calls=(
                        a_bot(scene, runtimeConfig=_nested(17, {})),
                        a_bot(scene, runtimeConfig=_nested(500, [])),
                    ),
                    reason=vap("botplane-configuration", "nested deeper"),
                ),
                Works(call=a_bot(scene, runtimeConfig=_nested(16, {}))),
                *_ownership(scene),
                Refused(
                    calls=(
                        a_bot(scene, ports=[_port(n) for n in range(1000)]),
                        a_bot(scene, image="a.example/" + "b" * 4000),
                    ),
                    reason="Too (many|long)",
                    statuses=INVALID,
                ),
                Works(call=a_bot(scene)),
            ),
        ),
    ]


def _ownership(scene: Scene) -> tuple[Step, ...]:
    if not scene.bot:
        return ()
    bot = scene.bots(scene.bot)
    return (
        Refused(
            calls=(patch(Actor.TENANT, bot, _owned(500)),),
            reason=vap("botplane-configuration", "managedFields"),
        ),
        Works(call=patch(Actor.TENANT, bot, _owned(16))),
    )


def _plan(scene: Scene) -> list[Attack]:
    scale = {"targetCPUPercent": 50}
    beyond = vap("botplane-bots")
    names = ("tenant-policy", "default", "plan", "default-deny", "allow-dns")
    reserved = tuple(a_bot(scene, name) for name in names)
    calls = (
        a_bot(scene, replicas=1000),
        a_bot(scene, autoscaling={"maxReplicas": 1000, **scale}),
        a_bot(scene, resources={"limits": {"cpu": "500"}}),
        a_bot(scene, resources={"limits": {"memory": "500Ti"}}),
        a_bot(scene, resources={"requests": {"cpu": 500}}),
        a_bot(scene, storage={"size": "500Ti"}),
        a_bot(scene, image="evil.example/bot:1"),
        a_bot(scene, image="sniperforge/bot/../evil:1"),
    )
    steps: list[Step] = [Refused(calls=calls, reason=beyond), Works(call=a_bot(scene, replicas=1))]
    if scene.bot:
        grown = {"spec": {"replicas": 1000}}
        steps += [
            Refused(calls=(patch(Actor.TENANT, scene.bots(scene.bot), grown),), reason=beyond),
            Refused(
                calls=(patch(Actor.TENANT, f"{scene.bots(scene.bot)}/scale", grown),),
                reason=vap("botplane-scale", "replicas are more"),
            ),
            Works(
                call=patch(
                    Actor.TENANT, f"{scene.bots(scene.bot)}/scale", {"spec": {"replicas": 1}}
                )
            ),
        ]
    scaler = {
        "metadata": {"name": PROBE},
        "spec": {
            "maxReplicas": 1000,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"},
        },
    }
    scalers = scene.path("horizontalpodautoscalers", api="/apis/autoscaling/v2")
    return [
        Attack(
            id="ISO-060",
            actor="A",
            title="more replicas, cores, memory or storage than the plan; also by /scale",
            steps=tuple(steps),
        ),
        Attack(
            id="ISO-060",
            actor="A+",
            title="an autoscaler beyond the plan",
            steps=(
                Refused(
                    calls=(create(Actor.TENANT, scalers, scaler),),
                    reason='cannot create resource "horizontalpodautoscalers"',
                ),
                Refused(
                    calls=(create(Actor.GRANTED, scalers, scaler),), reason=vap("botplane-managed")
                ),
                Works(call=create(Actor.ADMIN, scalers, scaler)),
            ),
        ),
        Attack(
            id="ISO-058",
            actor="C",
            title="a bot named like the tenant's own objects, which the operator would overwrite",
            steps=(
                Refused(calls=reserved, reason=vap("botplane-bots", "own objects")),
                Works(call=a_bot(scene)),
            ),
        ),
    ]


def _metadata(scene: Scene) -> list[Attack]:
    maps = scene.path("configmaps")
    forged: list[Json] = [
        {"annotations": {"kopf.zalando.org/last-handled-configuration": "{}"}},
        {"annotations": {lb.APPLIED_HASH: "0"}},
        {"labels": {lb.TENANT: "rival"}},
        {"labels": {lb.MANAGED_BY: lb.MANAGED_BY_VALUE}},
    ]
    held: Json = {"finalizers": ["x.example/y"]}
    owned: Json = {
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "0"}]
    }

    def bot(metadata: Json) -> Call:
        plain = a_bot(scene)
        body = dict(plain.body or {})
        return create(Actor.TENANT, plain.path, {**body, "metadata": {"name": PROBE, **metadata}})

    def configuration(metadata: Json) -> Call:
        return create(Actor.TENANT, maps, {"metadata": {"name": PROBE, **metadata}})

    steps: list[Step] = [
        Refused(
            calls=(
                *(bot(metadata) for metadata in forged),
                *(configuration(metadata) for metadata in forged),
            ),
            reason=vap("botplane-metadata"),
        ),
        Works(call=bot({"labels": {"team.example/x": "y"}})),
    ]
    if scene.bot:
        status = f"{scene.bots(scene.bot)}/status"
        steps += [
            Refused(calls=(patch(Actor.TENANT, status, STATUS),), reason="cannot patch resource"),
            Refused(
                calls=(patch(Actor.GRANTED, status, STATUS),),
                reason=vap("botplane-metadata", "status"),
            ),
            Works(call=patch(Actor.DEPUTY, status, STATUS)),
        ]
    return [
        Attack(
            id="ISO-056",
            actor="A",
            title="forged labels, annotations and status",
            steps=tuple(steps),
        ),
        Attack(
            id="ISO-012",
            actor="A",
            title="a finalizer or an owner on a bot, a finalizer on a ConfigMap",
            steps=(
                Refused(
                    calls=(bot(held), bot(owned), configuration(held)),
                    reason=vap("botplane-metadata", "(finalizers|owner)"),
                ),
                Works(call=configuration({})),
            ),
        ),
    ]


def _secrets(scene: Scene) -> list[Attack]:
    path = scene.path("secrets")
    token = {
        "type": "kubernetes.io/service-account-token",
        "metadata": {
            "name": PROBE,
            "annotations": {"kubernetes.io/service-account.name": scene.bot or "default"},
        },
    }
    kept = {"metadata": {"name": PROBE}, "stringData": {"key": "x"}}
    steps: list[Step] = [
        Refused(
            calls=(create(Actor.TENANT, path, token), create(Actor.GRANTED, path, token)),
            reason=vap("botplane-secrets", "not allowed"),
        ),
        Works(call=create(Actor.TENANT, path, kept)),
    ]
    issued: list[Attack] = []
    if scene.bot:
        theirs = scene.path("secrets", scene.bot)
        change = {"stringData": {"gateway-key": "stolen"}}
        issued = [
            Attack(
                id="ISO-023",
                actor="A",
                title="the keys and the configuration that botplane issued to a bot",
                steps=(
                    Refused(
                        calls=(
                            patch(Actor.TENANT, theirs, change),
                            Call(actor=Actor.TENANT, method="DELETE", path=theirs),
                            patch(
                                Actor.TENANT,
                                scene.path("configmaps", scene.bot),
                                {"data": {"config.json": "{}"}},
                            ),
                        ),
                        reason=vap("botplane-issued", "made by botplane"),
                    ),
                    Works(call=create(Actor.TENANT, path, kept)),
                ),
            )
        ]
    return [
        Attack(
            id="ISO-031",
            actor="A",
            title="a Secret that becomes a token of a service account",
            steps=tuple(steps),
        ),
        *issued,
    ]


def _volumes(scene: Scene) -> list[Attack]:
    path = scene.path("persistentvolumeclaims")

    def claim(**spec: Any) -> Json:
        plain = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "foreign-class",
        }
        return {"metadata": {"generateName": f"{PROBE}-"}, "spec": plain | spec}

    bent = (
        claim(),
        claim(volumeName="pv-of-another", storageClassName=scene.storage_class),
        claim(selector={"matchLabels": {"tenant": "rival"}}, storageClassName=scene.storage_class),
        claim(storageClassName=scene.storage_class),
    )
    return [
        Attack(
            id="ISO-063",
            actor="A+, C",
            title="a volume of another class, one that exists already, or one that is not metered",
            steps=(
                Refused(
                    calls=tuple(create(Actor.DEPUTY, path, body) for body in bent),
                    reason=vap("botplane-volumes"),
                ),
                Refused(
                    calls=tuple(create(Actor.GRANTED, path, body) for body in bent),
                    reason=vap("botplane-(volumes|managed)"),
                ),
                Works(call=create(Actor.ADMIN, path, claim())),
            ),
        )
    ]


def _attack(id_: str, title: str, calls: tuple[Call, ...], reason: str, scene: Scene) -> Attack:
    return Attack(
        id=id_,
        actor="C",
        title=title,
        steps=(
            Refused(calls=calls, reason=reason, statuses=INVALID),
            Works(call=a_bot(scene)),
        ),
    )


def _port(number: int) -> dict[str, Any]:
    return {"name": f"p{number}", "containerPort": 2000 + number}


def _nested(levels: int, innermost: Any) -> dict[str, Any]:
    inside = innermost
    for _ in range(levels - 1):
        inside = [inside] if isinstance(innermost, list) else {"f:in": inside}
    return {"f:in": inside}


def _owned(levels: int) -> Json:
    """Return a change of who owns which field, which everybody may send with an object."""
    fields = {"f:spec": {"f:runtimeConfig": _nested(levels, {})}}
    entry = {"manager": PROBE, "operation": "Update", "apiVersion": "botplane.io/v1alpha1"}
    return {"metadata": {"managedFields": [entry | {"fieldsType": "FieldsV1", "fieldsV1": fields}]}}
