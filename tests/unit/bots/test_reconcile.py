"""One pass for a bot, seen from the API server: what is written, and what a suspension stops."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from botplane.bots.reconcile import BotReconciler, Surroundings, TenantView
from botplane.kube.client import KubeClient
from botplane.kube.observe import Key
from botplane.kube.resources import Ref
from botplane.runtime.controller import Done
from tests.support.api_server import APIServer, a_cluster
from tests.support.declared import (
    FACILITIES,
    MASTER_KEY,
    TEMPLATES,
    TENANT_UID,
    a_bot,
    a_plan,
    rights_of,
)

Served = tuple[APIServer, KubeClient]
NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
KEY = Key("BotDeployment", "tenant-acme", "arb-1")
ACME = TenantView(
    name="acme",
    uid=TENANT_UID,
    isolated=True,
    suspended="",
    user_labels={},
    rights=rights_of(a_plan()),
)


class World:
    """One bot on an API server, its tenant, and passes over it."""

    def __init__(self, served: Served) -> None:
        self.api, client = served
        self.tenant: TenantView | None = ACME
        self._generation = 0
        self.cluster = a_cluster(client, lambda: NOON)
        around = Surroundings(
            lambda _namespace: self.tenant,
            lambda _uid, shown: shown,
            "http://gateway",
            "http://web",
            MASTER_KEY,
            FACILITIES,
            lambda: NOON,
        )
        self._reconcile = BotReconciler(self.cluster, TEMPLATES, around)

    def declare(self, name: str = "arb-1", **spec: Any) -> None:
        """Write the bot, or another, as its tenant would."""
        self._generation += 1
        meta = {"name": name, "namespace": "tenant-acme", "generation": self._generation}
        declared = a_bot(**spec).model_dump(by_alias=True, mode="json", exclude_unset=True)
        kind = {"apiVersion": "botplane.io/v1alpha1", "kind": "BotDeployment"}
        self.cluster.objects.observe(
            self.api.put("botdeployments", kind | {"metadata": meta, "spec": declared})
        )

    async def look(self) -> Done:
        """Do one pass."""
        return await self._reconcile(KEY)

    async def settle(self) -> int:
        """Do passes until one changes nothing; return how many changed something."""
        for number in range(10):
            if not (await self._reconcile(KEY)).changed:
                return number
        raise AssertionError("the passes do not end")

    @property
    def condition(self) -> dict[str, tuple[str, str]]:
        """Status and reason of each condition."""
        status = self.api.objects["botdeployments", "tenant-acme", "arb-1"]["status"]
        return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}

    @property
    def replicas(self) -> int | None:
        """Replicas of the Deployment; None without one."""
        deployment = self.api.objects.get(("deployments", "tenant-acme", "arb-1"))
        return None if deployment is None else deployment["spec"]["replicas"]


async def test_a_bot_is_set_up_in_one_pass_and_then_left_alone(served: Served) -> None:
    world = World(served)
    world.declare()

    assert await world.settle() == 1
    requests = world.api.requests
    assert await world.settle() == 0

    assert world.replicas == 1
    assert world.api.requests == requests


async def test_what_is_no_longer_declared_goes(served: Served) -> None:
    world = World(served)
    world.declare(ports=[{"name": "http", "containerPort": 8080}])
    await world.settle()
    assert ("services", "tenant-acme", "arb-1") in world.api.objects

    world.declare()
    await world.settle()

    assert ("services", "tenant-acme", "arb-1") not in world.api.objects
    assert world.replicas == 1


async def test_a_bot_with_a_missing_secret_waits_for_it_by_itself(served: Served) -> None:
    world = World(served)
    world.declare(apiKeysSecretRef={"name": "exchange-keys"})
    await world.settle()
    assert world.condition["Ready"] == ("False", "SecretNotFound")

    meta = {"name": "exchange-keys", "namespace": "tenant-acme"}
    world.api.put("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": meta})
    await world.settle()

    assert world.replicas == 1
    assert world.condition["ConfigurationReady"][0] == "True"


def suspend_the_tenant(world: World) -> None:
    world.tenant = replace(ACME, suspended="spec.suspend is true")


def suspend_a_tenant_without_plan(world: World) -> None:
    world.tenant = replace(ACME, suspended="spec.suspend is true", rights=None)


def suspend_after_a_secret_was_lost(world: World) -> None:
    world.tenant = replace(ACME, suspended="spec.suspend is true")
    world.declare(walletKeysSecretRef={"name": "gone"})


def suspend_beyond_the_plan(world: World) -> None:
    world.tenant = replace(
        ACME, suspended="spec.suspend is true", rights=rights_of(a_plan(maxBots=0))
    )


def suspend_the_bot_with_an_image_that_is_not_allowed(world: World) -> None:
    world.declare(image="evil.example/x:1", suspend=True)


def suspend_the_bot_of_no_tenant(world: World) -> None:
    world.tenant = None
    world.declare(suspend=True)


@pytest.mark.parametrize(
    "suspend",
    [
        suspend_the_tenant,
        suspend_a_tenant_without_plan,
        suspend_after_a_secret_was_lost,
        suspend_beyond_the_plan,
        suspend_the_bot_with_an_image_that_is_not_allowed,
        suspend_the_bot_of_no_tenant,
    ],
    ids=lambda function: function.__name__,
)
async def test_a_suspension_stops_the_bot_whatever_else_is_wrong(
    served: Served, suspend: Any
) -> None:
    world = World(served)
    world.declare()
    await world.settle()
    assert world.replicas == 1

    suspend(world)
    await world.settle()

    assert not world.replicas
    assert world.condition["Suspended"][0] == "True"


async def test_a_bot_beyond_its_plan_runs_on_until_it_is_suspended(served: Served) -> None:
    world = World(served)
    world.declare()
    await world.settle()

    world.tenant = replace(ACME, rights=rights_of(a_plan(maxBots=0)))
    await world.settle()

    assert world.replicas == 1
    assert world.condition["WithinPlan"] == ("False", "BotLimitReached")


async def test_a_resumed_bot_has_the_replicas_that_it_declares(served: Served) -> None:
    world = World(served)
    world.declare(replicas=3)
    await world.settle()
    suspend_the_tenant(world)
    await world.settle()
    assert world.replicas == 0

    world.tenant = ACME
    await world.settle()

    assert world.replicas == 3


async def test_a_bot_outside_of_a_tenant_is_given_nothing(served: Served) -> None:
    world = World(served)
    world.tenant = None
    world.declare()
    await world.settle()

    assert {place[0] for place in world.api.objects} == {"botdeployments", "events"}
    assert world.condition["Ready"] == ("False", "TenantNotFound")
    assert world.condition["WithinPlan"][0] == "Unknown"


async def test_a_bot_waits_until_its_tenant_is_isolated(served: Served) -> None:
    world = World(served)
    world.tenant = replace(ACME, isolated=False)
    world.declare()
    await world.settle()
    assert world.replicas is None
    assert world.condition["Ready"] == ("False", "TenantNotReady")

    world.tenant = ACME
    await world.settle()

    assert world.replicas == 1


async def test_a_bot_that_was_deleted_is_not_given_back_what_went_with_it(served: Served) -> None:
    # Watches have no common order: the garbage collector's work may be seen before its cause.
    world = World(served)
    world.declare()
    await world.settle()
    world.api.objects.clear()
    world.cluster.children.forget(Ref("Deployment", "tenant-acme", "arb-1"))

    await world.settle()

    assert world.api.objects == {}


async def test_a_secret_that_goes_is_missed_before_the_next_pod_needs_it(served: Served) -> None:
    world = World(served)
    meta = {"name": "wallet", "namespace": "tenant-acme"}
    world.api.put("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": meta})
    world.declare(walletKeysSecretRef={"name": "wallet"})
    await world.settle()
    assert world.replicas == 1
    assert (await world.look()).after_seconds is not None

    del world.api.objects["secrets", "tenant-acme", "wallet"]
    await world.settle()

    assert world.condition["ConfigurationReady"] == ("False", "SecretNotFound")
    assert world.replicas == 1


@pytest.mark.parametrize("plural", ["configmaps", "secrets", "serviceaccounts"])
async def test_no_pod_starts_with_what_is_another_s(served: Served, plural: str) -> None:
    world = World(served)
    kind = {"configmaps": "ConfigMap", "secrets": "Secret", "serviceaccounts": "ServiceAccount"}
    meta = {"name": "arb-1", "namespace": "tenant-acme"}
    world.api.put(plural, {"apiVersion": "v1", "kind": kind[plural], "metadata": meta})
    world.declare(replicas=3)

    await world.settle()

    assert world.condition["Ready"] == ("False", "Conflict")
    assert world.replicas is None
    del world.api.objects[plural, "tenant-acme", "arb-1"]
    await world.settle()
    assert world.replicas == 3


async def test_a_bot_whose_configuration_is_taken_goes_on_as_it_is_and_can_be_suspended(
    served: Served,
) -> None:
    world = World(served)
    world.declare()
    await world.settle()
    ref = Ref("ConfigMap", "tenant-acme", "arb-1")
    meta = {"name": ref.name, "namespace": ref.namespace}
    world.cluster.children.forget(ref)
    del world.api.objects["configmaps", "tenant-acme", "arb-1"]
    world.api.put("configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})

    world.declare(replicas=3)
    await world.settle()
    assert world.replicas == 1

    world.declare(replicas=3, suspend=True)
    await world.settle()
    assert world.replicas == 0


@pytest.mark.parametrize(
    ("own", "tenants", "reason"),
    [
        (True, "", "User"),
        (False, "an invoice is overdue; pay it", "TenantSuspended"),
        (True, "an invoice is overdue; pay it", "User"),
    ],
)
async def test_a_suspended_bot_says_whose_doing_it_is(
    served: Served, tenants: str, reason: str, *, own: bool
) -> None:
    world = World(served)
    world.tenant = replace(ACME, suspended=tenants)
    world.declare(suspend=own)

    await world.settle()

    assert world.condition["Suspended"] == ("True", reason)


async def test_what_is_deleted_of_a_bot_comes_back(served: Served) -> None:
    world = World(served)
    world.declare()
    await world.settle()
    del world.api.objects["deployments", "tenant-acme", "arb-1"]
    world.cluster.children.forget(Ref("Deployment", "tenant-acme", "arb-1"))

    await world.settle()

    assert world.replicas == 1


async def test_of_two_bots_of_one_second_the_one_that_runs_is_the_one_that_comes_back(
    served: Served,
) -> None:
    world = World(served)
    world.tenant = replace(ACME, rights=rights_of(a_plan(maxBots=1)))
    world.declare()
    await world.settle()
    world.declare("aaa-1")

    del world.api.objects["deployments", "tenant-acme", "arb-1"]
    world.cluster.children.forget(Ref("Deployment", "tenant-acme", "arb-1"))
    await world.settle()

    assert world.replicas == 1
