"""The safety net below the watches: full lists, compared with what is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from botplane.api.labels import MANAGED_BY, MANAGED_BY_VALUE
from botplane.errors import Rejected, Retryable
from botplane.kube.client import KubeClient
from botplane.kube.observe import Children, Key
from botplane.kube.resources import Manifest, ref_of
from botplane.runtime.objects import Objects, key_of
from botplane.telemetry.metrics import RESYNC_FOUND

log = structlog.get_logger()

RESYNC_SECONDS = 300.0
SELECTOR = f"{MANAGED_BY}={MANAGED_BY_VALUE}"


class Resync:
    """Lists every kind and finds what a lost watch event hid; a deletion too."""

    def __init__(self, client: KubeClient, objects: Objects, children: Children) -> None:
        self._client = client
        self._objects = objects
        self._children = children
        self.last: float | None = None
        """Loop time of the last complete round."""
        self.versions: dict[str, str] = {}
        """The resourceVersion of the last list of each kind of children: a watch goes on there."""

    async def round(self, kinds: Iterable[str], child_kinds: Iterable[str]) -> list[Key]:
        """List all kinds once and return the keys that need a pass.

        Raises:
            Rejected, Retryable: A list failed; what was read until then is kept.
        """
        found: list[Key] = []
        for kind in child_kinds:
            found += await self.children_of(kind)
        for kind in kinds:
            found += await self._objects_of(kind)
        self.last = asyncio.get_running_loop().time()
        return found

    async def children_of(self, kind: str) -> list[Key]:
        """List one kind of children and return the owners that need a pass.

        Raises:
            Rejected, Retryable: The list failed.
        """
        found, before = list[Key](), self._children.versions(kind)
        async for page in self._client.pages(kind, selector=SELECTOR):
            children = _kinded(kind, page.items)
            found += self._children.difference(children, {})
            for child in children:
                before.pop(ref_of(child), None)
            self.versions[kind] = page.version
        return self._counted(kind, found + self._children.difference([], before))

    async def _objects_of(self, kind: str) -> list[Key]:
        found, before = list[Key](), self._objects.versions(kind)
        async for page in self._client.pages(kind):
            objects = _kinded(kind, page.items)
            found += self._objects.difference(objects, {})
            for body in objects:
                before.pop(key_of(body), None)
        return self._counted(kind, found + self._objects.difference([], before))

    async def run(
        self, kinds: Iterable[str], child_kinds: Iterable[str], add: Callable[[Key], None]
    ) -> None:
        """Do rounds for ever."""
        while True:
            await asyncio.sleep(RESYNC_SECONDS)
            try:
                for key in await self.round(kinds, child_kinds):
                    add(key)
            except (Rejected, Retryable) as error:
                log.warning("Resync failed", reason=error.reason, message=error.message)

    def _counted(self, kind: str, found: list[Key]) -> list[Key]:
        if self.last is not None and found:
            RESYNC_FOUND.labels(kind).inc(len(found))
        return found


def _kinded(kind: str, items: list[Manifest]) -> list[Manifest]:
    # Items of a list do not carry their kind.
    return [{**item, "kind": kind} for item in items]
