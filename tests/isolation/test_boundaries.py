"""Where one tenant ends and the next begins, and what stays possible at the edges of the rules."""

from __future__ import annotations

from botplane.isolation.attacks import Actor, create, delete, patch
from botplane.isolation.cluster import DEFINITIONS
from tests.isolation.conftest import MEMBER, Stage
from tests.isolation.deeds import as_member, declared, scene
from tests.support.world import a_bot, a_name, a_plan, a_tenant, bot_key, tenant_key

READY_SECONDS = 2.0


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


def test_a_bot_is_ready_soon_after_its_tenant(stage: Stage) -> None:
    # The parameters of the policies must have reached the API server before the first pod.
    world, name = stage.world, a_name()
    world.create(a_tenant(name))

    def bot_is_taken() -> bool:
        call = create(Actor.ADMIN, scene(name).bots(), a_bot(name))
        return stage.api.send(call).status == 201

    world.eventually(bot_is_taken, "the namespace takes a bot", READY_SECONDS)
    took = world.seconds_until(
        lambda: world.list("Pod", f"tenant-{name}"), "the bot has its pod", READY_SECONDS
    )
    world.wait_for(bot_key(name), "Ready", "True")

    print(f"\nfirst bot of a new tenant has its pod after {took:.2f} s")


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
