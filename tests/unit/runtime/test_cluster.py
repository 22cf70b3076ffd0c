"""What is known of a custom resource after our own writes."""

from __future__ import annotations

from typing import Any

import pytest

from botplane.kube.observe import Key
from tests.support.api_server import a_cluster, serving

OURS, THEIRS = "botplane.io/tenant", "example.com/other"
ACME = Key("Tenant", "", "acme")


@pytest.mark.parametrize("others", [[], [THEIRS]], ids=str)
async def test_who_lets_the_last_finalizer_go_knows_that_the_object_is_gone(
    others: list[str],
) -> None:
    async with serving() as (api, client):
        cluster = a_cluster(client)
        body: dict[str, Any] = {
            "apiVersion": "botplane.io/v1alpha1",
            "kind": "Tenant",
            "metadata": {
                "name": "acme",
                "finalizers": [OURS, *others],
                "deletionTimestamp": "2026-10-01T12:00:00Z",
            },
            "spec": {},
        }
        stored = api.put("tenants", body)
        cluster.objects.observe(stored)

        await cluster.remove_finalizer(stored, OURS)

        assert (cluster.objects.get(ACME) is None) == (not others)
