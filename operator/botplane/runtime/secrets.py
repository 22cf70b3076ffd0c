"""Look after the Secrets that botplane issued, without the right to read those of others.

A watch over all namespaces needs the right to read every Secret of the cluster. So each tenant
namespace is listed in turn, by a role that is bound there only, and only metadata is fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from botplane.errors import Rejected, Retryable
from botplane.kube.client import KubeClient
from botplane.kube.observe import Children, Key
from botplane.runtime.resync import SELECTOR

log = structlog.get_logger()

ROUND_SECONDS = 3.0
MOST_LISTS_PER_SECOND = 50
CONCURRENT_LISTS = 16


class SecretPoll:
    """Lists issued Secrets namespace by namespace."""

    def __init__(self, client: KubeClient, children: Children) -> None:
        self._client = client
        self._children = children

    async def run(
        self, namespaces: Callable[[], Iterable[str]], add: Callable[[Key], None]
    ) -> None:
        """Do rounds for ever, at most 50 lists a second: 150 tenants are seen every 3 seconds."""
        while True:
            names = list(namespaces())
            await asyncio.sleep(max(ROUND_SECONDS, len(names) / MOST_LISTS_PER_SECOND))
            for key in await self.round(names):
                add(key)

    async def round(self, namespaces: Iterable[str]) -> list[Key]:
        """List the Secrets of these namespaces once and return the keys that need a pass."""
        turn = asyncio.Semaphore(CONCURRENT_LISTS)

        async def look(namespace: str) -> list[Key]:
            async with turn:
                return await self._look(namespace)

        found = await asyncio.gather(*(look(namespace) for namespace in namespaces))
        return [key for keys in found for key in keys]

    async def _look(self, namespace: str) -> list[Key]:
        before = self._children.versions("Secret", namespace)
        try:
            listed = await self._client.list(
                "Secret", namespace=namespace, selector=SELECTOR, metadata_only=True
            )
        except (Rejected, Retryable) as error:
            # The namespace is new and not bound yet, or on its way out.
            log.debug("Secrets were not listed", namespace=namespace, reason=error.reason)
            return []
        secrets = [{**item, "kind": "Secret"} for item in listed]
        return self._children.difference(secrets, before)
