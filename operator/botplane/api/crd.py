"""The five kinds as CustomResourceDefinitions: names, columns, subresources, CEL rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from botplane.api.bot_deployment import (
    BOT_NAME_RULES,
    BOT_SPEC_RULES,
    BotDeploymentSpec,
    BotDeploymentStatus,
)
from botplane.api.labels import GROUP
from botplane.api.plan import PlanSpec, PlanStatus
from botplane.api.schema import structural_schema
from botplane.api.tenant import TENANT_NAME_RULES, TenantSpec, TenantStatus
from botplane.api.types import validations

VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
READY = '.status.conditions[?(@.type=="Ready")]'


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One custom kind and all that its definition says."""

    name: str
    plural: str
    short_names: tuple[str, ...]
    scope: str
    spec: type[BaseModel]
    status: type[BaseModel]
    summary: str
    columns: tuple[tuple[str, str, str], ...]
    """Printer columns: name, type, JSON path."""
    name_rules: tuple[dict[str, Any], ...] = ()
    spec_rules: tuple[dict[str, Any], ...] = ()
    scale: dict[str, str] = field(default_factory=dict)
    selectable: tuple[str, ...] = ()


TENANT = Kind(
    name="Tenant",
    plural="tenants",
    short_names=("tnt",),
    scope="Cluster",
    spec=TenantSpec,
    status=TenantStatus,
    summary="A customer: one namespace with quota, isolation and a billing account.",
    columns=(
        ("Plan", "string", ".spec.planRef.name"),
        ("Ready", "string", f"{READY}.status"),
        ("Status", "string", f"{READY}.reason"),
        ("Bots", "integer", ".status.bots.running"),
        ("Limit", "integer", ".status.bots.limit"),
        ("Bot-Hours", "string", ".status.usage.botHours"),
        ("Cost", "string", ".status.usage.cost"),
        ("Namespace", "string", ".status.namespace"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ),
    name_rules=TENANT_NAME_RULES,
    selectable=(".spec.planRef.name",),
)
BOT_DEPLOYMENT = Kind(
    name="BotDeployment",
    plural="botdeployments",
    short_names=("bot", "bots"),
    scope="Namespaced",
    spec=BotDeploymentSpec,
    status=BotDeploymentStatus,
    summary="A trading bot of the tenant whose namespace it is in.",
    columns=(
        ("Type", "string", ".spec.botType"),
        ("Ready", "string", f"{READY}.status"),
        ("Status", "string", f"{READY}.reason"),
        ("Replicas", "integer", ".status.readyReplicas"),
        ("Bot-Hours", "string", ".status.usage.botHours"),
        ("Cost", "string", ".status.usage.cost"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ),
    name_rules=BOT_NAME_RULES,
    spec_rules=BOT_SPEC_RULES,
    scale={
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)
PLAN = Kind(
    name="Plan",
    plural="plans",
    short_names=("bplan",),
    scope="Cluster",
    spec=PlanSpec,
    status=PlanStatus,
    summary="What a tenant may use and what it pays for it.",
    columns=(
        ("Currency", "string", ".spec.currency"),
        ("Fee", "string", ".spec.fee"),
        ("Max-Bots", "integer", ".spec.maxBots"),
        ("Revision", "integer", ".status.revision"),
        ("Ready", "string", f"{READY}.status"),
        ("Status", "string", f"{READY}.reason"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ),
)
KINDS = (TENANT, BOT_DEPLOYMENT, PLAN)


def definition(kind: Kind) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind, ready to be written as YAML."""
    spec = structural_schema(kind.spec)
    if kind.spec_rules:
        spec |= validations(*kind.spec_rules)
    status = structural_schema(kind.status)
    # Tools that know kstatus see -1 != generation and wait for the operator's first visit.
    status["default"] = {"observedGeneration": -1}
    status["description"] = "What botplane observed and did."
    schema: dict[str, Any] = {
        "type": "object",
        "description": kind.summary,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of the schema."},
            "kind": {"type": "string", "description": "Kind of the object."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    if kind.name_rules:
        schema |= validations(*kind.name_rules)
    message = {"name": "Message", "type": "string", "jsonPath": f"{READY}.message", "priority": 1}
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            *({"name": n, "type": t, "jsonPath": p} for n, t, p in kind.columns),
            message,
        ],
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}} | ({"scale": kind.scale} if kind.scale else {}),
    }
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": list(kind.short_names),
                "categories": ["botplane"],
            },
            "scope": kind.scope,
            "versions": [version],
        },
    }
