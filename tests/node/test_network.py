"""The network rows of the attack list, against policies that are enforced.

Each block has its control: the same address, at the same time, from where it may be reached. A new
pod can reach out for a moment before its rules arrive, so blocks are waited for.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.node.containers import OPEN, Containers, address_of
from tests.node.figures import Figures
from tests.support.controlplane import postgres as servers
from tests.support.controlplane.node.namespaces import ADDRESS
from tests.support.installation import CommandFailedError
from tests.support.world import World, a_name

METADATA, INTERNET = "169.254.169.254", "203.0.113.10"
DENY_ALL = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.fixture
def free(containers: Containers) -> dict[str, Any]:
    """A pod that no policy holds: what it reaches, can be reached."""
    return containers.free_pod(containers.namespace(a_name("free")), "prober")


@pytest.fixture
def internet(containers: Containers) -> str:
    """An address that stands for the internet, with an open port."""
    containers.give_address(INTERNET)
    return containers.listen("internet", INTERNET, 443)


def test_policies_are_enforced_at_all(
    world: World, containers: Containers, figures: Figures
) -> None:
    namespace = containers.namespace(a_name("proof"))
    one, two = (containers.free_pod(namespace, name) for name in ("one", "two"))
    service = _service(world, namespace, "two")
    targets = (address_of(two), service)
    world.eventually(lambda: _all(containers.connect(one, *targets), OPEN), "both are open")

    world.create(_policy(namespace, DENY_ALL))

    blocked = world.seconds_until(lambda: _closed(containers.connect(one, *targets)), "blocked")
    figures.add("deny created until it blocks", f"{blocked:.1f} s")
    world.delete("NetworkPolicy", namespace, "deny")
    world.eventually(lambda: _all(containers.connect(one, *targets), OPEN), "open again")


def test_iso_070_no_bot_reaches_another_tenant(
    world: World, containers: Containers, internet: str
) -> None:
    ours = containers.bot(world.tenant())
    neighbour = world.tenant()
    theirs = containers.bot(neighbour)
    service = world.read("Service", f"tenant-{neighbour}", "bot")
    assert service is not None
    targets = (address_of(theirs), f"{service['spec']['clusterIP']}:8080")

    world.eventually(
        lambda: _closed(containers.connect(ours, *targets)), "pod and service are closed"
    )

    assert containers.connect_from_node(targets[0]) == {targets[0]: OPEN}
    assert containers.connect(ours, internet) == {internet: OPEN}


def test_iso_070_nobody_outside_reaches_a_bot(
    world: World, containers: Containers, free: dict[str, Any]
) -> None:
    bot = containers.bot(world.tenant())
    open_to_all = containers.free_pod(free["metadata"]["namespace"], "other")

    world.eventually(
        lambda: _closed(containers.connect(free, address_of(bot))), "the bot is closed"
    )
    assert _all(containers.connect(free, address_of(open_to_all)), OPEN)


def test_iso_071_no_bot_reaches_the_machinery(
    world: World, containers: Containers, free: dict[str, Any], internet: str
) -> None:
    containers.give_address(METADATA)
    api = urlsplit(world.installed.cluster.server).port
    targets = (
        containers.listen("metadata", METADATA, 80),
        containers.listen("metadata-tls", METADATA, 443),
        f"{ADDRESS}:10250",
        f"{ADDRESS}:{api}",
        "10.96.0.1:443",
    )
    bot = containers.bot(world.tenant())

    world.eventually(lambda: _closed(containers.connect(bot, *targets)), "all closed")

    assert _all(containers.connect(free, *targets), OPEN)
    assert containers.connect(bot, internet) == {internet: OPEN}
    # Of the internet, only what is encrypted.
    plain = containers.listen("internet-plain", INTERNET, 80)
    assert _closed(containers.connect(bot, plain))
    assert containers.connect(free, plain) == {plain: OPEN}


def test_iso_072_no_bot_reaches_the_database_or_ports_of_the_operator(
    world: World,
    containers: Containers,
    free: dict[str, Any],
    postgres: servers.Postgres,
) -> None:
    ports = world.installed.ports
    targets = (
        containers.listen("postgres", ADDRESS, 5432, to=urlsplit(postgres.url).port or 0),
        containers.listen("operator", ADDRESS, 9080, to=ports["operator"]),
        containers.listen("metering", ADDRESS, 9081, to=ports["metering"]),
    )
    bot = containers.bot(world.tenant())

    world.eventually(lambda: _closed(containers.connect(bot, *targets)), "all closed")

    assert _all(containers.connect(free, *targets), OPEN)


def test_iso_072_a_bot_does_not_reach_ports_of_its_sibling(
    world: World, containers: Containers
) -> None:
    tenant = world.tenant()
    one, two = (containers.bot(tenant, name) for name in ("one", "two"))
    hidden = address_of(two, 9090)

    world.eventually(lambda: _closed(containers.connect(one, hidden)), "closed")

    assert containers.connect_from_node(hidden) == {hidden: OPEN}


def test_bots_reach_names_and_the_gateway(world: World, containers: Containers) -> None:
    bot = containers.bot(world.tenant())
    names = containers.free_pod("kube-system", a_name("dns"), ":53,:8080", {"k8s-app": "kube-dns"})
    gateway_labels = {"app.kubernetes.io/name": "botplane-gateway"}
    gateway = containers.free_pod(
        "botplane-system", a_name("gateway"), ":8080,:8545", gateway_labels
    )
    stranger = containers.free_pod("botplane-system", a_name("stranger"), ":8080,:8545")
    allowed = (address_of(names, 53), address_of(gateway, 8545))
    closed = (address_of(stranger, 8545), address_of(gateway, 8080), address_of(names))

    world.eventually(lambda: _all(containers.connect(bot, *allowed), OPEN), "what is allowed")
    world.eventually(lambda: _closed(containers.connect(bot, *closed)), "nothing else")
    assert _all(containers.connect_from_node(*closed), OPEN)


def test_iso_075_a_tenant_cannot_open_its_namespace(
    world: World, containers: Containers, free: dict[str, Any]
) -> None:
    tenant = world.tenant(members=[{"kind": "User", "name": "eve@example", "role": "Operator"}])
    bot = containers.bot(tenant)
    allow_all: dict[str, Any] = {"podSelector": {}, "ingress": [{}], "egress": [{}]}
    policy = _policy(f"tenant-{tenant}", allow_all | {"policyTypes": ["Ingress", "Egress"]})

    with pytest.raises(CommandFailedError, match="cannot"):
        _apply_as(world, "eve@example", policy)

    world.eventually(lambda: _closed(containers.connect(free, address_of(bot))), "closed")
    # The control: what the policy would have done, had an administrator made it.
    world.create(policy)
    world.eventually(
        lambda: containers.connect(free, address_of(bot)) == {address_of(bot): OPEN}, "open"
    )


def test_iso_077_policies_stand_until_the_last_pod_of_a_tenant_is_gone(
    world: World, containers: Containers, free: dict[str, Any]
) -> None:
    tenant = world.tenant(deletion={"protection": "Disabled", "retentionDays": 0})
    namespace = f"tenant-{tenant}"
    bot = containers.bot(tenant, runtimeConfig={"onStopMs": 3000})
    target = address_of(free)
    world.eventually(lambda: _closed(containers.connect(bot, target)), "closed")

    world.delete("Tenant", "", tenant)
    world.delete("Namespace", "", namespace)

    leaks, looks = [], 0
    while world.read("Namespace", "", namespace) is not None:
        # Pods first: a pod that is seen before the policies are missing was there without them.
        pods = world.list("Pod", namespace)
        policies = {p["metadata"]["name"] for p in world.list("NetworkPolicy", namespace)}
        looks += bool(pods)
        if pods and "default-deny" not in policies:
            leaks += world.list("Pod", namespace)
    assert looks > 3
    assert leaks == []


def _all(results: dict[str, str], wanted: str) -> bool:
    return set(results.values()) == {wanted}


def _closed(results: dict[str, str]) -> bool:
    return OPEN not in results.values()


def _policy(namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "deny", "namespace": namespace},
        "spec": spec,
    }


def _service(world: World, namespace: str, name: str) -> str:
    ports = [{"port": 8080, "targetPort": 8080}]
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": ports},
    }
    world.create(body)
    found = world.read("Service", namespace, name)
    assert found is not None
    return f"{found['spec']['clusterIP']}:8080"


def _apply_as(world: World, user: str, body: dict[str, Any]) -> None:
    world.installed.kubectl("create", "-f", "-", f"--as={user}", text=json.dumps(body))
