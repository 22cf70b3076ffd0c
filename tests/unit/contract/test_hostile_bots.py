"""Whatever a tenant writes into a bot, only the bot's own objects come out, to the letter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from botplane.api.bot_deployment import BotDeploymentSpec
from botplane.bots.manifests import desired
from botplane.bots.reconcile import KINDS
from botplane.kube.apply import Boundary
from botplane.kube.resources import Manifest, ref_of
from tests.support.declared import TEMPLATES, bot_context, schema_of
from tests.support.hostile import HOSTILE
from tests.support.schema_values import values

SCHEMA = schema_of("botdeployments")["properties"]["spec"]
TABLE = Boundary(KINDS, "tenant-acme")
EVIL = st.sampled_from(HOSTILE)
# The API server keeps larger integers as floating point numbers.
INTEGERS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
CONFIGURATION = st.recursive(
    EVIL | INTEGERS | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(EVIL, inner, max_size=3),
    max_leaves=6,
)
FULL: dict[str, Any] = {
    "botType": "arbitrage",
    "version": "2.4.1",
    "runtimeConfig": {"key": "text"},
    "apiKeysSecretRef": {"name": "exchange-keys"},
    "walletKeysSecretRef": {"name": "wallet"},
    "imagePullSecretRef": {"name": "registry"},
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}},
    "storage": {"size": "1Gi", "storageClassName": "standard"},
    "ports": [{"name": "http", "containerPort": 8080, "exposure": "Cluster"}],
    "healthCheck": {"path": "/healthz", "port": "http"},
    "metrics": {"port": "http", "path": "/metrics"},
    "backup": {"schedule": "0 3 * * *"},
    "shutdown": {"onSuspend": "CancelOrders"},
}


def built(spec: dict[str, Any]) -> list[Manifest]:
    """Return the objects of a bot, all of them inside the allow-table."""
    model = BotDeploymentSpec.model_validate(spec)
    manifests = desired(bot_context(model), TEMPLATES)
    for manifest in manifests:
        TABLE.check(ref_of(manifest))
    return manifests


def identities(manifests: list[Manifest]) -> list[tuple[str, ...]]:
    return [tuple(ref_of(manifest)) for manifest in manifests]


def configuration(manifests: list[Manifest]) -> Any:
    found = next(m for m in manifests if m["kind"] == "ConfigMap")
    return json.loads(found["data"]["config.json"])


def texts(node: Any) -> Iterator[str]:
    """Yield all texts in an object, and the words of those that are made of several."""
    if isinstance(node, dict):
        for value in node.values():
            yield from texts(value)
    elif isinstance(node, list):
        for item in node:
            yield from texts(item)
    elif isinstance(node, str):
        yield node
        yield node.removeprefix("sniperforge/bot:")


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each text in a spec."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from places(item, (*path, index))
    elif isinstance(node, str):
        yield path


def with_text(path: tuple[Any, ...], text: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(json.dumps(FULL))
    node: Any = spec
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = text
    return spec


@pytest.mark.parametrize("path", list(places(FULL)), ids=lambda p: ".".join(map(str, p)))
def test_each_hostile_text_in_each_field_arrives_or_is_refused(path: tuple[Any, ...]) -> None:
    harmless = identities(built(FULL))

    for text in HOSTILE:
        try:
            manifests = built(with_text(path, text))
        except ValidationError:
            continue
        assert identities(manifests) == harmless
        inside = path[0] == "runtimeConfig"
        arrived = [configuration(manifests)["key"]] if inside else texts(manifests)
        assert text in arrived


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(values(SCHEMA), st.dictionaries(EVIL, CONFIGURATION, max_size=4))
@example(FULL, {"x\n---\nkind: ClusterRole": "\\ud83d\\ude00"})
def test_any_bot_becomes_its_own_objects_and_no_others(
    spec: dict[str, Any], config: dict[str, Any]
) -> None:
    assume(("version" in spec) != ("image" in spec))

    manifests = built(spec | {"runtimeConfig": config})

    assert identities(manifests) == identities(built(spec | {"runtimeConfig": {}}))
    assert len(set(identities(manifests))) == len(manifests)
    assert configuration(manifests) == config
    arrived = set(texts(manifests))
    assert spec.get("version", spec.get("image")) in arrived
    assert spec["botType"] in arrived
    for reference in ("apiKeysSecretRef", "walletKeysSecretRef", "imagePullSecretRef"):
        assert reference not in spec or spec[reference]["name"] in arrived


def test_no_pod_has_more_rights_for_anything_that_a_bot_declares() -> None:
    pods = [m["spec"]["template"]["spec"] for m in built(FULL) if m["kind"] == "Deployment"]

    assert [pod["automountServiceAccountToken"] for pod in pods] == [False]
    for container in (c for pod in pods for c in pod["containers"]):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
    assert not any({"hostNetwork", "hostPID", "initContainers"} & pod.keys() for pod in pods)
    volumes = [set(volume) - {"name"} for pod in pods for volume in pod["volumes"]]
    allowed = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
    assert set().union(*volumes) == allowed
