"""What goes wrong for one tenant, or for a moment, stays there."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator

import pytest

from tests.faults import calls
from tests.faults.calls import Call, Rule
from tests.faults.flood import flooded
from tests.faults.proxied import ProxiedOperator
from tests.faults.rehearsal import WHOLE
from tests.support.controlplane.waiting import until
from tests.support.installation import Installation
from tests.support.world import (
    World,
    a_bot,
    a_name,
    a_tenant,
    bot_key,
    condition,
    path_of,
    tenant_key,
)

OUTAGE_SECONDS = 6.0
ALWAYS = 10**9
CALM_BOTS = 10
"""Each is changed once a sample: a bot that changes often is followed more slowly."""
BROKEN_BOTS = 3
FLOODED = 10
LEAST_PER_SECOND = 10
"""A change costs the API server more than us: what it takes on these cores is printed."""


alone = pytest.mark.skipif(not WHOLE, reason="measures latency: wants the machine for itself")


@pytest.fixture
def world(botplane: Installation, proxied: ProxiedOperator) -> Iterator[World]:
    yield World(botplane)
    proxied.proxy.clear()


def test_a_tenant_that_makes_passes_fail_disturbs_nobody(
    world: World, proxied: ProxiedOperator
) -> None:
    poison, restarts = a_name("poison"), proxied.restarts
    quota = Rule(
        lambda call: call.resource == "resourcequotas" and call.concerns(poison),
        calls.Reply(200, body="{}"),
        times=ALWAYS,
    )
    proxied.proxy.add(quota)

    world.create(a_tenant(poison))

    body = world.wait_for(tenant_key(poison), "Ready", "InternalError")
    assert condition(body, "Ready")[0] == "False"
    assert "Traceback" not in str(body["status"])
    healthy = world.tenant()
    world.bot(healthy)
    assert quota.hits <= 12, "tried more often than its backoff allows"
    assert proxied.restarts == restarts


@alone
def test_broken_specs_of_a_tenant_disturb_nobody(world: World) -> None:
    calm, broken = _calm_tenant(world), world.tenant()
    idle = _seconds_to_follow(world, calm)

    for number in range(BROKEN_BOTS):
        no_such_secret = {"name": "missing"}
        world.create(a_bot(broken, f"bot-{number}", apiKeysSecretRef=no_such_secret))
        world.create(a_bot(broken, f"big-{number}", replicas=1000))
    beside = _seconds_to_follow(world, calm)

    print(f"\nmedian of a change of another tenant: idle {idle:.3f} s, beside {beside:.3f} s")
    assert beside <= 2 * idle


@alone
def test_a_tenant_that_floods_does_not_slow_others(world: World) -> None:
    loud, calm = world.tenant(), _calm_tenant(world)
    bots = [f"bot-{number}" for number in range(FLOODED)]
    for bot in bots:
        world.create(a_bot(loud, bot))
    world.wait_for(bot_key(loud, bots[-1]), "Ready", "True")
    idle = _seconds_to_follow(world, calm)
    # What the same writes cost on these cores when there is nothing to do about them.
    paths = [path_of(*bot_key(loud, bot)) for bot in bots]
    with flooded(world.api, paths, {"metadata": {"labels": {"noise": "COUNT"}}}) as unheeded:
        floor = _seconds_to_follow(world, calm)

    noise = {"spec": {"runtimeConfig": {"noise": "COUNT"}}}
    with flooded(world.api, paths, noise) as flood:
        busy = _seconds_to_follow(world, calm)

    print(f"\nmedian of a change of another tenant: idle {idle:.3f} s, flooded {busy:.3f} s")
    print(f"{flood.per_second:.0f} changes/s of the loud one meanwhile")
    print(f"beside {unheeded.per_second:.0f} changes/s that call for nothing: {floor:.3f} s")
    assert flood.per_second >= LEAST_PER_SECOND, "that was no flood"
    assert busy <= 2 * max(idle, floor)


@pytest.mark.skipif(not WHOLE, reason="takes as long as the outage")
def test_an_outage_of_the_api_server_restarts_nothing(
    world: World, proxied: ProxiedOperator
) -> None:
    tenant, restarts, over = world.tenant(), proxied.restarts, threading.Event()
    for action in (calls.Cut(), calls.Reply(503)):
        proxied.proxy.add(Rule(lambda _: not over.is_set(), action, times=ALWAYS))
    world.create(a_bot(tenant))

    over.wait(OUTAGE_SECONDS)
    over.set()

    world.wait_for(bot_key(tenant), "Ready", "Running")
    assert proxied.restarts == restarts


def test_a_delete_never_meets_another_object(world: World, proxied: ProxiedOperator) -> None:
    tenant = world.tenant()
    namespace, scaler = f"tenant-{tenant}", "HorizontalPodAutoscaler"
    world.bot(tenant, autoscaling={"maxReplicas": 3, "targetCPUPercent": 70})
    late = Rule(lambda call: _deletes_scaler(call, namespace), calls.Delay(3))
    proxied.proxy.add(late)

    world.patch(*bot_key(tenant), {"spec": {"autoscaling": None}})
    until(late.reached.is_set, what="the operator deletes its autoscaler")
    world.delete(scaler, namespace, "bot")
    world.create(_foreign_scaler(namespace))
    before = world.read(scaler, namespace, "bot")

    until(late.answered.is_set, what="the late delete is answered")
    assert before is not None
    after = world.read(scaler, namespace, "bot")
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_a_bot_that_looked_while_its_tenant_was_open_is_looked_at_again(
    world: World, proxied: ProxiedOperator
) -> None:
    tenant = world.tenant()
    namespace, policy = f"tenant-{tenant}", ("networkpolicies", "default-deny")
    world.bot(tenant, ports=[{"name": "http", "containerPort": 8080}])
    slow = Rule(
        lambda call: (
            call.is_write and (call.resource, call.name) == policy and call.concerns(tenant)
        ),
        calls.Delay(3),
    )
    proxied.proxy.add(slow)

    world.delete("NetworkPolicy", namespace, "default-deny")
    until(slow.reached.is_set, what="the policy is being restored")
    world.delete("Service", namespace, "bot")
    world.wait_for(bot_key(tenant), "Ready", "TenantNotReady")

    world.eventually(
        lambda: world.read("Service", namespace, "bot") is not None, "the service is back", 20
    )
    world.wait_for(bot_key(tenant), "Ready", "Running")


def _calm_tenant(world: World) -> str:
    tenant = world.tenant()
    for number in range(CALM_BOTS):
        world.create(a_bot(tenant, f"bot-{number}"))
    for number in range(CALM_BOTS):
        world.wait_for(bot_key(tenant, f"bot-{number}"), "Ready", "True")
    return tenant


def _seconds_to_follow(world: World, tenant: str) -> float:
    """Return the median time from a change of a bot to the change of its ConfigMap."""
    samples = []
    for number in range(CALM_BOTS):
        name, wanted = f"bot-{number}", a_name()
        world.patch(*bot_key(tenant, name), {"spec": {"runtimeConfig": {"level": wanted}}})

        def followed(name: str = name, wanted: str = wanted) -> bool:
            config = world.read("ConfigMap", f"tenant-{tenant}", name)
            return config is not None and wanted in config["data"]["config.json"]

        samples.append(world.seconds_until(followed, f"{name} is as declared"))
    return statistics.median(samples)


def _deletes_scaler(call: Call, namespace: str) -> bool:
    wanted = ("delete", "horizontalpodautoscalers", namespace)
    return (call.verb, call.resource, call.namespace) == wanted


def _foreign_scaler(namespace: str) -> dict[str, object]:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "bot", "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "bot"},
            "maxReplicas": 2,
        },
    }
