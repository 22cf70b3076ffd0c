"""The manifests of example tenants and bots, as files that a reviewer reads.

`python -m tests.support.golden` writes them anew; nothing else does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from botplane.api.bot_deployment import BotDeploymentSpec
from botplane.api.plan import PlanSpec
from botplane.api.tenant import TenantSpec
from botplane.bots.manifests import desired
from botplane.kube.resources import Manifest
from botplane.tenants import manifests as tenants
from botplane.tenants.policy import entitlements
from tests.support.declared import (
    ROOT,
    TEMPLATES,
    TENANT_UID,
    a_bot,
    bot_context,
    examples,
    rights_of,
)

FOLDER = ROOT / "tests/golden"


def cases() -> dict[str, dict[str, str]]:
    """Return the text of each file by case."""
    found = {"tenant-acme": _tenant()}
    for body in examples("BotDeployment"):
        spec = BotDeploymentSpec.model_validate(body["spec"])
        found[f"bot-{body['metadata']['name']}"] = _bot(body["metadata"]["name"], spec)
    found["bot-with-everything"] = _bot("all-1", _everything())
    return found


def write(folder: Path) -> None:
    """Write all files, and remove those of former cases."""
    shutil.rmtree(folder, ignore_errors=True)
    for case, files in cases().items():
        place = folder / case / "expected"
        place.mkdir(parents=True)
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")


def _files(manifests: list[Manifest]) -> dict[str, str]:
    def name(manifest: Manifest) -> str:
        return f"{manifest['kind'].lower()}-{manifest['metadata']['name']}.yaml"

    texts = {
        name(m): yaml.safe_dump(_sent(m), sort_keys=True, width=100, allow_unicode=True)
        for m in manifests
    }
    assert len(texts) == len(manifests)
    return texts


def _sent(manifest: Manifest) -> Manifest:
    """Return a manifest as the wire carries it: plain types, nothing shared."""
    sent: Manifest = json.loads(json.dumps(manifest))
    return sent


def _tenant() -> dict[str, str]:
    body = next(b for b in examples("Tenant") if b["metadata"]["name"] == "acme")
    spec = TenantSpec.model_validate(body["spec"])
    plan = _plan(spec.plan_ref.name)
    context = tenants.Context(
        name="acme",
        uid=TENANT_UID,
        spec=spec,
        rights=entitlements(spec, plan),
        suspended=False,
        operator_namespace="botplane-system",
        operator_account="botplane-operator",
    )
    closed = tenants.isolation(context, tenants.resource_quota(context))
    opened = tenants.allowances(context)
    return _files([tenants.namespace(context), *closed, *opened])


def _bot(name: str, spec: BotDeploymentSpec) -> dict[str, str]:
    context = bot_context(spec, name=name, rights=rights_of(_plan("professional")))
    return _files(desired(context, TEMPLATES))


def _plan(name: str) -> PlanSpec:
    body = next(b for b in examples("Plan") if b["metadata"]["name"] == name)
    return PlanSpec.model_validate(body["spec"])


def _everything() -> BotDeploymentSpec:
    return a_bot(
        replicas=2,
        runtimeConfig={"pair": "SOL/USDC", "greeting": "¡hola! \U0001f600"},
        apiKeysSecretRef={"name": "exchange-keys"},
        walletKeysSecretRef={"name": "wallet"},
        imagePullSecretRef={"name": "registry"},
        resources={"requests": {"cpu": "0.5", "memory": "1.5Gi"}},
        storage={"size": "10Gi", "storageClassName": "fast-ssd"},
        autoscaling={
            "minReplicas": 2,
            "maxReplicas": 4,
            "targetCPUPercent": 70,
            "targetMemoryPercent": 80,
        },
        ports=[
            {"name": "http", "containerPort": 8080, "exposure": "Public"},
            {"name": "metrics", "containerPort": 9090},
        ],
        healthCheck={"path": "/healthz", "port": "http", "periodSeconds": 5},
        metrics={"port": "metrics"},
        backup={"schedule": "0 3 * * *", "retention": 7},
        shutdown={"onSuspend": "LeaveOpen", "gracePeriodSeconds": 30},
    )


if __name__ == "__main__":
    write(FOLDER)
