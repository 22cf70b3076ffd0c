"""Suspension as a set of reasons, plan changes that kill nothing, retention that ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.controlplane import audit
from tests.support.installation import OPERATOR_USER, CommandFailedError
from tests.support.world import (
    World,
    a_bot,
    a_name,
    a_plan,
    a_tenant,
    bot_key,
    condition,
    tenant_key,
)

SMALL = {"cpu": "1", "memory": "2Gi"}
LARGE = {"cpu": "8", "memory": "16Gi"}
ADMIN = "botplane.io/suspend"


def test_a_tenant_resumes_only_when_the_last_reason_is_gone(world: World) -> None:
    tenant = world.tenant()
    world.create(a_bot(tenant, replicas=3))
    world.wait_for(bot_key(tenant), "Ready", "Running")
    _annotate(world, tenant, "abuse report 17")
    world.wait_for(tenant_key(tenant), "Suspended", "Admin")
    world.patch(*tenant_key(tenant), {"spec": {"suspend": True}})
    body = world.wait_for(tenant_key(tenant), "Suspended", "User")
    assert "abuse report 17" in condition(body, "Suspended")[2]

    world.patch(*tenant_key(tenant), {"spec": {"suspend": False}})

    body = world.wait_for(tenant_key(tenant), "Suspended", "Admin")
    assert _replicas(world, tenant) == 0
    _annotate(world, tenant, None)
    world.wait_for(bot_key(tenant), "Ready", "Running")
    assert _replicas(world, tenant) == 3


def test_nothing_brings_a_pod_back_into_a_suspended_tenant(world: World) -> None:
    tenant = world.tenant()
    world.create(a_bot(tenant))
    world.wait_for(bot_key(tenant), "Ready", "Running")
    world.patch(*tenant_key(tenant), {"spec": {"suspend": True}})
    world.eventually(lambda: not world.list("Pod", f"tenant-{tenant}"), "no pod is left")

    world.patch("Deployment", f"tenant-{tenant}", "bot", {"spec": {"replicas": 2}})

    world.eventually(lambda: _replicas(world, tenant) == 0, "the scale is taken back")
    assert world.list("Pod", f"tenant-{tenant}") == []


def test_a_downgrade_kills_nothing_and_lets_nothing_grow(world: World) -> None:
    large, small = a_name("large"), a_name("small")
    world.create(a_plan(large, quota=LARGE))
    world.create(a_plan(small, quota=SMALL))
    tenant = world.tenant(planRef={"name": large})
    size = {"requests": {"cpu": "1", "memory": "512Mi"}}
    world.bot(tenant, "one", resources=size)
    world.bot(tenant, "two", resources=size)
    world.eventually(lambda: _used(world, tenant) == "2", "both are counted")

    world.patch(*tenant_key(tenant), {"spec": {"planRef": {"name": small}}})

    body = world.wait_for(bot_key(tenant, "two"), "WithinPlan", "QuotaExceeded")
    assert "stopped at" in condition(body, "WithinPlan")[2]
    body = world.wait_for(tenant_key(tenant), "WithinPlan", "QuotaOverPlan")
    assert "requests.cpu 2 of 1" in condition(body, "WithinPlan")[2]
    assert _hard(world, tenant) == "2"
    running = {p["metadata"]["labels"]["botplane.io/bot"] for p in _running(world, tenant)}
    assert running == {"one", "two"}

    world.delete(*bot_key(tenant, "two"))

    world.eventually(lambda: _hard(world, tenant) == "1", "the quota falls with use")
    world.wait_for(tenant_key(tenant), "WithinPlan", "True")


def test_at_the_deadline_the_newest_bot_is_stopped(world: World) -> None:
    large, small = a_name("large"), a_name("small")
    world.create(a_plan(large, maxBots=2))
    world.create(a_plan(small, maxBots=1, downgradeGraceDays=0))
    tenant = world.tenant(planRef={"name": large})
    world.bot(tenant, "one")
    world.bot(tenant, "two")

    world.patch(*tenant_key(tenant), {"spec": {"planRef": {"name": small}}})

    def left() -> set[str]:
        return {p["metadata"]["labels"]["botplane.io/bot"] for p in _running(world, tenant)}

    world.eventually(lambda: left() == {"one"}, "only the oldest runs")
    world.patch(*tenant_key(tenant), {"spec": {"planRef": {"name": large}}})
    world.wait_for(bot_key(tenant, "two"), "Ready", "Running")


def test_a_deleted_tenants_namespace_is_kept_and_its_name_is_not_free(world: World) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    tenant = world.tenant(
        billing={"subscriptionStartTime": f"{yesterday:%Y-%m-%dT%H:%M:%SZ}"},
        deletion={"protection": "Disabled", "retentionDays": 30},
        members=[{"kind": "User", "name": "ana", "role": "Operator"}],
    )
    namespace = f"tenant-{tenant}"
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"key": "k"}}
    world.create(secret | {"metadata": {"name": "wallet", "namespace": namespace}})

    world.delete(*tenant_key(tenant))

    world.eventually(lambda: world.read(*tenant_key(tenant)) is None, "the Tenant is gone")
    assert world.read("Secret", namespace, "wallet") is not None
    assert world.read("RoleBinding", namespace, "tenant-operators") is None
    assert world.read("NetworkPolicy", namespace, "default-deny") is not None
    world.create(a_tenant(tenant))
    world.wait_for(tenant_key(tenant), "Ready", "NamespaceConflict")

    _note(world, namespace, "legal-hold", "case 47/2026")
    _note(world, namespace, "retain-until", "2020-01-01T00:00:00Z")
    # Of two whose retention is over, the one without a hold goes.
    other = _retained(world)
    _note(world, other, "retain-until", "2020-01-01T00:00:00Z")
    world.eventually(lambda: world.read("Namespace", "", other) is None, "the other is purged")
    assert world.read("Secret", namespace, "wallet") is not None
    with pytest.raises(CommandFailedError, match=r"on legal hold \(case 47/2026\)"):
        world.installed.botplane("tenant-erase", tenant)

    _note(world, namespace, "legal-hold", None)
    with pytest.raises(CommandFailedError, match="billed to its end"):
        world.installed.botplane("tenant-erase", tenant)

    # The new tenant of the same name gets a namespace of its own once the old one is purged.
    world.wait_for(tenant_key(tenant), "Ready", "True")
    assert world.read("Secret", namespace, "wallet") is None


def test_what_holds_up_a_deletion_is_named_and_holds_up_nobody_else(world: World) -> None:
    deletion = {"protection": "Disabled", "retentionDays": 0}
    tenant, other = world.tenant(deletion=deletion), world.tenant(deletion=deletion)
    for each in (tenant, other):
        world.bot(each)
    namespace = f"tenant-{tenant}"
    (pod,) = (body["metadata"]["name"] for body in world.list("Pod", namespace))
    held = [{"op": "add", "path": "/metadata/finalizers/-", "value": "example.com/held"}]
    patch = ("patch", "pod", pod, "-n", namespace, "--type=json", "-p")
    world.installed.kubectl(*patch, json.dumps(held))

    for each in (tenant, other):
        world.delete(*tenant_key(each))

    body = world.wait_for(tenant_key(tenant), "Ready", "DeletionBlocked")
    message = condition(body, "Ready")[2]
    assert message == f"Deletion waits for Pod {pod} (finalizers: example.com/held)"
    world.eventually(lambda: world.read(*tenant_key(other)) is None, "the other is gone")
    free = [{"op": "remove", "path": "/metadata/finalizers/0"}]
    world.installed.kubectl(*patch, json.dumps(free))
    world.eventually(lambda: world.read(*tenant_key(tenant)) is None, "the Tenant is gone")


def test_a_name_is_free_once_all_of_a_tenant_is_gone_whose_finalizer_was_taken(
    world: World,
) -> None:
    tenant = world.tenant(deletion={"protection": "Disabled", "retentionDays": 30})
    world.installed.kill9("operator")
    world.delete(*tenant_key(tenant))
    world.patch(*tenant_key(tenant), {"metadata": {"finalizers": None}})
    assert world.read(*tenant_key(tenant)) is None
    world.installed.start("operator")

    world.create(a_tenant(tenant))
    world.wait_for(tenant_key(tenant), "Ready", "NamespaceConflict")
    world.delete("Namespace", "", f"tenant-{tenant}")

    world.wait_for(tenant_key(tenant), "Ready", "True")


def test_a_tenant_on_legal_hold_is_not_deleted_by_anybody(world: World) -> None:
    deletion = {"protection": "Disabled", "retentionDays": 0, "legalHold": "case 47/2026"}
    tenant = world.tenant(deletion=deletion)

    with pytest.raises(CommandFailedError, match=r"on legal hold \(case 47/2026\)"):
        world.installed.kubectl("delete", "tenant", tenant, "--wait=false")

    _hold(world, tenant, None)
    world.delete(*tenant_key(tenant))
    world.eventually(lambda: world.read(*tenant_key(tenant)) is None, "the Tenant is gone")


def test_a_hold_that_is_set_while_a_tenant_goes_keeps_its_namespace(world: World) -> None:
    tenant = world.tenant(deletion={"protection": "Disabled", "retentionDays": 0})
    world.installed.kill9("operator")
    world.delete(*tenant_key(tenant))
    _hold(world, tenant, "case 47/2026")
    log = world.installed.cluster.audit_log
    if log is None:
        pytest.skip("the audit log of this cluster is not ours to read")
    since = audit.position(log)
    world.installed.start("operator")

    def looks() -> int:
        asked = audit.requests(log, user=OPERATOR_USER, since=since)
        return sum((r.verb, r.resource, r.name) == ("get", "tenants", tenant) for r in asked)

    # Whatever the first look called for is done before the second.
    world.eventually(lambda: looks() >= 2, "it is looked at twice")
    assert world.read("Namespace", "", f"tenant-{tenant}") is not None
    _hold(world, tenant, None)
    world.eventually(lambda: world.read(*tenant_key(tenant)) is None, "the Tenant is gone")


def _hold(world: World, tenant: str, why: str | None) -> None:
    world.patch(*tenant_key(tenant), {"spec": {"deletion": {"legalHold": why}}})


def _retained(world: World) -> str:
    """Return the namespace of a tenant that was deleted."""
    tenant = world.tenant(deletion={"protection": "Disabled", "retentionDays": 30})
    world.delete(*tenant_key(tenant))
    world.eventually(lambda: world.read(*tenant_key(tenant)) is None, "the Tenant is gone")
    return f"tenant-{tenant}"


def _note(world: World, namespace: str, key: str, text: str | None) -> None:
    note = {"metadata": {"annotations": {f"botplane.io/{key}": text}}}
    world.patch("Namespace", "", namespace, note)


def _annotate(world: World, tenant: str, text: str | None) -> None:
    world.patch(*tenant_key(tenant), {"metadata": {"annotations": {ADMIN: text}}})


def _replicas(world: World, tenant: str) -> int:
    deployment = world.read("Deployment", f"tenant-{tenant}", "bot")
    return -1 if deployment is None else int(deployment["spec"]["replicas"])


def _quota(world: World, tenant: str) -> dict[str, Any]:
    return world.read("ResourceQuota", f"tenant-{tenant}", "plan") or {}


def _hard(world: World, tenant: str) -> str:
    return str(_quota(world, tenant)["spec"]["hard"]["requests.cpu"])


def _used(world: World, tenant: str) -> str:
    return str(_quota(world, tenant)["status"]["used"]["requests.cpu"])


def _running(world: World, tenant: str) -> list[dict[str, Any]]:
    pods = world.list("Pod", f"tenant-{tenant}")
    return [p for p in pods if p["status"]["phase"] == "Running"]


def test_a_preview_tells_what_a_plan_would_break_and_changes_nothing(world: World) -> None:
    small = a_name("small")
    world.create(a_plan(small, quota=SMALL, maxBots=1))
    tenant = world.tenant()
    world.bot(tenant, "one", resources={"requests": {"cpu": "800m", "memory": "512Mi"}})
    world.bot(tenant, "two", resources={"requests": {"cpu": "800m", "memory": "512Mi"}})
    before = world.read(*tenant_key(tenant)) or {}

    told = world.installed.botplane("plan-preview", tenant, small)

    assert [line.split()[:3] for line in told.splitlines()] == [
        ["tenant", tenant, "BotLimitReached"],
        ["bot", "two", "BotLimitReached"],
        ["bot", "two", "QuotaExceeded"],
    ]
    assert "fits" in world.installed.botplane("plan-preview", tenant, "professional")
    assert (world.read(*tenant_key(tenant)) or {})["spec"] == before["spec"]


def test_a_plan_that_the_nodes_cannot_hold_is_told_and_set_up_all_the_same(world: World) -> None:
    huge = a_name("huge")
    world.create(a_plan(huge, quota={"cpu": "900000", "memory": "900Ti"}))

    tenant = world.tenant(planRef={"name": huge})

    body = world.wait_for(tenant_key(tenant), "CapacityReserved", "InsufficientCapacity")
    assert condition(body, "Ready")[0] == "True"


@pytest.fixture
def strict(world: World) -> Iterator[World]:
    """The operator in strict mode; afterwards others find it as it was."""
    with world.installed.operator_with(BOTPLANE_OVERCOMMIT="Strict"):
        yield world


def test_where_no_more_may_be_sold_than_there_is_a_new_tenant_waits_for_room(
    strict: World,
) -> None:
    huge, small = a_name("huge"), a_name("small")
    strict.create(a_plan(huge, quota={"cpu": "900000", "memory": "900Ti"}))
    strict.create(a_plan(small, quota=SMALL))
    waiting = a_name()
    strict.create(a_tenant(waiting, planRef={"name": huge}))

    strict.wait_for(tenant_key(waiting), "Ready", "InsufficientCapacity")
    assert strict.read("Namespace", "", f"tenant-{waiting}") is None
    strict.tenant(planRef={"name": small})

    strict.patch(*tenant_key(waiting), {"spec": {"planRef": {"name": small}}})
    strict.wait_for(tenant_key(waiting), "Ready", "Provisioned")
