"""The end of retention: what goes, and what somebody puts on hold at the last moment."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from botplane.api import labels as lb
from botplane.kube.client import KubeClient
from botplane.kube.observe import Key
from botplane.tenants.accounts import AccountState
from botplane.tenants.purge import close_abandoned, purge
from botplane.tenants.reconcile import Accounts
from tests.support.api_server import Address, APIServer, a_cluster

Served = tuple[APIServer, KubeClient]
NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
PLACE = ("namespaces", "", "tenant-acme")


def retained(**annotations: str) -> dict[str, Any]:
    meta = {
        "name": "tenant-acme",
        "labels": {lb.MANAGED_BY: lb.MANAGED_BY_VALUE, lb.TENANT_UID: "u-1"},
        "annotations": {lb.RETAIN_UNTIL: "2026-09-30T12:00:00Z"} | annotations,
    }
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}


async def test_a_namespace_goes_when_its_retention_is_over(served: Served) -> None:
    api, client = served
    api.put("namespaces", retained())

    assert await purge(a_cluster(client), NOON) == ["tenant-acme"]
    assert PLACE not in api.objects


async def test_a_hold_that_comes_while_namespaces_are_purged_keeps_its_own(served: Served) -> None:
    api, client = served
    api.put("namespaces", retained())

    def answer(method: str, _address: Address) -> None:
        if method == "DELETE":
            api.put("namespaces", retained(**{lb.LEGAL_HOLD: "case 7"}))

    api.answer = answer

    assert await purge(a_cluster(client), NOON) == []
    assert PLACE in api.objects


ACME = UUID(int=1)


def tenant(uid: UUID) -> dict[str, Any]:
    meta = {"name": "acme", "uid": str(uid)}
    return {"apiVersion": "botplane.io/v1alpha1", "kind": "Tenant", "metadata": meta, "spec": {}}


class Books:
    """Accounts that are open."""

    def __init__(self, names: dict[UUID, str]) -> None:
        self._names = names
        self.closed: list[UUID] = []

    def accounts(self) -> Accounts:
        return Accounts(self._register, self._close, lambda _uid: AccountState(), self._open)

    async def _close(self, uid: UUID) -> None:
        self.closed.append(uid)

    async def _open(self) -> dict[UUID, str]:
        return self._names

    async def _register(self, _account: object) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("left", "is_closed"),
    [
        ({}, True),
        ({"tenants": tenant(ACME)}, False),
        ({"tenants": tenant(UUID(int=2))}, True),
        ({"namespaces": {"labels": {lb.TENANT_UID: str(ACME)}}}, False),
        ({"namespaces": {"labels": {lb.TENANT_UID: str(UUID(int=2))}}}, True),
        ({"namespaces": {}}, True),
    ],
    ids=["nothing", "itself", "another", "its namespace", "that of another", "one of nobody"],
)
async def test_an_account_is_closed_when_nothing_of_its_tenant_is_left(
    served: Served, left: dict[str, Any], *, is_closed: bool
) -> None:
    api, client = served
    for plural, body in left.items():
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenant-acme"}}
        space["metadata"] |= body
        api.put(plural, body if plural == "tenants" else space)
    books = Books({ACME: "acme"})

    freed = await close_abandoned(a_cluster(client), books.accounts())

    assert books.closed == ([ACME] if is_closed else [])
    assert freed == ([Key("Tenant", "", "acme")] if is_closed else [])


@pytest.mark.parametrize(("left", "are_closed"), [(5, False), (6, True)])
async def test_no_account_is_closed_where_most_belong_to_another_cluster(
    served: Served, left: int, *, are_closed: bool
) -> None:
    api, client = served
    names = {UUID(int=n + 1): f"tenant-{n}" for n in range(12)}
    for uid, name in list(names.items())[:left]:
        body = tenant(uid)
        body["metadata"]["name"] = name
        api.put("tenants", body)
    books = Books(names)

    await close_abandoned(a_cluster(client), books.accounts())

    assert len(books.closed) == (len(names) - left if are_closed else 0)
