"""What an operator tells Postgres, for tests that have no operator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

from botplane.clock import utc_now
from botplane.postgres import Postgres


async def leads() -> bool:
    """Hold the Lease, always."""
    return True


def operator_calls(
    database_url: str,
    clock: Callable[[], datetime] = utc_now,
    *,
    identity: str = "first",
    holds_lease: Callable[[], Awaitable[bool]] = leads,
) -> Postgres:
    """Return the calls of an operator that leads, unless the test says otherwise."""
    return Postgres(database_url, clock, identity, holds_lease)
