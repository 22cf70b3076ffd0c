"""Malformed specs are refused by the API server itself, with the field named."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.support.installation import CommandFailedError
from tests.support.world import World, a_bot, a_name, a_plan, a_tenant

TENANT = a_tenant("acme")
BOT = a_bot("acme", ports=[{"name": "http", "containerPort": 8080}])
BOT["metadata"]["namespace"] = "default"
PLAN = a_plan("a-plan")
PRICE = {"meter": "bot_seconds", "model": "PerUnit", "tiers": [{"unitPrice": "1"}]}


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return the object with one field set, or removed for an ellipsis."""
    body = copy.deepcopy(body)
    *parents, last = path.split(".")
    node = body
    for part in parents:
        node = node.setdefault(part, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return body


MALFORMED = {
    "a tenant without a plan": (changed(TENANT, "spec.planRef", ...), "spec.planRef"),
    "a tenant without a spec": (changed(TENANT, "spec", ...), "spec"),
    "an e-mail without @": (changed(TENANT, "spec.adminEmail", "nobody"), "spec.adminEmail"),
    "a reserved tenant name": (changed(TENANT, "metadata.name", "kube-acme"), "metadata.name"),
    "a tenant name of 64 letters": (changed(TENANT, "metadata.name", "a" * 64), "metadata.name"),
    "an anchor day that February lacks": (
        changed(TENANT, "spec.billing.anchorDay", 31),
        "spec.billing.anchorDay",
    ),
    "money as a number": (
        changed(TENANT, "spec.billing.spendLimit", 500),
        "spec.billing.spendLimit",
    ),
    "negative money": (changed(TENANT, "spec.billing.spendLimit", "-1"), "spec.billing.spendLimit"),
    "an unknown role": (
        changed(TENANT, "spec.members", [{"kind": "User", "name": "x", "role": "Root"}]),
        "spec.members[0].role",
    ),
    "the same member twice": (
        changed(TENANT, "spec.members", [{"kind": "User", "name": "x", "role": "Viewer"}] * 2),
        "spec.members[1]",
    ),
    "a label key with a slash": (
        changed(TENANT, "spec.configuration.propagateLabels", {"a/b": "c"}),
        "spec.configuration.propagateLabels",
    ),
    "a bot with neither version nor image": (changed(BOT, "spec.version", ...), "`version`"),
    "a bot with both version and image": (changed(BOT, "spec.image", "a.example/b:1"), "`version`"),
    "an upper-case bot type": (changed(BOT, "spec.botType", "Arbitrage"), "spec.botType"),
    "a privileged port": (
        changed(BOT, "spec.ports", [{"name": "http", "containerPort": 80}]),
        "spec.ports[0].containerPort",
    ),
    "a health check on no port": (
        changed(BOT, "spec.healthCheck", {"port": "admin"}),
        "spec.healthCheck",
    ),
    "fewer most than least replicas": (
        changed(
            BOT, "spec.autoscaling", {"minReplicas": 3, "maxReplicas": 2, "targetCPUPercent": 70}
        ),
        "minReplicas",
    ),
    "autoscaling without a target": (
        changed(BOT, "spec.autoscaling", {"maxReplicas": 2}),
        "targetCPUPercent",
    ),
    "a backup without a volume": (
        changed(BOT, "spec.backup", {"schedule": "0 3 * * *"}),
        "spec.backup",
    ),
    "a quantity of nonsense": (
        changed(BOT, "spec.resources", {"requests": {"cpu": "lots"}}),
        "spec.resources.requests.cpu",
    ),
    "a negative quantity": (
        changed(BOT, "spec.resources", {"limits": {"memory": "-1Gi"}}),
        "spec.resources.limits.memory",
    ),
    "a raw pod spec": (changed(BOT, "spec.podSpec", {"hostNetwork": True}), "spec.podSpec"),
    "a secret of another namespace": (
        changed(BOT, "spec.walletKeysSecretRef", {"name": "w", "namespace": "kube-system"}),
        "spec.walletKeysSecretRef.namespace",
    ),
    "an injected image": (changed(BOT, "spec.image", "a.example/b:1\nhostPID: true"), "spec.image"),
    "a plan without a quota": (changed(PLAN, "spec.quota", ...), "spec.quota"),
    "a price with a second open tier": (
        changed(PLAN, "spec.prices", [PRICE | {"tiers": [{"unitPrice": "1"}, {"unitPrice": "2"}]}]),
        "spec.prices[0].tiers",
    ),
    "a price with 19 decimals": (
        changed(PLAN, "spec.prices", [PRICE | {"tiers": [{"unitPrice": "0." + "1" * 19}]}]),
        "spec.prices[0].tiers[0].unitPrice",
    ),
    "two prices of one meter": (changed(PLAN, "spec.prices", [PRICE, PRICE]), "spec.prices[1]"),
    "a cap on each trade where losses count": (
        changed(PLAN, "spec.commission", {"netting": "Period", "capPerTrade": "5"}),
        "spec.commission.capPerTrade",
    ),
    "an unknown price model": (
        changed(PLAN, "spec.prices", [PRICE | {"model": "Guess"}]),
        "spec.prices[0].model",
    ),
}


@pytest.mark.parametrize(("body", "field"), MALFORMED.values(), ids=MALFORMED.keys())
def test_the_field_is_named(world: World, body: dict[str, Any], field: str) -> None:
    create = ("create", "--dry-run=server", "--validate=strict", "-f", "-")

    with pytest.raises(CommandFailedError) as refused:
        world.installed.kubectl(*create, text=json.dumps(body))

    assert field in str(refused.value)


def test_the_unchanged_objects_are_accepted(world: World) -> None:
    for body in (TENANT, BOT, PLAN):
        named = changed(body, "metadata.name", a_name())
        world.installed.kubectl("create", "--dry-run=server", "-f", "-", text=json.dumps(named))


def test_what_cannot_change_is_refused(world: World) -> None:
    plan = a_name("plan")
    world.create(a_plan(plan))
    change = json.dumps({"spec": {"currency": "EUR"}})

    with pytest.raises(CommandFailedError, match="must not change"):
        world.installed.kubectl("patch", "plan", plan, "--type=merge", "-p", change)
