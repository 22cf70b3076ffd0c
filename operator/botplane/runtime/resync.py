"""The safety net below the watches: full lists, compared with what is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

import structlog

from botplane.api.labels import MANAGED_BY, MANAGED_BY_VALUE
from botplane.errors import Rejected, Retryable
from botplane.kube.client import KubeClient
from botplane.kube.observe import Children, Key
from botplane.kube.resources import Manifest, ref_of
from botplane.runtime.objects import Objects, key_of
from botplane.runtime.turns import in_turns
from botplane.telemetry.metrics import RESYNC_FOUND

log = structlog.get_logger()
Id = TypeVar("Id")

RESYNC_SECONDS = 300.0
CONCURRENT_LISTS = 2
SELECTOR = f"{MANAGED_BY}={MANAGED_BY_VALUE}"


class Known(Protocol[Id]):
    """What is known of objects, by their identity."""

    def versions(self, kind: str) -> dict[Id, int]:
        """Return what is known of a kind, to be taken before it is listed."""

    def difference(self, listed: Iterable[Manifest], before: Mapping[Id, int]) -> list[Key]:
        """Take note of a list; return who has to look at what was not known."""


class Resync:
    """Lists every kind and finds what a lost watch event hid; a deletion too.

    Whom it concerns is told page by page: what a list has found until it fails is known from then
    on, and no later list finds it again.
    """

    def __init__(
        self,
        client: KubeClient,
        objects: Objects,
        children: Children,
        wake: Callable[[Key], None],
    ) -> None:
        self._client = client
        self._objects = objects
        self._children = children
        self._wake = wake
        self.last: float | None = None
        """Loop time of the last complete round."""
        self.versions: dict[str, str] = {}
        """The resourceVersion of the last list of each kind: a watch goes on there."""

    async def round(self, kinds: Iterable[str], child_kinds: Iterable[str]) -> None:
        """List all kinds once and wake the keys that need a pass.

        Raises:
            Rejected, Retryable: A list failed; what was read until then is kept.
        """
        # Two at once: the API server writes one list while the other is read.
        await in_turns(self.children_of, child_kinds, at_once=CONCURRENT_LISTS)
        for kind in kinds:
            await self._compare(kind, self._objects, key_of, "")
        self.last = asyncio.get_running_loop().time()

    async def children_of(self, kind: str) -> None:
        """List one kind of children and wake the owners that need a pass.

        Raises:
            Rejected, Retryable: The list failed.
        """
        await self._compare(kind, self._children, ref_of, SELECTOR)

    async def _compare(
        self, kind: str, known: Known[Id], identity: Callable[[Manifest], Id], selector: str
    ) -> None:
        """List a kind page by page and wake whom it concerns that it is not as it was known."""
        before = known.versions(kind)
        async for page in self._client.pages(kind, selector=selector):
            for body in page.items:
                # Items of a list do not carry their kind.
                body["kind"] = kind
                before.pop(identity(body), None)
            self._tell(kind, known.difference(page.items, {}))
            self.versions[kind] = page.version
            # Hundreds of objects, which need not wait in memory for the next hundreds.
            page.items.clear()
        self._tell(kind, known.difference([], before))

    async def run(self, kinds: Iterable[str], child_kinds: Iterable[str]) -> None:
        """Do rounds for ever; the first at once if the last is long ago, as after a long wait."""
        age = 0.0 if self.last is None else asyncio.get_running_loop().time() - self.last
        while True:
            await asyncio.sleep(max(0.0, RESYNC_SECONDS - age))
            age = 0.0
            try:
                await self.round(kinds, child_kinds)
            except (Rejected, Retryable) as error:
                log.warning("Resync failed", reason=error.reason, message=error.message)

    def _tell(self, kind: str, found: list[Key]) -> None:
        if self.last is not None and found:
            RESYNC_FOUND.labels(kind).inc(len(found))
        for key in found:
            self._wake(key)
