"""What is known of a custom resource after our own writes."""

from __future__ import annotations

from typing import Any

import pytest

from botplane.clock import utc_now
from botplane.kube.apply import Applier
from botplane.kube.observe import Children, Key
from botplane.runtime.cluster import Cluster
from botplane.runtime.objects import Objects
from botplane.runtime.status import StatusWriter
from tests.support.api_server import serving

OURS, THEIRS = "botplane.io/tenant", "example.com/other"
ACME = Key("Tenant", "", "acme")


@pytest.mark.parametrize("others", [[], [THEIRS]], ids=str)
async def test_who_lets_the_last_finalizer_go_knows_that_the_object_is_gone(
    others: list[str],
) -> None:
    async with serving() as (api, client):
        children, objects = Children(), Objects()
        status = StatusWriter(client, objects, utc_now)
        cluster = Cluster(client, objects, children, Applier(client, children), status)
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
        objects.observe(stored)

        await cluster.remove_finalizer(stored, OURS)

        assert (objects.get(ACME) is None) == (not others)
