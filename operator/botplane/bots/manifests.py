"""The objects of a bot. Pure: Python decides every value, the templates show the shape."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from botplane.api import labels as lb
from botplane.api.bot_deployment import BotDeploymentSpec, OnSuspend
from botplane.bots.backup import backup_name, backup_values, volume_size
from botplane.bots.exposure import Facilities, ingress_rules, ingress_values, public_ports
from botplane.bots.keys import derive_key
from botplane.bots.policy import Rights, Sizing, image_of, most_replicas, sizing
from botplane.bots.templates import Templates
from botplane.kube.drift import canonical, digest
from botplane.kube.resources import Manifest

Part = tuple[str, str, dict[str, Any]]
"""Template, kind and values of one object."""

ON_STOP = "/usr/local/bin/on-stop"
"""What a bot image brings to cancel orders or close positions; see docs/howto/bot-image.md."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that the builders need to know of one bot."""

    name: str
    namespace: str
    uid: str
    api_version: str
    spec: BotDeploymentSpec
    tenant: str
    tenant_uid: str
    user_labels: dict[str, str]
    rights: Rights
    suspended: bool
    gateway_url: str
    usage_url: str
    master_key: bytes
    facilities: Facilities
    held_replicas: int | None = 0
    """What the bot's Deployment was last told by us; 0 before there is one, None once an autoscaler
    has told it something else."""


def desired(context: Context, templates: Templates) -> list[Manifest]:
    """Return every object of the bot, configuration before what mounts it."""
    spec = context.spec
    common = _common(context)
    configuration = _configuration(context, common)
    secret = _keys(context, common)
    parts: list[Part] = [
        ("bot-serviceaccount.yaml.j2", "ServiceAccount", common),
        ("bot-configmap.yaml.j2", "ConfigMap", configuration),
        ("bot-secret.yaml.j2", "Secret", secret),
    ]
    if spec.storage is not None:
        parts.append(("bot-pvc.yaml.j2", "PersistentVolumeClaim", _volume(context, common)))
        parts += _backup(context, common)
    content = digest([configuration["configuration"], configuration["rpc_endpoints"], secret])
    parts.append(("bot-deployment.yaml.j2", "Deployment", _deployment(context, common, content)))
    if spec.ports:
        parts.append(("bot-service.yaml.j2", "Service", _service(context, common)))
        parts += _exposure(context, common)
    if most_replicas(spec) > 1:
        values = common | {"selector": selector(context)}
        parts.append(("bot-pdb.yaml.j2", "PodDisruptionBudget", values))
    if spec.autoscaling is not None and not context.suspended:
        parts.append(("bot-hpa.yaml.j2", "HorizontalPodAutoscaler", _scaler(context, common)))
    return [templates.render(template, kind, values) for template, kind, values in parts]


def selector(context: Context) -> dict[str, str]:
    """Return the labels that select the bot's pods; they never change."""
    return {lb.NAME: "bot", lb.INSTANCE: context.name}


def _common(context: Context) -> dict[str, Any]:
    owner = {
        "apiVersion": context.api_version,
        "kind": "BotDeployment",
        "name": context.name,
        "uid": context.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": context.name,
        "namespace": context.namespace,
        "labels": _labels(context),
        "owner_references": [owner],
    }


def _labels(context: Context) -> dict[str, str]:
    return context.user_labels | {
        lb.NAME: "bot",
        lb.INSTANCE: context.name,
        lb.COMPONENT: context.spec.bot_type,
        lb.PART_OF: "botplane",
        lb.MANAGED_BY: lb.MANAGED_BY_VALUE,
        lb.TENANT: context.tenant,
        lb.BOT: context.name,
    }


def _payer(context: Context) -> dict[str, str]:
    """Return the labels that metering reads: whose bill it is on."""
    return {lb.TENANT_UID: context.tenant_uid, lb.BOT_UID: context.uid}


