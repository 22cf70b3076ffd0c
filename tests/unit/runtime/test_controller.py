"""How a pass is judged: what comes next for its key, and that others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from botplane.errors import Rejected, Retryable
from botplane.kube.errors import ConflictError, NotFoundError
from botplane.kube.observe import Key
from botplane.runtime.controller import Controller, Done
from botplane.runtime.queue import WorkQueue
from tests.support.until import until

ACME, ZETA = Key("Tenant", "", "acme"), Key("Tenant", "", "zeta")


class Site:
    """A controller whose passes for `acme` end as told; what was seen of it."""

    def __init__(self, ends: Callable[[], Done]) -> None:
        self.queue: WorkQueue[Key] = WorkQueue(asyncio.get_running_loop().time, str)
        self.passes: list[str] = []
        self.bugs: list[tuple[str, str]] = []
        self._ends = ends

    async def reconcile(self, key: Key) -> Done:
        """Do one pass."""
        self.passes.append(key[2])
        return self._ends() if key == ACME else Done()

    async def report(self, key: Key, error: Exception) -> None:
        """Note a bug."""
        self.bugs.append((key[2], type(error).__name__))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Run the controller until something holds."""
        running = asyncio.create_task(
            Controller(self.queue, {"Tenant": self.reconcile}, self.report).run()
        )
        await until(condition)
        self.queue.close()
        await running


def raising(error: Exception) -> Callable[[], Done]:
    def ends() -> Done:
        raise error

    return ends


@pytest.fixture
def start() -> Callable[[Callable[[], Done]], Awaitable[Site]]:
    async def started(ends: Callable[[], Done]) -> Site:
        site = Site(ends)
        site.queue.add(ACME)
        site.queue.add(ZETA)
        return site

    return started


Start = Callable[[Callable[[], Done]], Awaitable[Site]]


@pytest.mark.parametrize(
    "error",
    [
        Retryable("APIServerError", "later"),
        ConflictError("the object has been modified"),
        NotFoundError("gone while the pass ran"),
    ],
    ids=["not ready", "conflict", "gone"],
)
async def test_what_may_succeed_later_is_tried_again_and_is_no_bug(
    start: Start, error: Exception
) -> None:
    site = await start(raising(error))

    await site.until(lambda: site.passes.count("acme") >= 2)

    assert site.bugs == []
    assert site.passes.count("zeta") == 1


async def test_a_bug_is_reported_and_tried_again_and_others_go_on(start: Start) -> None:
    site = await start(raising(KeyError("spec")))

    await site.until(lambda: site.passes.count("acme") >= 2)

    assert set(site.bugs) == {("acme", "KeyError")}
    assert site.passes.count("zeta") == 1


async def test_a_retry_that_a_pass_asks_for_comes(start: Start) -> None:
    site = await start(lambda: Done(retry=Retryable("NamespaceMissing", "soon")))

    await site.until(lambda: site.passes.count("acme") >= 2)


async def test_a_second_look_comes_after_its_time(start: Start) -> None:
    site = await start(lambda: Done(after_seconds=0.001))

    await site.until(lambda: site.passes.count("acme") >= 3)

    assert site.bugs == []


async def test_what_the_user_must_change_is_not_tried_again(start: Start) -> None:
    site = await start(raising(Rejected("QuotaExceeded", "no")))
    site.queue.backoff(ACME)
    site.queue.backoff(ACME)

    await site.until(lambda: site.passes.count("acme") >= 1 and len(site.queue) == 0)

    assert site.queue.backoff(ACME) <= 0.25
    assert site.bugs == []
