"""What benchmarks speak to the API server with: botplane's own thin client, and watches."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from botplane.kube.client import KubeClient
from tests.support.controlplane.cluster import Cluster

CONNECTIONS = 64
ARRIVAL_SECONDS = 300
"""Tenants take turns: of three thousand bots, the second of a tenant waits for the first of all."""


class BenchClient(KubeClient):
    """The client with watches that tell when an object was first seen."""

    def __init__(self, server: str, session: aiohttp.ClientSession) -> None:
        super().__init__(server, session)
        self._arrivals: dict[tuple[str, str, str], asyncio.Event] = {}
        self._seen: dict[tuple[str, str, str], float] = {}

    async def follow(self, kind: str, ready: asyncio.Event) -> None:
        """Follow a kind for ever and note when each object was seen first."""
        version = [page.version async for page in self.pages(kind)][-1]
        ready.set()
        while True:
            async for event, body in self.watch(kind, version):
                version = body["metadata"]["resourceVersion"]
                if event != "BOOKMARK":
                    self._note(event, kind, body["metadata"])

    def _note(self, type_: str, kind: str, meta: dict[str, Any]) -> None:
        key = (kind, meta.get("namespace", ""), meta["name"])
        if type_ == "DELETED":
            self._seen.pop(key, None)
            return
        if key not in self._seen:
            self._seen[key] = asyncio.get_running_loop().time()
            self._arrivals.setdefault(key, asyncio.Event()).set()

    async def arrival(self, kind: str, namespace: str, name: str) -> float:
        """Return the loop time at which an object was seen first, now or later."""
        key = (kind, namespace, name)
        if key not in self._seen:
            self._arrivals[key] = asyncio.Event()
            try:
                await asyncio.wait_for(self._arrivals[key].wait(), ARRIVAL_SECONDS)
            except TimeoutError as error:
                raise TimeoutError(f"{key} was not seen within {ARRIVAL_SECONDS} s") from error
        return self._seen[key]


@asynccontextmanager
async def open_client(cluster: Cluster) -> AsyncIterator[BenchClient]:
    """Connect as admin and watch every kind that a tenant or bot consists of."""
    connector = aiohttp.TCPConnector(
        limit=CONNECTIONS, ssl=ssl.create_default_context(cafile=str(cluster.ca))
    )
    headers = {"Authorization": f"Bearer {cluster.tokens['admin']}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        client = BenchClient(cluster.server, session)
        kinds = (
            "Namespace", "ConfigMap", "NetworkPolicy", "ResourceQuota", "LimitRange", "Secret",
            "ServiceAccount", "RoleBinding", "Deployment", "Service", "HorizontalPodAutoscaler",
        )  # fmt: skip
        ready = {kind: asyncio.Event() for kind in kinds}
        watches = [asyncio.create_task(client.follow(kind, ready[kind])) for kind in kinds]
        await asyncio.gather(*(event.wait() for event in ready.values()))
        try:
            yield client
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