def _configuration(context: Context, common: dict[str, Any]) -> dict[str, Any]:
    return common | {
        "configuration": canonical(context.spec.runtime_config).decode(),
        "rpc_endpoints": canonical({"gateway": context.gateway_url}).decode(),
    }


def _keys(context: Context, common: dict[str, Any]) -> dict[str, Any]:
    def issued(purpose: str) -> str:
        return derive_key(context.master_key, context.uid, purpose)

    def encoded(key: str) -> str:
        return base64.b64encode(key.encode()).decode()

    # A bearer of usage names itself: `<key id>.<secret>`, as the web process reads it.
    usage_key = f"{context.uid}.{issued('usage')}"
    return common | {"gateway_key": encoded(issued("gateway")), "usage_key": encoded(usage_key)}


def _volume(context: Context, common: dict[str, Any]) -> dict[str, Any]:
    storage = context.spec.storage
    assert storage is not None  # noqa: S101 - the caller looked
    chosen = storage.storage_class_name or context.rights.plan.storage_classes[0]
    return common | {
        "labels": common["labels"] | _payer(context),
        "metering_finalizer": lb.METERING_FINALIZER,
        "storage_class": chosen,
        "size": storage.size.canonical,
    }


def _service(context: Context, common: dict[str, Any]) -> dict[str, Any]:
    ports = [
        {"name": p.name, "port": p.container_port, "targetPort": p.name, "protocol": "TCP"}
        for p in context.spec.ports
    ]
    return common | {"selector": selector(context), "ports": ports}


def _exposure(context: Context, common: dict[str, Any]) -> list[Part]:
    spec, facilities = context.spec, context.facilities
    selected = common | {"selector": selector(context)}
    traffic = selected | {"ingress": ingress_rules(spec, facilities)}
    parts: list[Part] = [("bot-networkpolicy.yaml.j2", "NetworkPolicy", traffic)]
    if public_ports(spec):
        values = ingress_values(spec, context.name, context.tenant, facilities)
        parts.append(("bot-ingress.yaml.j2", "Ingress", common | values))
    if spec.metrics is not None and facilities.pod_monitors:
        scraped = selected | {"port": spec.metrics.port, "path": spec.metrics.path}
        parts.append(("bot-podmonitor.yaml.j2", "PodMonitor", scraped))
    return parts


def _backup(context: Context, common: dict[str, Any]) -> list[Part]:
    backup, storage = context.spec.backup, context.spec.storage
    if backup is None or storage is None:
        return []
    named = common | {
        "name": backup_name(context.name),
        "labels": common["labels"] | {lb.COMPONENT: "backup"},
    }
    volume = _volume(context, named) | {"size": volume_size(storage)}
    image = context.facilities.backup_image
    most = context.rights.plan.bot
    job = named | backup_values(backup, context.name, image, most, suspended=context.suspended)
    job["selector"] = selector(context)
    job["pod_labels"] = {lb.NAME: "backup", lb.INSTANCE: context.name, lb.TENANT: context.tenant}
    return [
        ("bot-backup-pvc.yaml.j2", "PersistentVolumeClaim", volume),
        ("bot-backup.yaml.j2", "CronJob", job),
    ]


def _scaler(context: Context, common: dict[str, Any]) -> dict[str, Any]:
    scaling = context.spec.autoscaling
    assert scaling is not None  # noqa: S101 - the caller looked
    targets = (("cpu", scaling.target_cpu_percent), ("memory", scaling.target_memory_percent))
    return common | {
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "metrics": [
            {
                "type": "Resource",
                "resource": {
                    "name": name,
                    "target": {"type": "Utilization", "averageUtilization": percent},
                },
            }
            for name, percent in targets
            if percent is not None
        ],
    }


