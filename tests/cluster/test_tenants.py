"""A Tenant becomes a closed namespace, or says what is wrong with it."""

from __future__ import annotations

import subprocess

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


def test_a_tenant_becomes_a_closed_namespace(world: World) -> None:
    name = world.tenant(
        configuration={"propagateLabels": {"cost-center": "42"}},
        members=[{"kind": "User", "name": "ana@example", "role": "Operator"}],
    )

    space = world.read("Namespace", "", f"tenant-{name}")
    assert space is not None
    labels = space["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["user.botplane.io/cost-center"] == "42"
    namespace = f"tenant-{name}"
    names = {
        kind: {item["metadata"]["name"] for item in world.list(kind, namespace)}
        for kind in ("ResourceQuota", "LimitRange", "NetworkPolicy", "RoleBinding")
    }
    assert names == {
        "ResourceQuota": {"plan"},
        "LimitRange": {"plan"},
        "NetworkPolicy": {
            "default-deny",
            "allow-bots",
            "allow-dns",
            "allow-gateway",
            "allow-internet",
        },
        "RoleBinding": {"botplane-operator", "tenant-operators"},
    }
    deny = world.read("NetworkPolicy", namespace, "default-deny")
    assert deny is not None
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_kubectl_wait_and_the_columns_answer_the_first_question(world: World) -> None:
    name = world.tenant()

    row = world.installed.kubectl("get", "tenant", name, "--no-headers").split()

    assert row[:6] == [name, "professional", "True", "Provisioned", "0", "10"]


def test_members_may_do_what_their_role_says(world: World) -> None:
    name = world.tenant(
        members=[
            {"kind": "User", "name": "ana@example", "role": "Operator"},
            {"kind": "User", "name": "ben@example", "role": "Viewer"},
        ]
    )

    def may(user: str, verb: str, what: str) -> str:
        command = ("auth", "can-i", verb, what, f"--as={user}", "-n", f"tenant-{name}")
        done = subprocess.run(
            [
                str(world.installed.cluster.kubectl),
                f"--kubeconfig={world.installed.cluster.kubeconfigs['admin']}",
                *command,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    world.eventually(lambda: may("ana@example", "create", "bots") == "yes", "ana may create bots")
    world.eventually(lambda: may("ben@example", "get", "bots") == "yes", "ben may see bots")
    assert may("ben@example", "create", "bots") == "no"
    assert may("ana@example", "delete", "resourcequotas") == "no"
    assert may("ana@example", "list", "secrets") == "no"


def test_an_unknown_plan_is_named_and_nothing_is_half_made(world: World) -> None:
    name = a_name()

    world.create(a_tenant(name, planRef={"name": "gold"}))

    body = world.wait_for(tenant_key(name), "Ready", "PlanNotFound")
    stalled = next(c for c in body["status"]["conditions"] if c["type"] == "Stalled")
    assert 'Plan "gold" does not exist' in stalled["message"]
    assert "professional" in stalled["message"]
    assert world.read("Namespace", "", f"tenant-{name}") is None


def test_a_tenant_whose_plan_appears_is_set_up_by_itself(world: World) -> None:
    name, plan = a_name(), a_name("plan")
    world.create(a_tenant(name, planRef={"name": plan}))
    world.wait_for(tenant_key(name), "Ready", "PlanNotFound")

    world.create(a_plan(plan))

    world.wait_for(tenant_key(name), "Ready", "True")


def test_a_foreign_namespace_is_not_touched(world: World) -> None:
    name = a_name()
    foreign = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"tenant-{name}"}}
    world.create(foreign)
    before = world.read("Namespace", "", f"tenant-{name}")

    world.create(a_tenant(name))

    body = world.wait_for(tenant_key(name), "Ready", "NamespaceConflict")
    assert "nothing in it was touched" in body["status"]["conditions"][0]["message"]
    assert world.read("Namespace", "", f"tenant-{name}") == before
    assert world.list("ResourceQuota", f"tenant-{name}") == []


def test_a_plan_that_is_deleted_stays_until_no_tenant_uses_it(world: World) -> None:
    plan = ("Plan", "", a_name("plan"))
    world.create(a_plan(plan[2]))
    tenant = world.tenant(planRef={"name": plan[2]})
    denied = ("NetworkPolicy", f"tenant-{tenant}", "default-deny")

    world.delete(*plan)

    body = world.wait_for(plan, "Ready", "PlanInUse")
    assert condition(body, "Ready")[2] == (
        f"Deletion waits for the tenants on this plan: {tenant}; change their spec.planRef"
    )
    assert condition(body, "PricesPublished")[0] == "True"
    world.delete(*denied)
    world.eventually(lambda: world.read(*denied), "its tenant is kept isolated")
    world.patch("Tenant", "", tenant, {"spec": {"planRef": {"name": "professional"}}})
    world.eventually(lambda: world.read(*plan) is None, "the plan goes")


def test_a_currency_that_is_not_the_plans_is_refused(world: World) -> None:
    name = a_name()

    world.create(a_tenant(name, billing={"currency": "EUR"}))

    body = world.wait_for(tenant_key(name), "Ready", "CurrencyMismatch")
    assert "USD" in body["status"]["conditions"][0]["message"]


def test_an_override_beyond_the_plan_is_told_and_cut_to_the_plan(world: World) -> None:
    name = a_name()

    world.create(a_tenant(name, overrides={"maxBots": 100}))

    body = world.wait_for(tenant_key(name), "Ready", "OverrideNotAllowed")
    assert body["status"]["bots"]["limit"] == 20


def test_a_plan_change_reaches_the_quota(world: World) -> None:
    plan = a_name("plan")
    world.create(a_plan(plan, quota={"cpu": "8", "memory": "16Gi"}))
    name = world.tenant(planRef={"name": plan})

    world.patch("Plan", "", plan, {"spec": {"quota": {"cpu": "12"}}})

    def hard() -> str:
        quota = world.read("ResourceQuota", f"tenant-{name}", "plan")
        return str(quota["spec"]["hard"]["requests.cpu"]) if quota else ""

    world.eventually(lambda: hard() == "12", "the quota is raised")


def test_a_tenant_without_bots_shows_the_revision_of_its_plan_that_is_in_force(
    world: World,
) -> None:
    plan = a_name("plan")
    world.create(a_plan(plan, fee="10.00"))
    tenant = world.tenant(planRef={"name": plan})

    def shown() -> int | None:
        body = world.read(*tenant_key(tenant))
        return None if body is None else body["status"]["plan"].get("revision")

    first = world.eventually(shown, "the revision that the tenant began with")
    # After that nothing else is news of this tenant.
    world.wait_for(tenant_key(tenant), "WithinLimits", "True")
    world.patch("Plan", "", plan, {"spec": {"fee": "12.00"}})

    world.eventually(lambda: (shown() or 0) > first, "the next revision")


def test_a_deleted_tenant_settles_and_goes_with_its_namespace(world: World) -> None:
    name = world.tenant(deletion={"protection": "Disabled", "retentionDays": 0})
    world.bot(name)

    world.delete("Tenant", "", name)

    world.eventually(lambda: world.read("Tenant", "", name) is None, "the Tenant is gone")
    world.eventually(
        lambda: world.read("Namespace", "", f"tenant-{name}") is None, "the namespace is gone", 60
    )


def test_a_protected_tenant_cannot_be_deleted(world: World) -> None:
    name = world.tenant()

    refused = _refusal(world, "delete", "tenant", name)

    assert "spec.deletion.protection" in refused
    assert world.read("Tenant", "", name) is not None


def test_suspending_a_tenant_stops_its_bots_and_resuming_starts_them(world: World) -> None:
    name = world.tenant()
    world.create(a_bot(name, replicas=2))
    world.wait_for(bot_key(name), "Ready", "Running")

    world.patch("Tenant", "", name, {"spec": {"suspend": True}})

    world.wait_for(bot_key(name), "Suspended", "True")
    namespace = f"tenant-{name}"
    world.eventually(lambda: not world.list("Pod", namespace), "all pods are gone")
    quota = world.read("ResourceQuota", namespace, "plan")
    assert quota is not None
    assert quota["spec"]["hard"]["pods"] == "0"

    world.patch("Tenant", "", name, {"spec": {"suspend": False}})

    world.wait_for(bot_key(name), "Ready", "Running")
    deployment = world.read("Deployment", namespace, "bot")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 2


def _refusal(world: World, *arguments: str) -> str:
    kubeconfig = world.installed.cluster.kubeconfigs["admin"]
    done = subprocess.run(
        [str(world.installed.cluster.kubectl), f"--kubeconfig={kubeconfig}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode != 0
    return done.stderr
