"""Leadership by a Lease: one replica writes, the others wait.

The rules are client-go's (15 s / 10 s / 2 s), with two differences: expiry is judged by what this
process has seen change and never by the other's clock, and the lease is released on exit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

import structlog

from botplane.errors import Rejected, Retryable
from botplane.kube.client import KubeClient
from botplane.kube.errors import ConflictError, NotFoundError
from botplane.kube.resources import Manifest, Ref
from botplane.telemetry.metrics import LEADER

log = structlog.get_logger()

LEASE_SECONDS = 15.0
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0


class Lease:
    """One replica's view of the lease."""

    def __init__(
        self, client: KubeClient, ref: Ref, identity: str, wall: Callable[[], datetime]
    ) -> None:
        self._client = client
        self._ref = ref
        self._identity = identity
        self._wall = wall
        self._seen: tuple[Any, ...] = ()
        self._seen_at = 0.0
        self._held: Manifest | None = None
        self._turn = asyncio.Lock()

    async def acquire(self) -> None:
        """Return once this replica leads."""
        while not await self._try():  # noqa: ASYNC110 - the other replica cannot set an event
            await asyncio.sleep(RETRY_SECONDS)
        LEADER.set(1)
        log.info("Became leader", lease=str(self._ref), identity=self._identity)

    async def hold(self) -> None:
        """Renew until that has failed for the renew deadline; then return: leadership is lost."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            tried = loop.time()
            if await self._try_until(renewed + RENEW_DEADLINE_SECONDS):
                renewed = tried
            elif loop.time() - renewed >= RENEW_DEADLINE_SECONDS:
                LEADER.set(0)
                log.error("Lost leadership", lease=str(self._ref))
                return

    async def is_held(self) -> bool:
        """Renew now, and return whether this replica holds the lease at this moment."""
        return self._held is not None and await self._try()

    async def release(self) -> None:
        """Give the lease up, so that the next replica need not wait for it to expire."""
        if self._held is None:
            return
        body = self._body(self._held, holder="")
        self._held = None
        LEADER.set(0)
        try:
            await self._client.replace(body)
        except (ConflictError, NotFoundError, Rejected, Retryable):
            log.info("Lease was not released; it will expire", lease=str(self._ref))

    async def _try_until(self, deadline: float) -> bool:
        # A call that hangs must end here: another replica leads once the lease has expired.
        try:
            async with asyncio.timeout_at(deadline):
                return await self._try()
        except TimeoutError:
            return False

    async def _try(self) -> bool:
        async with self._turn:
            return await self._tried()

    async def _tried(self) -> bool:
        try:
            return await self._renewed() if self._held is not None else await self._taken()
        except (ConflictError, NotFoundError):
            self._held = None
        except (Rejected, Retryable) as error:
            log.warning("Lease was not reached", reason=error.reason, message=error.message)
        return False

    async def _renewed(self) -> bool:
        assert self._held is not None  # noqa: S101 - for the type checker
        self._held = await self._client.replace(self._body(self._held, self._identity))
        return True

    async def _taken(self) -> bool:
        try:
            there = await self._client.get(self._ref)
        except NotFoundError:
            self._held = await self._client.create(self._body(None, self._identity))
            return True
        holder = there["spec"].get("holderIdentity")
        if holder and holder != self._identity and not self._expired(there):
            return False
        self._held = await self._client.replace(self._body(there, self._identity))
        return True

    def _expired(self, there: Manifest) -> bool:
        spec = there["spec"]
        seen = (spec.get("holderIdentity"), spec.get("renewTime"))
        now = asyncio.get_running_loop().time()
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now - self._seen_at > LEASE_SECONDS

    def _body(self, there: Manifest | None, holder: str) -> Manifest:
        now = self._wall().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        meta = {"name": self._ref.name, "namespace": self._ref.namespace}
        old = there["spec"] if there else {}
        if there is not None:
            meta["resourceVersion"] = there["metadata"]["resourceVersion"]
        changed = old.get("holderIdentity") != holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": int(LEASE_SECONDS),
            "acquireTime": now if changed else old.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": old.get("leaseTransitions", 0) + (1 if changed and holder else 0),
        }
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": meta,
            "spec": spec,
        }