def _deployment(context: Context, common: dict[str, Any], content: str) -> dict[str, Any]:
    spec = context.spec
    probe = _probe(spec)
    pod_labels = _labels(context) | _payer(context)
    mounts, volumes = zip(*_mounts(context), strict=True)
    return common | {
        "replicas": _replicas(context),
        "selector": selector(context),
        "pod_labels": pod_labels,
        "pod_annotations": {lb.CONFIG_HASH: content},
        "metering_finalizer": lb.METERING_FINALIZER,
        "grace_period_seconds": spec.shutdown.grace_period_seconds,
        "priority_class": context.rights.plan.priority_class_name,
        "pull_secrets": [{"name": ref.name}] if (ref := spec.image_pull_secret_ref) else [],
        "container_name": lb.BOT_CONTAINER,
        "image": image_of(spec, context.rights.bot_repository),
        "environment": _environment(context),
        "ports": [
            {"name": p.name, "containerPort": p.container_port, "protocol": "TCP"}
            for p in spec.ports
        ],
        "resources": _resources(sizing(spec, context.rights.plan)),
        "volume_mounts": list(mounts),
        "volumes": list(volumes),
        "liveness_probe": probe,
        "readiness_probe": probe,
        "pre_stop_command": _pre_stop(spec.shutdown.on_suspend),
    }


def _replicas(context: Context) -> int | None:
    if context.suspended:
        return 0
    scaling = context.spec.autoscaling
    if scaling is not None:
        # Once the autoscaler owns the field, sending it would fight for it. Until then, not sending
        # it would let the API server put 1 there, and stop the others.
        held = context.held_replicas
        return (
            None if held is None else sorted((scaling.min_replicas, held, scaling.max_replicas))[1]
        )
    return 1 if context.spec.replicas is None else context.spec.replicas


def _environment(context: Context) -> list[dict[str, str]]:
    values = {
        "BOTPLANE_BOT": context.name,
        "BOTPLANE_BOT_TYPE": context.spec.bot_type,
        "BOTPLANE_CONFIG": "/config/config.json",
        "BOTPLANE_KEYS": "/secrets/botplane",
        "BOTPLANE_TENANT": context.tenant,
        "BOTPLANE_USAGE_URL": context.usage_url,
        "RPC_URL": context.gateway_url,
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _resources(size: Sizing) -> dict[str, dict[str, str]]:
    return {
        "requests": {
            "cpu": size.cpu.canonical,
            "memory": size.memory.canonical,
            "ephemeral-storage": "64Mi",
        },
        "limits": {
            "cpu": size.cpu_limit.canonical,
            "memory": size.memory_limit.canonical,
            "ephemeral-storage": "1Gi",
        },
    }


def _mounts(context: Context) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    spec = context.spec
    yield _read_only("config", "/config", {"configMap": {"name": context.name}})
    yield _read_only("keys", "/secrets/botplane", {"secret": {"secretName": context.name}})
    for name, reference in (
        ("api-keys", spec.api_keys_secret_ref),
        ("wallet", spec.wallet_keys_secret_ref),
    ):
        if reference is not None:
            source = {"secret": {"secretName": reference.name}}
            yield _read_only(name, f"/secrets/{name}", source)
    yield {"name": "tmp", "mountPath": "/tmp"}, {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}  # noqa: S108 - in the pod
    if spec.storage is not None:
        claim = {"persistentVolumeClaim": {"claimName": context.name}}
        yield {"name": "data", "mountPath": "/data"}, {"name": "data"} | claim


def _read_only(
    name: str, path: str, source: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"name": name, "mountPath": path, "readOnly": True}, {"name": name} | source


def _probe(spec: BotDeploymentSpec) -> dict[str, Any] | None:
    check = spec.health_check
    if check is None:
        return None
    return {
        "httpGet": {"path": check.path, "port": check.port},
        "periodSeconds": check.period_seconds,
        "failureThreshold": check.failure_threshold,
    }


def _pre_stop(mode: OnSuspend) -> list[str] | None:
    return None if mode is OnSuspend.LEAVE_OPEN else [ON_STOP, mode.value]
