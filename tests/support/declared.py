"""Tenants, plans and bots as users declare them; what a story does not mention is defaulted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from botplane.api.bot_deployment import BotDeploymentSpec
from botplane.api.plan import PlanSpec
from botplane.api.tenant import TenantSpec
from botplane.bots.exposure import Facilities
from botplane.bots.manifests import Context
from botplane.bots.policy import Rights
from botplane.bots.templates import Templates

ROOT = Path(__file__).parents[2]
TEMPLATES = Templates(ROOT / "templates/k8s")
TENANT_UID = "11111111-1111-4111-8111-111111111111"
BOT_UID = "22222222-2222-4222-8222-222222222222"
MASTER_KEY = b"0123456789abcdef0123456789abcdef"
REPOSITORY = "sniperforge/bot"
FACILITIES = Facilities(
    public_domain="bots.example",
    ingress_class="nginx",
    ingress_namespace="ingress-nginx",
    monitoring_namespace="monitoring",
    backup_image="registry.example/tools/backup:1",
    pod_monitors=True,
)


@cache
def crd(plural: str) -> dict[str, Any]:
    """Return a committed CustomResourceDefinition."""
    text = (ROOT / f"crds/{plural}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    return loaded


def schema_of(plural: str) -> dict[str, Any]:
    """Return the schema of the whole object, as committed."""
    version = crd(plural)["spec"]["versions"][0]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def examples(kind: str) -> list[dict[str, Any]]:
    """Return the objects of a kind in `manifests/examples`."""
    files = sorted((ROOT / "manifests/examples").glob("*.yaml"))
    documents = [d for f in files for d in yaml.safe_load_all(f.read_text(encoding="utf-8"))]
    return [d for d in documents if d["kind"] == kind]


def a_plan(**spec: Any) -> PlanSpec:
    """Return a plan: 10 bots of 4 replicas, 20 cores, 64Gi, one registry, two storage classes."""
    return PlanSpec.model_validate(
        {
            "currency": "USD",
            "fee": "99.00",
            "quota": {"cpu": "20", "memory": "64Gi", "storage": "200Gi"},
            "maxBots": 10,
            "maxReplicas": 4,
            "bot": {"maxCPU": "4", "maxMemory": "8Gi", "maxStorage": "50Gi"},
            "storageClasses": ["standard", "fast-ssd"],
            "imageRegistries": ["registry.example/sniperforge"],
            **spec,
        }
    )


def a_tenant(**spec: Any) -> TenantSpec:
    """Return a tenant with plan professional."""
    return TenantSpec.model_validate(
        {
            "organizationName": "Acme Trading SL",
            "adminEmail": "ops@acme.example",
            "planRef": {"name": "professional"},
            **spec,
        }
    )


def a_bot(**spec: Any) -> BotDeploymentSpec:
    """Return a bot that asks for nothing but version 2.4.1."""
    version = {} if "image" in spec else {"version": "2.4.1"}
    return BotDeploymentSpec.model_validate({"botType": "arbitrage", **version, **spec})


def rights_of(plan: PlanSpec, **more: Any) -> Rights:
    """Return what a plan gives to a bot, without overrides."""
    values: dict[str, Any] = {
        "plan_name": "professional",
        "max_bots": plan.max_bots,
        "max_replicas": plan.max_replicas,
        "image_registries": tuple(plan.image_registries),
        "bot_repository": REPOSITORY,
    }
    return Rights(plan=plan, **(values | more))


def bot_context(spec: BotDeploymentSpec, **more: Any) -> Context:
    """Return bot `arb-1` of tenant `acme`."""
    values: dict[str, Any] = {
        "name": "arb-1",
        "namespace": "tenant-acme",
        "uid": BOT_UID,
        "api_version": "botplane.io/v1alpha1",
        "tenant": "acme",
        "tenant_uid": TENANT_UID,
        "user_labels": {"user.botplane.io/cost-center": "42"},
        "rights": rights_of(a_plan()),
        "suspended": False,
        "gateway_url": "http://botplane-gateway.botplane-system.svc:8545",
        "usage_url": "http://botplane-web.botplane-system.svc:8090",
        "master_key": MASTER_KEY,
        "facilities": FACILITIES,
    }
    return Context(spec=spec, **(values | more))
