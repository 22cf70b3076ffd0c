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
from botplane.runtime.turns import in_turns

log = structlog.get_logger()

ROUND_SECONDS = 3.0
MOST_LISTS_PER_SECOND = 50
CONCURRENT_LISTS = 16


class SecretPoll:
    """Lists issued Secrets namespace by namespace."""

    def __init__(self, client: KubeClient, children: Children) -> None:
        self._client = client
        self._children = children
        self._first: dict[str, asyncio.Task[list[Key]]] = {}
        """The first look at each namespace: under way, or done and kept as a sign of that."""

    async def first_look(self, namespace: str) -> None:
        """List the Secrets of a namespace, once: no pass may mistake the unknown for the absent.

        Asked for by passes, so that no start has to wait for a thousand lists.

        Raises:
            Retryable: The API server does not answer.
        """
        task = self._first.get(namespace)
        if task is None or (task.done() and task.exception() is not None):
            task = self._first[namespace] = asyncio.create_task(self._look(namespace, Rejected))
        await asyncio.shield(task)

    async def run(
        self, namespaces: Callable[[], Iterable[str]], add: Callable[[Key], None]
    ) -> None:
        """Do rounds for ever, at most 50 lists a second: 150 tenants are seen every 3 seconds."""
        while True:
            names = list(namespaces())
            await asyncio.sleep(max(ROUND_SECONDS, len(names) / MOST_LISTS_PER_SECOND))
            self._first = {name: self._first[name] for name in names if name in self._first}
            for key in await self._round(names):
                add(key)

    async def _round(self, namespaces: Iterable[str]) -> list[Key]:
        async def look(namespace: str) -> list[Key]:
            return await self._look(namespace, Rejected, Retryable)

        found = await in_turns(look, namespaces, at_once=CONCURRENT_LISTS)
        return [key for keys in found for key in keys]

    async def _look(self, namespace: str, *passed_over: type[Rejected | Retryable]) -> list[Key]:
        before = self._children.versions("Secret", namespace)
        try:
            listed = await self._client.list(
                "Secret", namespace=namespace, selector=SELECTOR, metadata_only=True
            )
        except passed_over as error:
            # The namespace is new and not bound yet, or on its way out.
            log.debug("Secrets were not listed", namespace=namespace, reason=error.reason)
            return []
        secrets = [{**item, "kind": "Secret"} for item in listed]
        return self._children.difference(secrets, before)
