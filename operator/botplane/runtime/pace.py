"""How soon a changed object is looked at: at once, and more slowly while it keeps changing."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BURST = 5
"""Changes of one object that are followed at once."""
SECONDS_EACH = 5.0
"""After a burst: how often one object's changes are followed. Each may restart its pods."""


class Pace(Generic[K]):
    """A generic cell rate for each key: a burst, then one pass every few seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Take a monotonic clock, in seconds."""
        self._clock = clock
        self._paid_until: dict[K, float] = {}
        self._held_until: dict[K, float] = {}

    def delay(self, key: K) -> float:
        """Return how many seconds the pass for a change has to wait; 0 as long as there are few."""
        now = self._clock()
        paid = max(self._paid_until.get(key, now), now)
        wait = paid - now - (BURST - 1) * SECONDS_EACH
        if wait > 0:
            self._held_until[key] = now + wait
            return wait
        self._paid_until[key] = paid + SECONDS_EACH
        return 0.0

    def left(self, key: K) -> float:
        """Return how many seconds are left until a change that waits is followed; 0 without one.

        Whatever else asks for a pass asks for it then too: the one that was to come may have come
        before its time, as the next try of one that failed.
        """
        return max(0.0, self._held_until.get(key, 0.0) - self._clock())

    def forget(self, key: K) -> None:
        """Forget a key that is gone."""
        self._paid_until.pop(key, None)
        self._held_until.pop(key, None)
