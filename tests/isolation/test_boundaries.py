"""Where one tenant ends and the next begins, and what stays possible at the edges of the rules."""

from __future__ import annotations

from typing import Any

from botplane.isolation.attacks import Actor, Call, create, delete, patch
from botplane.isolation.calls import Answer
from botplane.isolation.cluster import DEFINITIONS
from botplane.isolation.pods import a_pod
from tests.isolation.conftest import MEMBER, Stage
from tests.isolation.deeds import as_member, as_system, as_user, declared, scene
from tests.support.world import a_bot, a_name, a_plan, a_tenant, bot_key, path_of, tenant_key


def test_iso_080_a_namespace_that_exists_is_not_taken(stage: Stage) -> None:
    world, name = stage.world, a_name()
    path = f"/api/v1/namespaces/tenant-{name}"
    world.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"tenant-{name}"}})
    before = world.api.get(path)

    world.create(a_tenant(name))

    world.wait_for(tenant_key(name), "Ready", "NamespaceConflict")
    assert world.api.get(path) == before


def test_iso_081_a_tenant_whose_name_begins_like_anothers_is_another(stage: Stage) -> None:
    longer = stage.world.tenant(f"{stage.attacker}-b")

    answer = as_member(stage, declared(longer, "bot"))
    control = as_member(stage, patch(Actor.TENANT, scene(stage.attacker).bots("bot"), {}))

    assert answer.status == 403
    assert 'cannot create resource "botdeployments"' in answer.message
    assert control.status == 200


def test_iso_101_a_confirmed_definition_may_be_deleted(stage: Stage) -> None:
    name = "botdeployments.botplane.io"
    path, key = f"{DEFINITIONS}/{name}", "botplane.io/confirm-delete"
    stage.world.api.patch(path, {"metadata": {"annotations": {key: name}}})

    try:
        answer = stage.api.attempt(delete(Actor.ADMIN, path))
    finally:
        stage.world.api.patch(path, {"metadata": {"annotations": {key: None}}})

    assert answer.status == 200


def test_the_first_bot_of_a_new_tenant_is_refused_by_no_policy(stage: Stage) -> None:
    # The parameters of the policies must have reached the API server before the first pod.
    world, name = stage.world, a_name()
    world.create(a_tenant(name))

    def bot_is_taken() -> bool:
        call = create(Actor.ADMIN, scene(name).bots(), a_bot(name))
        return stage.api.send(call).status == 201

    world.eventually(bot_is_taken, "the namespace takes a bot")
    took = world.seconds_until(lambda: world.list("Pod", f"tenant-{name}"), "the bot has its pod")
    world.wait_for(bot_key(name), "Ready", "True")

    print(f"\nfirst bot of a new tenant has its pod after {took:.2f} s")
    events = world.api.get(f"/api/v1/namespaces/tenant-{name}/events")
    failed = [e["message"] for e in events["items"] if e["reason"] == "FailedCreate"]
    assert [message for message in failed if "ValidatingAdmissionPolicy" in message] == []


def test_a_bot_beyond_a_lowered_plan_may_be_edited_but_not_grow(stage: Stage) -> None:
    world, plan = stage.world, a_name("plan")
    world.create(a_plan(plan))
    members = [{"kind": "User", "name": MEMBER, "role": "Operator"}]
    name = world.tenant(planRef={"name": plan}, members=members)
    world.bot(name, replicas=3)
    world.patch("Plan", "", plan, {"spec": {"maxReplicas": 2}})
    bot = scene(name).bots("bot")
    grown = patch(Actor.TENANT, bot, {"spec": {"replicas": 4}})

    world.eventually(
        lambda: "more than the 2" in stage.api.send(grown, {"Impersonate-User": MEMBER}).message,
        "growth is refused by the lowered plan",
    )
    changed = as_member(stage, patch(Actor.TENANT, bot, {"spec": {"botType": "grid"}}))

    assert changed.status == 200, changed.message


