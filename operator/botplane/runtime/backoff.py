"""How long to wait after failures in a row. Pure but for its jitter."""

from __future__ import annotations

import random


def backoff_seconds(failures: int, first: float, longest: float) -> float:
    """Return a delay, from half of a ceiling up to it, that doubles with each failure.

    Args:
        failures: Failures in a row, this one included.
        first: Ceiling after the first failure, in seconds.
        longest: No ceiling is higher, in seconds.
    """
    ceiling = min(first * 2 ** min(failures - 1, 20), longest)
    return float(ceiling * random.uniform(0.5, 1.0))
