"""The queue: never two passes of one key, never a change without a pass, failures slow down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from botplane.runtime.queue import MOST_OF_A_LANE, WorkQueue
from tests.support.until import until

KEYS = st.sampled_from(["a", "b", "c"])


class ManualClock:
    """Monotonic seconds that stand still until they are moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Passes:
    """Passes that end when the test says so, and what was seen of them."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Event] = {}
        self.started: Counter[str] = Counter()

    async def run(self, key: str) -> None:
        assert key not in self.running, "two passes of one key at once"
        self.started[key] += 1
        end = self.running[key] = asyncio.Event()
        await end.wait()
        del self.running[key]

    def end(self, key: str) -> None:
        self.running[key].set()


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Queue(RuleBasedStateMachine):
    """Three workers, three keys; changes come at any moment, passes end at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.passes = Passes()
        self.owed: Counter[str] = Counter()
        """Least number of passes that must have started, by key."""
        self.due: dict[str, float] = {}
        # Timers of the loop go off as the clock is moved.
        self.loop.time = self.clock  # type: ignore[method-assign]
        self.loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self.queue: WorkQueue[str] = WorkQueue(self.clock, str)
        self.workers = [asyncio.create_task(self.queue.work(self.passes.run)) for _ in range(3)]

    def _do(self, action: Callable[[], Any]) -> None:
        async def act() -> None:
            action()
            await settled()

        self.loop.run_until_complete(act())

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.owed[key] = self.passes.started[key] + 1
        self._do(lambda: self.queue.add(key))

    @rule(keys=st.lists(KEYS, min_size=2, max_size=8))
    def add_a_burst(self, keys: list[str]) -> None:
        for key in keys:
            self.owed[key] = self.passes.started[key] + 1

        def add_all() -> None:
            for key in keys:
                self.queue.add(key)

        self._do(add_all)

    @rule(key=KEYS, seconds=st.sampled_from([1.0, 3.0, 10.0]))
    def add_after(self, key: str, seconds: float) -> None:
        at = self.clock.now + seconds
        self.due[key] = min(at, self.due.get(key, at))
        self._do(lambda: self.queue.add_after(key, seconds))

    @rule(seconds=st.sampled_from([0.5, 2.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        for key in [key for key, at in self.due.items() if at <= self.clock.now]:
            del self.due[key]
            self.owed[key] = self.passes.started[key] + 1
        self._do(lambda: None)

    @rule(data=st.data())
    @precondition(lambda self: self.passes.running)
    def a_pass_ends(self, data: Any) -> None:
        key = data.draw(st.sampled_from(sorted(self.passes.running)))
        self._do(lambda: self.passes.end(key))

    @invariant()
    def what_waits_for_nothing_runs(self) -> None:
        for key, owed in self.owed.items():
            if key not in self.passes.running:
                assert self.passes.started[key] >= owed

    @invariant()
    def a_key_that_runs_has_at_most_one_pass_behind_it(self) -> None:
        assert len(self.queue) <= len({"a", "b", "c"})

    def teardown(self) -> None:
        try:
            while self.passes.running:
                self._end_one(next(iter(self.passes.running)))
            self.queue.close()
            self.loop.run_until_complete(asyncio.gather(*self.workers))
        finally:
            self.loop.close()

    def _end_one(self, key: str) -> None:
        started = self.passes.started[key]
        self._do(lambda: self.passes.end(key))
        if self.owed[key] > started:
            assert self.passes.started[key] == started + 1, "a change was lost"


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=40, stateful_step_count=20)


@pytest.mark.parametrize("delays", [(3, 10), (10, 3), (3, 3)])
async def test_the_first_of_several_delays_to_end_counts(
    monkeypatch: pytest.MonkeyPatch, delays: tuple[float, ...]
) -> None:
    clock, passes = ManualClock(), Passes()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    queue: WorkQueue[str] = WorkQueue(clock, str)
    worker = asyncio.create_task(queue.work(passes.run))
    for seconds in delays:
        queue.add_after("bot", seconds)

    clock.now += 3
    await settled()

    assert passes.started["bot"] == 1
    passes.end("bot")
    queue.close()
    await worker


async def test_delays_of_one_key_do_not_pile_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A bot that waits for its Secret asks for a look every three seconds, at the end of each pass.
    clock, passes = ManualClock(), Passes()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    queue: WorkQueue[str] = WorkQueue(clock, str)
    worker = asyncio.create_task(queue.work(passes.run))
    for _ in range(5):
        queue.add_after("bot", 3)
        clock.now += 0.125

    for _ in range(100):
        clock.now += 0.125
        await settled()
        if "bot" in passes.running:
            passes.end("bot")
            await settled()
            queue.add_after("bot", 3)

    assert passes.started["bot"] <= 4
    queue.close()
    await worker


async def test_the_loop_itself_releases_what_is_due() -> None:
    passes = Passes()
    queue: WorkQueue[str] = WorkQueue(asyncio.get_running_loop().time, str)
    worker = asyncio.create_task(queue.work(passes.run))

    queue.add_after("later", 30)
    queue.add_after("soon", 0.001)
    await until(lambda: "soon" in passes.running)

    assert passes.started == {"soon": 1}
    passes.end("soon")
    queue.close()
    await worker


async def test_delays_grow_with_each_failure_up_to_five_minutes() -> None:
    queue: WorkQueue[str] = WorkQueue(ManualClock(), str)

    delays = [queue.backoff("a") for _ in range(60)]

    ceilings = [min(0.25 * 2**n, 300.0) for n in range(60)]
    for delay, ceiling in zip(delays, ceilings, strict=True):
        assert ceiling / 2 <= delay <= ceiling
    assert queue.backoff("another") <= 0.25


async def test_a_hint_of_the_server_is_kept_and_success_forgets_the_failures() -> None:
    queue: WorkQueue[str] = WorkQueue(ManualClock(), str)
    for _ in range(9):
        queue.backoff("a")

    assert queue.backoff("a", at_least=400) == 400
    queue.succeeded("a")
    assert queue.backoff("a") <= 0.25


async def test_closing_lets_the_running_pass_end_and_drops_the_rest() -> None:
    passes = Passes()
    queue: WorkQueue[str] = WorkQueue(ManualClock(), str)
    workers = [asyncio.create_task(queue.work(passes.run)) for _ in range(2)]
    queue.add("a")
    await settled()

    queue.close()
    queue.add("b")
    await settled()
    assert list(passes.running) == ["a"]
    passes.end("a")

    await asyncio.wait_for(asyncio.gather(*workers), 5)
    await queue.drained(5)
    assert passes.started == {"a": 1}


async def test_the_age_of_the_oldest_waiting_key_is_told() -> None:
    clock = ManualClock()
    queue: WorkQueue[str] = WorkQueue(clock, str)
    assert queue.oldest_seconds == 0
    queue.add("a")
    clock.now += 7
    queue.add("b")

    assert queue.oldest_seconds == 7


async def test_who_asks_for_much_leaves_workers_to_the_others() -> None:
    passes = Passes()
    queue: WorkQueue[str] = WorkQueue(ManualClock(), lambda key: key[0])
    workers = [asyncio.create_task(queue.work(passes.run)) for _ in range(MOST_OF_A_LANE + 1)]
    for number in range(100):
        queue.add(f"loud-{number}")
    await settled()
    assert len(passes.running) == MOST_OF_A_LANE

    queue.add("calm")
    await settled()
    assert "calm" in passes.running

    passes.end("calm")
    passes.end("loud-0")
    await settled()
    assert len(passes.running) == MOST_OF_A_LANE, "a worker is kept free"
    while passes.running:
        passes.end(next(iter(passes.running)))
        await settled()
    assert passes.started.total() == 101
    queue.close()
    await asyncio.gather(*workers)


async def test_lanes_take_turns() -> None:
    order: list[str] = []

    async def run(key: str) -> None:
        order.append(key)
        await asyncio.sleep(0)

    queue: WorkQueue[str] = WorkQueue(ManualClock(), lambda key: key[0])
    for key in ("a1", "a2", "a3", "b1", "b2", "c1"):
        queue.add(key)
    worker = asyncio.create_task(queue.work(run))
    await settled()

    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]
    queue.close()
    await worker


async def test_what_is_asked_for_in_bulk_lets_others_go_first() -> None:
    order: list[str] = []

    async def run(key: str) -> None:
        order.append(key)
        await asyncio.sleep(0)

    queue: WorkQueue[str] = WorkQueue(ManualClock(), str)
    queue.add_all(["a", "b", "c"])
    queue.add("urgent")
    queue.add("b")
    worker = asyncio.create_task(queue.work(run))
    await settled()

    assert order == ["urgent", "a", "b", "c"]
    queue.close()
    await worker


async def test_the_age_of_what_was_asked_for_in_bulk_is_no_sign_of_a_stuck_queue() -> None:
    clock = ManualClock()
    queue: WorkQueue[str] = WorkQueue(clock, str)
    queue.add_all(["a", "b"])
    clock.now += 7
    assert queue.oldest_seconds == 0

    queue.add("c")
    clock.now += 2
    assert queue.oldest_seconds == 2
