"""In whatever order news and answers come, and whoever leads: the world becomes as declared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from botplane.runtime.pace import BURST
from tests.faults import calls
from tests.faults.calls import Rule
from tests.faults.proxied import ProxiedOperator
from tests.support.controlplane.waiting import until
from tests.support.installation import Installation
from tests.support.world import World, a_bot, bot_key, tenant_key

ALWAYS = 10**9
HTTP = [{"name": "http", "containerPort": 8080}]


@pytest.fixture
def world(botplane: Installation, proxied: ProxiedOperator) -> Iterator[World]:
    yield World(botplane)
    proxied.proxy.clear()


def test_what_happens_while_the_next_change_of_a_restless_bot_waits_is_followed(
    world: World,
) -> None:
    tenant = world.tenant()
    namespace = f"tenant-{tenant}"
    # Suspended: a bot that runs is looked at each minute, because its usage moves.
    world.create(a_bot(tenant, suspend=True, ports=HTTP, apiKeysSecretRef={"name": "exchange"}))
    world.wait_for(bot_key(tenant), "ConfigurationReady", "SecretNotFound")
    for number in range(BURST + 1):
        world.patch(*bot_key(tenant), {"spec": {"runtimeConfig": {"number": str(number)}}})
    meta = {"name": "exchange", "namespace": namespace}
    world.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta})

    # The look at what is not watched comes before the last change is due.
    world.eventually(lambda: world.read("Service", namespace, "bot") is not None, "a Service")
    world.delete("Service", namespace, "bot")

    world.eventually(lambda: world.read("Service", namespace, "bot") is not None, "it is back")


def test_a_bot_that_comes_while_its_tenant_goes_does_not_outlive_it(
    world: World, proxied: ProxiedOperator
) -> None:
    tenant = world.tenant(deletion={"protection": "Disabled", "retentionDays": 30})
    last = Rule(
        lambda call: (call.verb, call.name, call.subresource) == ("patch", tenant, ""),
        calls.Delay(4),
    )
    proxied.proxy.add(last)
    world.delete(*tenant_key(tenant))
    until(last.reached.is_set, what="nothing is left to do but to let the Tenant go")

    world.create(a_bot(tenant))

    world.eventually(lambda: world.read(*tenant_key(tenant)) is None, "the Tenant is gone")
    world.wait_for(bot_key(tenant), "Ready", "TenantNotFound")
    workload = world.read("Deployment", f"tenant-{tenant}", "bot")
    assert workload is None or workload["spec"]["replicas"] == 0


def test_a_bot_that_came_while_the_watch_was_broken_is_counted(
    world: World, proxied: ProxiedOperator
) -> None:
    tenant = world.tenant()
    world.wait_for(tenant_key(tenant), "WithinLimits", "True")
    too_old = Rule(
        lambda call: call.resource == "botdeployments",
        calls.Error(410),
        event=lambda event: event["object"]["metadata"]["namespace"] == f"tenant-{tenant}",
    )
    proxied.proxy.add(too_old)

    # It cannot run, so that no workload of it brings its tenant's next pass.
    world.create(a_bot(tenant, replicas=1000))

    def desired() -> int:
        body = world.read(*tenant_key(tenant))
        return 0 if body is None else int(body["status"]["bots"]["desired"])

    world.eventually(lambda: desired() == 1, "the tenant shows it")
    assert too_old.hits == 1


def test_a_leader_that_lost_the_lease_ends_without_waiting_for_its_passes(
    world: World, proxied: ProxiedOperator
) -> None:
    tenant, restarts = world.tenant(), proxied.restarts
    hanging = Rule(
        lambda call: call.is_write and call.resource == "configmaps" and call.concerns(tenant),
        calls.Delay(60),
    )
    lease = Rule(lambda call: call.resource == "leases", calls.Reply(503), times=ALWAYS)
    proxied.proxy.add(hanging, lease)

    world.create(a_bot(tenant))
    until(hanging.reached.is_set, what="a pass is under way")

    # A call without an answer is given up after half a minute, the lease after ten seconds.
    until(lambda: proxied.restarts > restarts, what="it ends, and is started again")
