"""The objects of a tenant: what they grant, and what no tenant can get from them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from botplane.api.tenant import TenantSpec
from botplane.kube.apply import Boundary
from botplane.kube.resources import Manifest, ref_of
from botplane.tenants import manifests
from botplane.tenants.policy import entitlements
from botplane.tenants.reconcile import KINDS
from tests.support.declared import TENANT_UID, a_plan, a_tenant, schema_of
from tests.support.schema_values import values

SCHEMA = schema_of("tenants")["properties"]["spec"]
VIEWER = {"kind": "User", "name": "ben@acme.example", "role": "Viewer"}
OPERATOR = {"kind": "Group", "name": "acme:ops", "role": "Operator"}
ROBOT = {"kind": "ServiceAccount", "name": "ci", "role": "Operator"}


def context(spec: TenantSpec, *, suspended: bool = False, **plan: Any) -> manifests.Context:
    return manifests.Context(
        name="acme",
        uid=TENANT_UID,
        spec=spec,
        rights=entitlements(spec, a_plan(**plan)),
        suspended=suspended,
        operator_namespace="botplane-system",
        operator_account="botplane-operator",
    )


def everything(of: manifests.Context) -> list[Manifest]:
    return [
        manifests.namespace(of),
        *manifests.isolation(of, manifests.resource_quota(of)),
        *manifests.allowances(of),
    ]


def found(all_: list[Manifest], kind: str, name: str) -> Manifest:
    return next(m for m in all_ if (m["kind"], m["metadata"]["name"]) == (kind, name))


def hard(of: manifests.Context) -> dict[str, str]:
    quota: dict[str, str] = manifests.resource_quota(of)["spec"]["hard"]
    return quota


def test_the_quota_is_the_plans_in_the_words_of_the_api_server() -> None:
    quota = hard(context(a_tenant(), quota={"cpu": "0.5", "memory": "1.5Gi", "storage": "1024Mi"}))

    assert quota["requests.cpu"] == "500m"
    assert quota["limits.cpu"] == "6"
    assert quota["requests.memory"] == "1536Mi"
    assert quota["limits.memory"] == "5632Mi"
    assert quota["requests.storage"] == "1Gi"
    assert quota["count/botdeployments.botplane.io"] == "10"


@pytest.mark.parametrize("plan", [{}, {"maxBots": 0}], ids=["ten bots", "no bots"])
def test_what_is_not_sold_is_zero(plan: dict[str, Any]) -> None:
    quota = hard(context(a_tenant(), **plan))

    for what in ("services.nodeports", "services.loadbalancers", "count/statefulsets.apps"):
        assert quota[what] == "0"


def test_a_suspended_tenant_has_no_pods_and_keeps_its_volumes() -> None:
    running, suspended = hard(context(a_tenant())), hard(context(a_tenant(), suspended=True))

    assert running["pods"] == "80"
    assert suspended["pods"] == "0"
    assert suspended | {"pods": "80"} == running


def test_admission_is_told_of_the_suspension_and_of_the_limits() -> None:
    data = manifests.policy_parameters(context(a_tenant(), suspended=True))["data"]

    assert data["state"] == "Suspended"
    assert (data["maxBots"], data["maxReplicas"]) == ("10", "4")
    assert data["imageRegistries"] == "registry.example/sniperforge"


def test_the_namespace_enforces_restricted_pods_from_its_first_moment() -> None:
    labels = manifests.namespace(context(a_tenant()))["metadata"]["labels"]

    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["botplane.io/tenant-uid"] == TENANT_UID


def test_traffic_is_denied_unless_allowed() -> None:
    deny = found(everything(context(a_tenant())), "NetworkPolicy", "default-deny")["spec"]

    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_internet_is_not_the_cluster_nor_the_metadata_service() -> None:
    policy = found(everything(context(a_tenant())), "NetworkPolicy", "allow-internet")
    blocks = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule["to"]]

    closed = [ip_network(cidr) for block in blocks for cidr in block["except"]]
    for address in (
        "10.0.0.1", "192.168.0.1", "169.254.169.254", "240.10.0.1", "fd00:ec2::254",
        "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254",
    ):  # fmt: skip
        assert any(ip_address(address) in block for block in closed), address
    for address in ("9.9.9.9", "2620:fe::9", "64:ff9b::9.9.9.9"):
        assert not any(ip_address(address) in block for block in closed), address


def test_members_get_their_role_and_robots_are_those_of_the_namespace() -> None:
    spec = a_tenant(members=[VIEWER, OPERATOR, ROBOT])

    bindings = {
        m["metadata"]["name"]: (m["roleRef"]["name"], [s["name"] for s in m["subjects"]])
        for m in everything(context(spec))
        if m["kind"] == "RoleBinding"
    }

    assert bindings == {
        "botplane-operator": ("botplane:tenant-namespace", ["botplane-operator"]),
        "tenant-viewers": ("botplane:tenant-viewer", ["ben@acme.example"]),
        "tenant-operators": ("botplane:tenant-operator", ["acme:ops", "ci"]),
    }
    operators = found(everything(context(spec)), "RoleBinding", "tenant-operators")
    assert operators["subjects"][1]["namespace"] == "tenant-acme"


def test_without_members_nobody_is_bound_but_the_operator() -> None:
    bindings = [m for m in everything(context(a_tenant())) if m["kind"] == "RoleBinding"]

    assert [m["metadata"]["name"] for m in bindings] == ["botplane-operator"]


def test_labels_of_a_tenant_cannot_take_the_place_of_ours() -> None:
    wanted = {"tenant": "zeta", "app": "x"}
    spec = a_tenant(configuration={"propagateLabels": wanted})

    for manifest in everything(context(spec)):
        labels = manifest["metadata"]["labels"]
        assert labels["botplane.io/tenant"] == "acme"
        assert labels["user.botplane.io/tenant"] == "zeta"


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(declared=values(SCHEMA), suspended=st.booleans())
def test_any_tenant_becomes_its_own_objects_in_its_own_namespace(
    declared: dict[str, Any], *, suspended: bool
) -> None:
    spec = TenantSpec.model_validate(declared)

    made = everything(context(spec, suspended=suspended))

    table = Boundary(KINDS, "tenant-acme")
    for manifest in made:
        table.check(ref_of(manifest))
        assert "ownerReferences" not in manifest["metadata"]
    assert len({ref_of(manifest) for manifest in made}) == len(made)
    subjects = {s["name"] for m in made if m["kind"] == "RoleBinding" for s in m["subjects"]}
    assert subjects == {member.name for member in spec.members} | {"botplane-operator"}
