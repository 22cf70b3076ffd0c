"""Passes for a tenant, while it comes and goes faster than its watch can tell."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from botplane.api import labels as lb
from botplane.errors import Rejected
from botplane.kube.client import KubeClient
from botplane.kube.observe import Key
from botplane.tenants.accounts import AccountState, TenantAccount
from botplane.tenants.network import NOT_PROBED
from botplane.tenants.reconcile import Accounts, Capacity, Network, Site, TenantReconciler
from tests.support.api_server import Address, Answer, APIServer, a_cluster
from tests.support.declared import a_plan, a_tenant

Served = tuple[APIServer, KubeClient]
ACME = Key("Tenant", "", "acme")
PLACE = ("tenants", "", "acme")
SPACE = ("namespaces", "", "tenant-acme")
GOING: dict[str, Any] = {
    "deletionTimestamp": "2026-10-01T12:00:00Z",
    "finalizers": [lb.TENANT_FINALIZER],
}
DISABLED = {"protection": "Disabled", "retentionDays": 0}


class World:
    """One Tenant on an API server, what Postgres was told of it, and passes over it."""

    def __init__(self, served: Served, *, strict: bool = False) -> None:
        self.api, client = served
        self.has_room: bool | None = None
        self.told: list[str] = []
        self.postgres_answers = asyncio.Event()
        self.postgres_answers.set()
        self.cluster = a_cluster(client)
        self.reconcile = TenantReconciler(
            self.cluster,
            Accounts(self._register, self._close, lambda _uid: AccountState(), self._open),
            Site("botplane-system", "botplane-operator"),
            Capacity(lambda _uid, _plan: self.has_room, strict=strict),
            Network(lambda: NOT_PROBED, strict=False),
        )
        plan = a_plan().model_dump(by_alias=True, mode="json", exclude_unset=True)
        self.see("plans", _object("Plan", {"name": "professional", "generation": 1}, plan))

    def declare(self, deletion: dict[str, Any], **metadata: Any) -> dict[str, Any]:
        """Write the Tenant as somebody would."""
        spec = a_tenant(deletion=deletion).model_dump(
            by_alias=True, mode="json", exclude_unset=True
        )
        meta = {"name": "acme", "generation": 1} | metadata
        return self.api.put("tenants", _object("Tenant", meta, spec))

    def see(self, plural: str, body: dict[str, Any]) -> None:
        """Write an object and let its watch tell."""
        self.cluster.objects.observe(self.api.put(plural, body))

    async def _register(self, account: TenantAccount) -> None:
        await self.postgres_answers.wait()
        self.told.append(f"register {account.plan}")

    async def _close(self, _tenant_id: UUID) -> None:
        self.told.append("close")

    async def _open(self) -> dict[UUID, str]:
        return {}


def _object(kind: str, meta: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "botplane.io/v1alpha1", "kind": kind, "metadata": meta, "spec": spec}


async def test_a_tenant_that_is_deleted_before_its_first_pass_leaves_no_namespace(
    served: Served,
) -> None:
    world = World(served)
    world.cluster.objects.observe(world.declare(DISABLED))
    del world.api.objects[PLACE]

    for _ in range(2):
        with pytest.raises(Rejected):
            await world.reconcile(ACME)

    assert SPACE not in world.api.objects


async def test_a_tenant_whose_deletion_was_not_told_is_not_set_up_again(served: Served) -> None:
    world = World(served)
    world.cluster.objects.observe(world.declare(DISABLED, finalizers=[lb.TENANT_FINALIZER]))
    del world.api.objects[PLACE]

    await world.reconcile(ACME)

    assert SPACE not in world.api.objects
    assert world.told == []
    assert world.cluster.objects.get(ACME) is None


async def test_a_tenant_does_not_go_before_a_namespace_that_no_watch_has_told_of(
    served: Served,
) -> None:
    world = World(served)
    tenant = world.declare(DISABLED, **GOING)
    world.cluster.objects.observe(tenant)
    labels = {lb.TENANT: "acme", lb.TENANT_UID: tenant["metadata"]["uid"]}
    meta = {"name": "tenant-acme", "labels": labels}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
    stored = world.api.put("namespaces", space, manager="botplane")

    done = await world.reconcile(ACME)
    assert done.after_seconds is not None
    assert lb.TENANT_FINALIZER in world.api.objects[PLACE]["metadata"]["finalizers"]

    world.cluster.children.observe(stored)
    await world.reconcile(ACME)

    assert SPACE not in world.api.objects
    assert world.told == ["close"]


async def test_a_hold_that_no_watch_has_told_of_keeps_the_namespace(served: Served) -> None:
    world = World(served)
    world.cluster.objects.observe(world.declare(DISABLED))
    await world.reconcile(ACME)
    uid = world.api.objects[PLACE]["metadata"]["uid"]
    world.cluster.objects.observe(world.declare(DISABLED, uid=uid, **GOING))
    world.declare(DISABLED | {"legalHold": "case 7"}, uid=uid, **GOING)

    await world.reconcile(ACME)

    assert SPACE in world.api.objects


async def test_where_room_is_needed_a_new_tenant_waits_until_it_is_counted(
    served: Served,
) -> None:
    world = World(served, strict=True)
    world.cluster.objects.observe(world.declare(DISABLED))

    for has_room, reason in ((None, "CapacityNotCounted"), (False, "InsufficientCapacity")):
        world.has_room = has_room
        done = await world.reconcile(ACME)
        assert done.after_seconds is not None
        assert SPACE not in world.api.objects
        conditions = world.api.objects[PLACE]["status"]["conditions"]
        assert {c["type"]: c["reason"] for c in conditions}["Ready"] == reason

    world.has_room = True
    await world.reconcile(ACME)
    assert SPACE in world.api.objects


async def test_a_tenant_that_is_protected_again_while_it_goes_stays_with_all_it_has(
    served: Served,
) -> None:
    # Somebody applies a manifest again that leaves the protection to its default.
    world = World(served)
    world.cluster.objects.observe(world.declare(DISABLED))
    await world.reconcile(ACME)
    uid = world.api.objects[PLACE]["metadata"]["uid"]
    world.cluster.objects.observe(world.declare({}, uid=uid, **GOING))

    await world.reconcile(ACME)

    tenant = world.api.objects[PLACE]
    assert lb.TENANT_FINALIZER in tenant["metadata"]["finalizers"]
    ready = next(c for c in tenant["status"]["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "DeletionBlocked")
    assert "spec.deletion.protection" in ready["message"]
    assert SPACE in world.api.objects
    assert "close" not in world.told


async def test_what_a_failed_pass_tells_postgres_comes_before_what_the_next_one_tells(
    served: Served,
) -> None:
    world = World(served)
    world.cluster.objects.observe(world.declare(DISABLED))
    world.postgres_answers.clear()
    failing = asyncio.Event()

    def answer(method: str, address: Address) -> Answer | None:
        if (method, address.plural) != ("PATCH", "configmaps"):
            return None
        failing.set()
        return Answer(200, b"{}")

    world.api.answer = answer
    first = asyncio.create_task(world.reconcile(ACME))
    await asyncio.wait_for(failing.wait(), 20)
    await asyncio.wait({first}, timeout=0.5)
    assert not first.done(), "its account is still being registered"
    world.postgres_answers.set()
    with pytest.raises(KeyError):
        await first

    assert world.told == ["register professional"]
