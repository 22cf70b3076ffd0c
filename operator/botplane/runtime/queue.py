"""A keyed work queue: one pass in flight per key, changes coalesce, failures back off by key."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")

FIRST_BACKOFF_SECONDS = 0.25
LAST_BACKOFF_SECONDS = 300.0


class WorkQueue(Generic[K]):
    """Keys that wait for a pass.

    A key added while its pass runs is run once more afterwards, never beside it. Delayed keys
    do not occupy a worker.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Take a monotonic clock, in seconds."""
        self._clock = clock
        self._ready: asyncio.Queue[K | None] = asyncio.Queue()
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
        """How long the first ready key has waited."""
        first = next(iter(self._since.values()), None)
        return 0.0 if first is None else self._clock() - first

    def add(self, key: K) -> None:
        """Ask for a pass, now."""
        if key in self._running:
            self._again.add(key)
        elif key not in self._since:
            self._since[key] = self._clock()
            self._ready.put_nowait(key)

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
        ceiling: float = min(
            FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 20), LAST_BACKOFF_SECONDS
        )
        delay = max(at_least, ceiling * random.uniform(0.5, 1.0))
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
        self._ready.put_nowait(None)

    async def work(self, run: Callable[[K], Awaitable[None]]) -> None:
        """Run passes until the queue is closed. `run` must not raise."""
        while True:
            key = await self._ready.get()
            if self._closed or key is None:
                self._ready.put_nowait(None)
                return
            del self._since[key]
            self._running.add(key)
            self._idle.clear()
            try:
                await run(key)
            finally:
                self._running.discard(key)
                if not self._running:
                    self._idle.set()
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

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