def test_a_bot_larger_than_a_lowered_plan_may_be_stopped_but_not_grow(stage: Stage) -> None:
    world, plan = stage.world, a_name("plan")
    world.create(a_plan(plan, imageRegistries=["registry.example"]))
    members = [{"kind": "User", "name": MEMBER, "role": "Operator"}]
    name = world.tenant(planRef={"name": plan}, members=members)
    large = {"resources": {"limits": {"cpu": "2", "memory": "4Gi"}}, "storage": {"size": "10Gi"}}
    created = as_member(stage, declared(name, "bot", image="registry.example/bot:1", **large))
    lower = {"maxCPU": "1", "maxMemory": "1Gi", "maxStorage": "1Gi"}
    world.patch("Plan", "", plan, {"spec": {"bot": lower, "imageRegistries": []}})
    bot = scene(name).bots("bot")
    grown = patch(Actor.TENANT, bot, {"spec": {"resources": {"limits": {"cpu": "3"}}}})

    world.eventually(
        lambda: "allows 1 " in stage.api.send(grown, {"Impersonate-User": MEMBER}).message,
        "growth is refused by the lowered plan",
    )
    stopped = as_member(stage, patch(Actor.TENANT, bot, {"spec": {"suspend": True}}))
    moved = as_member(stage, patch(Actor.TENANT, bot, {"spec": {"image": "registry.example/b:2"}}))
    stored = as_member(stage, patch(Actor.TENANT, bot, {"spec": {"storage": {"size": "11Gi"}}}))

    assert [a.status for a in (created, stopped, moved, stored)] == [201, 200, 403, 403]


def test_a_refusal_names_what_was_asked_for_and_what_is_allowed(stage: Stage) -> None:
    plan = a_name("plan")
    stage.world.create(a_plan(plan))
    members = [{"kind": "User", "name": MEMBER, "role": "Operator"}]
    name = stage.world.tenant(planRef={"name": plan}, members=members)
    asked: dict[tuple[str, str], dict[str, Any]] = {
        ("image evil.example/bot:1 ", "sniperforge/bot"): {"image": "evil.example/bot:1"},
        ("3 of cpu", "allows 2 "): {"resources": {"limits": {"cpu": "3"}}},
        ("9Gi of memory", "allows 4Gi "): {"resources": {"requests": {"memory": "9Gi"}}},
        ("size is 11Gi", "allows 10Gi "): {"storage": {"size": "11Gi"}},
        ("4 replicas", "the 3 of the plan"): {"replicas": 4},
    }

    for texts, spec in asked.items():
        refused = as_member(stage, declared(name, "bot", **spec))
        assert refused.status == 403
        assert all(text in refused.message for text in texts), refused.message


def test_iso_034_a_plan_may_demand_digests(stage: Stage) -> None:
    world, plan = stage.world, a_name("plan")
    world.create(a_plan(plan, imageDigests="Required", imageRegistries=["registry.example"]))
    members = [{"kind": "User", "name": MEMBER, "role": "Operator"}]
    name = world.tenant(planRef={"name": plan}, members=members)
    space, digest = scene(name), f"sha256:{64 * '0'}"

    def of_image(image: str) -> Call:
        return declared(name, "bot", image=image)

    by_tag = as_member(stage, of_image("registry.example/bot:1"))
    by_version = as_member(stage, declared(name, "bot"))
    by_digest = as_member(stage, of_image(f"registry.example/bot:1@{digest}"))
    world.wait_for(bot_key(name), "Ready", "True")
    pods = {
        image: as_system(
            stage,
            Actor.CONTROLLER,
            create(Actor.CONTROLLER, space.path("pods"), a_pod(space, container={"image": image})),
        )
        for image in ("registry.example/bot:1", f"registry.example/bot@{digest}")
    }

    assert [a.status for a in (by_tag, by_version, by_digest)] == [403, 403, 201]
    assert "by digest only" in by_tag.message
    assert [answer.status for answer in pods.values()] == [403, 201]


def test_who_declares_tenants_may_not_give_them_more_than_their_plan(stage: Stage) -> None:
    world, clerk, name = stage.world, a_name("clerk"), a_name()
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"}
    rule = {"apiGroups": ["botplane.io"], "resources": ["tenants"], "verbs": ["create", "patch"]}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": clerk},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": clerk}],
    }
    world.installed.apply(
        role | {"metadata": {"name": clerk}, "rules": [rule]},
        binding | {"metadata": {"name": clerk}},
    )

    def as_clerk(call: Call) -> Answer:
        return as_user(stage, clerk, call)

    def created() -> bool:
        return as_clerk(create(Actor.ADMIN, tenants, a_tenant(name))).status == 201

    tenants = path_of("Tenant", "")
    more = {"overrides": {"maxBots": 1}}
    world.eventually(created, "the API server has heard of the role")
    refused = as_clerk(create(Actor.ADMIN, tenants, a_tenant(a_name(), **more)))
    raised = as_clerk(patch(Actor.ADMIN, f"{tenants}/{name}", {"spec": more}))
    by_admin = stage.api.send(patch(Actor.ADMIN, f"{tenants}/{name}", {"spec": more}))
    renamed = {"spec": {"organizationName": "Another"}}
    changed = as_clerk(patch(Actor.ADMIN, f"{tenants}/{name}", renamed))

    assert [a.status for a in (refused, raised, by_admin, changed)] == [403, 403, 200, 200]
    assert 'takes the verb "admin"' in refused.message
    assert 'takes the verb "admin"' in raised.message
