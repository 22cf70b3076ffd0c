"""The queue of events: bounded, fair, and every request gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from botplane.errors import Retryable
from botplane.metering.events.policy import UsageEvent, Verdict
from botplane.metering.events.store import Batch
from botplane.web.queue import Bounds, EventQueue
from tests.support.until import until

A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)
BOUNDS = Bounds(events=100, body_bytes=1000, per_transaction=60)


def a_batch(tenant_id: UUID, size: int) -> Batch:
    event = UsageEvent(
        source="s",
        event_id="1",
        meter="ai_units",
        occurred_at=datetime(2026, 11, 1, tzinfo=UTC),
        quantity=Decimal(1),
        dims="{}",
    )
    return Batch(tenant_id=tenant_id, bot_id=None, events=[event] * size)


class Writer:
    """Writes when it is let; remembers the sizes of its transactions."""

    def __init__(self) -> None:
        self.may_write = threading.Event()
        self.groups: list[list[int]] = []
        self.fail: Callable[[Sequence[Batch]], Exception | None] = lambda _: None

    def __call__(self, batches: Sequence[Batch]) -> list[list[Verdict]]:
        self.groups.append([len(batch.events) for batch in batches])
        assert self.may_write.wait(5)
        if (error := self.fail(batches)) is not None:
            raise error
        return [[Verdict.ACCEPTED] * len(batch.events) for batch in batches]


@asynccontextmanager
async def running(writer: Writer) -> AsyncIterator[EventQueue]:
    queue = EventQueue(writer, BOUNDS)
    task = asyncio.create_task(queue.run())
    yield queue
    writer.may_write.set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_waits_is_written_together_up_to_a_size() -> None:
    writer = Writer()
    async with running(writer) as queue:
        first = asyncio.create_task(queue.write(a_batch(A, 1)))
        await until(lambda: len(writer.groups) == 1)
        others = [asyncio.create_task(queue.write(a_batch(t, 25))) for t in (A, B, C)]
        await asyncio.sleep(0)
        writer.may_write.set()

        assert await first == ["accepted"]
        assert [len(verdicts) for verdicts in await asyncio.gather(*others)] == [25, 25, 25]
        assert writer.groups == [[1], [25, 25], [25]]


async def test_full_queue_refuses_and_forgets_nothing_it_took() -> None:
    writer = Writer()
    async with running(writer) as queue:
        taken = [asyncio.create_task(queue.write(a_batch(t, 45))) for t in (A, B)]
        await until(lambda: len(writer.groups) == 1)

        with pytest.raises(Retryable) as refused:
            await queue.write(a_batch(C, 11))

        assert refused.value.reason == "TooManyEvents"
        assert refused.value.after_seconds == 1.0
        writer.may_write.set()
        assert [len(verdicts) for verdicts in await asyncio.gather(*taken)] == [45, 45]
        assert len(await queue.write(a_batch(C, 50))) == 50


async def test_one_tenant_leaves_room_for_the_others() -> None:
    writer = Writer()
    async with running(writer) as queue:
        greedy = asyncio.create_task(queue.write(a_batch(A, 50)))
        await until(lambda: len(writer.groups) == 1)

        with pytest.raises(Retryable):
            await queue.write(a_batch(A, 1))

        modest = asyncio.create_task(queue.write(a_batch(B, 50)))
        writer.may_write.set()
        assert len(await greedy) == len(await modest) == 50


async def test_bodies_are_bounded_while_they_are_read() -> None:
    queue = EventQueue(Writer(), BOUNDS)

    with queue.room_for(500, A), queue.room_for(300, B):
        with pytest.raises(Retryable), queue.room_for(201, C):
            pass
        with queue.room_for(200, C):
            pass
    with queue.room_for(500, B), queue.room_for(500, C):
        pass


async def test_bodies_of_one_tenant_leave_room_for_those_of_others() -> None:
    queue = EventQueue(Writer(), BOUNDS)

    with queue.room_for(400, A):
        with pytest.raises(Retryable), queue.room_for(101, A):
            pass
        with queue.room_for(500, B):
            pass


async def test_outage_is_told_to_everybody_in_the_transaction() -> None:
    writer = Writer()
    writer.fail = lambda _: Retryable("DatabaseUnavailable", "away")
    writer.may_write.set()
    async with running(writer) as queue:
        answers = await asyncio.gather(
            queue.write(a_batch(A, 1)), queue.write(a_batch(B, 1)), return_exceptions=True
        )

        assert [type(answer) for answer in answers] == [Retryable, Retryable]
        writer.fail = lambda _: None
        assert await queue.write(a_batch(A, 1)) == ["accepted"]


async def test_batch_that_postgres_refuses_fails_alone() -> None:
    writer = Writer()
    writer.fail = lambda batches: (
        ValueError("poison") if any(batch.tenant_id == B for batch in batches) else None
    )
    async with running(writer) as queue:
        first = asyncio.create_task(queue.write(a_batch(C, 1)))
        await until(lambda: len(writer.groups) == 1)
        others = [asyncio.create_task(queue.write(a_batch(t, 1))) for t in (A, B, C)]
        await asyncio.sleep(0)
        writer.may_write.set()

        assert await first == ["accepted"]
        answers = await asyncio.gather(*others, return_exceptions=True)
        assert [type(answer) for answer in answers] == [list, ValueError, list]


async def test_client_that_leaves_does_not_disturb_the_others() -> None:
    writer = Writer()
    async with running(writer) as queue:
        leaving = asyncio.create_task(queue.write(a_batch(A, 1)))
        staying = asyncio.create_task(queue.write(a_batch(B, 1)))
        await until(lambda: len(writer.groups) == 1)
        leaving.cancel()
        writer.may_write.set()

        assert await staying == ["accepted"]
