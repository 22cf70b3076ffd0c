"""A keyed work queue: one pass in flight per key, changes coalesce, failures back off by key.

Keys wait in lanes, one for each tenant, that take turns: who changes a thousand things waits
longer, not the others.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

from botplane.runtime.backoff import backoff_seconds

K = TypeVar("K")

FIRST_BACKOFF_SECONDS = 0.25
LAST_BACKOFF_SECONDS = 300.0
PATIENCE = 10_000
"""How many later keys go before one that was asked for together with all others."""
MOST_OF_A_LANE = 4
"""Passes of one lane that run at once: the other workers are for the others."""


class WorkQueue(Generic[K]):
    """Keys that wait for a pass.

    A key added while its pass runs is run once more afterwards, never beside it. Delayed keys
    do not occupy a worker.
    """

    def __init__(self, clock: Callable[[], float], lane: Callable[[K], Hashable]) -> None:
        """Take a monotonic clock, in seconds, and what tells the lane of a key."""
        self._clock = clock
        self._lane = lane
        self._waiting: defaultdict[Hashable, deque[K]] = defaultdict(deque)
        self._busy: Counter[Hashable] = Counter()
        self._turns: asyncio.PriorityQueue[tuple[int, int, Hashable]] = asyncio.PriorityQueue()
        """Lanes in which a key may start, each once, by their place in the order."""
        self._patient: set[K] = set()
        self._in_turn: set[Hashable] = set()
        self._since: dict[K, float] = {}
        self._running: set[K] = set()
        self._again: set[K] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._delayed: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._order = itertools.count()
        self._failures: dict[K, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        """How many keys are ready or running."""
        return len(self._since) + len(self._running)

    @property
    def oldest_seconds(self) -> float:
        """How long the first ready key has waited, but for those that were asked for in bulk."""
        ready = (since for key, since in self._since.items() if key not in self._patient)
        first = next(ready, None)
        return 0.0 if first is None else self._clock() - first

    def add_all(self, keys: Iterable[K]) -> None:
        """Ask for passes of much at once, such as of all there is: what comes later goes first."""
        for key in keys:
            if key not in self._since and key not in self._running:
                self._patient.add(key)
            self.add(key)

    def add(self, key: K) -> None:
        """Ask for a pass, now."""
        if key in self._running:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = self._clock()
            lane = self._lane(key)
            self._waiting[lane].append(key)
            self._take_turn(lane)

    def add_after(self, key: K, seconds: float) -> None:
        """Ask for a pass after a delay; of several delays of a key the first to end counts."""
        at = self._clock() + seconds
        if at < self._due.get(key, math.inf):
            self._due[key] = at
            heapq.heappush(self._delayed, (at, next(self._order), key))
            self._arm()

    def backoff(self, key: K, at_least: float = 0.0) -> float:
        """Ask for a pass after a delay that grows with each failure in a row; return the delay."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = max(
            at_least, backoff_seconds(failures, FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS)
        )
        self.add_after(key, delay)
        return delay

    def succeeded(self, key: K) -> None:
        """Forget the failures of a key."""
        self._failures.pop(key, None)

    async def drained(self, seconds: float) -> None:
        """Wait until no pass is under way, at most so long."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return

    def close(self) -> None:
        """Let workers stop after the pass they are in; keys that wait are dropped."""
        self._closed = True
        self._turns.put_nowait((-1, -1, None))

    async def work(self, run: Callable[[K], Awaitable[None]]) -> None:
        """Run passes until the queue is closed. `run` must not raise."""
        while True:
            _, _, lane = await self._turns.get()
            if self._closed:
                self._turns.put_nowait((-1, -1, None))
                return
            key = self._start(lane)
            try:
                await run(key)
            finally:
                self._running.discard(key)
                self._busy[lane] -= 1
                self._take_turn(lane)
                if not self._running:
                    self._idle.set()
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    def _start(self, lane: Hashable) -> K:
        key = self._waiting[lane].popleft()
        self._patient.discard(key)
        del self._since[key]
        self._running.add(key)
        self._idle.clear()
        self._busy[lane] += 1
        self._in_turn.discard(lane)
        self._take_turn(lane)
        return key

    def _take_turn(self, lane: Hashable) -> None:
        """Queue a lane up behind the others if a key of it may start; forget one that is empty."""
        if not self._waiting[lane]:
            del self._waiting[lane]
            if not self._busy[lane]:
                del self._busy[lane]
        elif lane not in self._in_turn and self._busy[lane] < MOST_OF_A_LANE:
            self._in_turn.add(lane)
            place = next(self._order)
            behind = PATIENCE if self._waiting[lane][0] in self._patient else 0
            self._turns.put_nowait((place + behind, place, lane))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._delayed:
            wait = max(0.0, self._delayed[0][0] - self._clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self._release)

    def _release(self) -> None:
        while self._delayed and self._delayed[0][0] <= self._clock():
            at, _, key = heapq.heappop(self._delayed)
            if self._due.get(key) == at:
                del self._due[key]
                self.add(key)
        self._arm()
