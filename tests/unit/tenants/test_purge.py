"""The end of retention: what goes, and what somebody puts on hold at the last moment."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from botplane.api import labels as lb
from botplane.kube.client import KubeClient
from botplane.tenants.purge import purge
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
