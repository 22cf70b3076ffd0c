"""Events on their way to Postgres: bounded, written together, answered when they are on disk.

While one transaction commits the next one gathers, so the batches grow with the load. Nothing is
taken that does not fit: whoever is refused still has the event.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog

from botplane.errors import Retryable
from botplane.metering.events.policy import Verdict
from botplane.metering.events.store import Batch
from botplane.web import metrics

log = structlog.get_logger()

STUCK_AFTER_SECONDS: Final = 330.0
"""Longer than the longest statement."""

Ingest = Callable[[Sequence[Batch]], list[list[Verdict]]]
"""Writes batches in one transaction; blocks."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much one process holds.

    Attributes:
        events: Events that are not on disk yet.
        body_bytes: Bodies of requests that are not answered yet.
        per_transaction: Events written at once.
        tenant_share: Part of `events` and of `body_bytes` that one tenant may fill, in percent.
    """

    events: int = 50_000
    body_bytes: int = 64 << 20
    per_transaction: int = 20_000
    tenant_share: int = 50


@dataclass(kw_only=True)
class _Waiting:
    batch: Batch
    done: asyncio.Future[list[Verdict]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class EventQueue:
    """Takes batches from many requests and writes them from one thread."""

    def __init__(self, ingest: Ingest, bounds: Bounds | None = None) -> None:
        self._ingest = ingest
        self._bounds = bounds or Bounds()
        self._pending: list[_Waiting] = []
        self._by_tenant = Counter[UUID]()
        self._bytes = Counter[UUID]()
        self._arrived = asyncio.Event()
        self._writing_since: float | None = None

    @contextmanager
    def room_for(self, size: int, tenant_id: UUID) -> Iterator[None]:
        """Keep room for the body of one request while it is read and answered.

        Raises:
            Retryable: There is none.
        """
        most = self._bounds.body_bytes
        share = most * self._bounds.tenant_share // 100
        if self._bytes.total() + size > most or self._bytes[tenant_id] + size > share:
            raise _full()
        self._bytes[tenant_id] += size
        metrics.QUEUED_BYTES.set(self._bytes.total())
        try:
            yield
        finally:
            _take_from(self._bytes, tenant_id, size)
            metrics.QUEUED_BYTES.set(self._bytes.total())

    async def write(self, batch: Batch) -> list[Verdict]:
        """Return the verdicts on a batch once they are on disk.

        Raises:
            Retryable: There is no room, or Postgres did not confirm; nothing may be said of
                the events.
        """
        size, tenant_id = len(batch.events), batch.tenant_id
        share = self._bounds.events * self._bounds.tenant_share // 100
        if (
            self._by_tenant.total() + size > self._bounds.events
            or self._by_tenant[tenant_id] + size > share
        ):
            raise _full()
        waiting = _Waiting(batch=batch)
        self._pending.append(waiting)
        self._by_tenant[tenant_id] += size
        metrics.QUEUED_EVENTS.set(self._by_tenant.total())
        self._arrived.set()
        return await waiting.done

    async def run(self) -> None:
        """Write what arrives, until cancelled."""
        while True:
            await self._arrived.wait()
            group = self._take()
            try:
                await self._write_group(group)
            finally:
                for waiting in group:
                    self._forget(waiting)

    def is_stuck(self) -> bool:
        """Say whether one transaction takes longer than any may."""
        since = self._writing_since
        return since is not None and time.monotonic() - since > STUCK_AFTER_SECONDS

    def _take(self) -> list[_Waiting]:
        taken, size = 0, 0
        for waiting in self._pending:
            size += len(waiting.batch.events)
            if taken and size > self._bounds.per_transaction:
                break
            taken += 1
        group, self._pending = self._pending[:taken], self._pending[taken:]
        if not self._pending:
            self._arrived.clear()
        return group

    async def _write_group(self, group: list[_Waiting]) -> None:
        self._writing_since = time.monotonic()
        try:
            with metrics.INGEST_SECONDS.time():
                verdicts = await asyncio.to_thread(self._ingest, [w.batch for w in group])
        except Retryable as error:
            log.warning("Events were not stored", reason=error.reason, requests=len(group))
            for waiting in group:
                _answer(waiting, error)
        except Exception as error:  # noqa: BLE001 - every request gets its answer
            await self._write_apart(group, error)
        else:
            for waiting, answer in zip(group, verdicts, strict=True):
                _answer(waiting, answer)
        finally:
            self._writing_since = None

    async def _write_apart(self, group: list[_Waiting], error: Exception) -> None:
        """One request must not fail the others that happened to be written with it."""
        if len(group) == 1:
            log.error("Postgres refused events", exc_info=error)
            _answer(group[0], error)
            return
        for waiting in group:
            await self._write_group([waiting])

    def _forget(self, waiting: _Waiting) -> None:
        _take_from(self._by_tenant, waiting.batch.tenant_id, len(waiting.batch.events))
        metrics.QUEUED_EVENTS.set(self._by_tenant.total())


def _answer(waiting: _Waiting, answer: list[Verdict] | Exception) -> None:
    if waiting.done.done():  # the client has left
        return
    if isinstance(answer, Exception):
        waiting.done.set_exception(answer)
    else:
        waiting.done.set_result(answer)


def _take_from(held: Counter[UUID], tenant_id: UUID, amount: int) -> None:
    held[tenant_id] -= amount
    if not held[tenant_id]:
        del held[tenant_id]


def _full() -> Retryable:
    return Retryable("TooManyEvents", "Too many events wait to be stored; send them again.", 1.0)
