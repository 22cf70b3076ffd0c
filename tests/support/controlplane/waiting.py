"""Wait until something is true, for a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A wait that ends well costs none of it: one bound suits all, and none is a promise.
PATIENCE_SECONDS = 60.0


class NotInTimeError(Exception):
    """What was waited for did not happen within its time."""


def until(
    check: Callable[[], T | None],
    *,
    what: str,
    within: float = PATIENCE_SECONDS,
    every: float = 0.05,
) -> T:
    """Call `check` until it returns something true, and return that.

    A look at what is not there yet (a missing key, item or object) counts as "not yet".

    Raises:
        NotInTimeError: `within` seconds passed; `what` names what was missing.
    """
    deadline = time.monotonic() + within
    while True:
        missing = None
        try:
            if found := check():
                return found
        except (LookupError, TypeError) as error:
            missing = error
        if time.monotonic() >= deadline:
            raise NotInTimeError(f"{what}: not within {within:g} s") from missing
        time.sleep(every)
