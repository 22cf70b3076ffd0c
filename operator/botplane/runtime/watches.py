"""One watch for each kind of children, without kopf: ADR 6.

Level-triggered: a watch goes on where it broke off, and lists again when that is too long ago.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog

from botplane.errors import Rejected, Retryable
from botplane.kube.client import KubeClient
from botplane.kube.errors import GoneError, NotFoundError
from botplane.kube.resources import Manifest
from botplane.runtime.backoff import backoff_seconds
from botplane.runtime.front_end import Note
from botplane.runtime.resync import SELECTOR, Resync

log = structlog.get_logger()

FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 30.0
SHORT_WATCH_SECONDS = 1.0
"""A watch that ends sooner counts as failed: an API server that closes all must not be flooded."""


class ChildWatches:
    """Follows all kinds of children from where the last full list ended."""

    def __init__(self, client: KubeClient, resync: Resync, note: Note) -> None:
        self._client = client
        self._resync = resync
        self._note = note

    async def run(self, kinds: Iterable[str]) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind in kinds:
                group.create_task(self._follow(kind))

    async def _follow(self, kind: str) -> None:
        version, failures = self._resync.versions[kind], 0
        while True:
            began = time.monotonic()
            try:
                async for event, body in self._client.watch(kind, version, selector=SELECTOR):
                    version = body["metadata"]["resourceVersion"]
                    if event != "BOOKMARK":
                        self._take(kind, event, body)
            except GoneError:
                version = await self._listed(kind, version)
            except (Rejected, Retryable, NotFoundError) as error:
                log.info("A watch broke", of=kind, message=str(error))
            if time.monotonic() - began > SHORT_WATCH_SECONDS:
                failures = 0
            else:
                failures += 1
                await asyncio.sleep(
                    backoff_seconds(failures, FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS)
                )

    async def _listed(self, kind: str, version: str) -> str:
        """Catch up by a full list; return the version from which to go on."""
        try:
            await self._resync.children_of(kind)
        except (Rejected, Retryable) as error:
            log.info("A list failed", of=kind, message=error.message)
            return version
        return self._resync.versions[kind]

    def _take(self, kind: str, event: str, body: Manifest) -> None:
        try:
            body.setdefault("kind", kind)
            self._note(event, body)
        except Exception:  # one strange object must not stop the news of all others
            name = (body.get("metadata") or {}).get("name")
            log.exception("An event was not understood", of=kind, name=name)
