"""Full lists: the safety net below the watches."""

from __future__ import annotations

import asyncio

from botplane.kube.client import KubeClient
from botplane.kube.observe import Children, Key
from botplane.runtime.objects import Objects
from botplane.runtime.resync import RESYNC_SECONDS, Resync
from tests.support.api_server import APIServer

ACME = Key("Tenant", "", "acme")


async def test_a_replica_that_has_waited_for_the_lease_for_long_lists_at_once(
    served: tuple[APIServer, KubeClient],
) -> None:
    api, client = served
    meta = {"name": "acme", "generation": 1}
    api.put("tenants", {"kind": "Tenant", "metadata": meta, "spec": {}})
    woken = asyncio.Queue[Key]()
    resync = Resync(client, Objects(), Children(), woken.put_nowait)
    resync.last = asyncio.get_running_loop().time() - RESYNC_SECONDS

    running = asyncio.create_task(resync.run(["Tenant"], []))

    assert await asyncio.wait_for(woken.get(), 20) == ACME
    running.cancel()
