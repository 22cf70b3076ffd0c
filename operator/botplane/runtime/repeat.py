"""Work that comes around: what fails this time is told, and tried the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from botplane.errors import Rejected, Retryable

log = structlog.get_logger()


async def repeat(act: Callable[[], Awaitable[None]], seconds: float, failure: str) -> None:
    """Do something every `seconds`, for ever; `failure` is what the log says when it fails."""
    while True:
        try:
            await act()
        except (Rejected, Retryable) as error:
            log.warning(failure, reason=error.reason, message=error.message)
        await asyncio.sleep(seconds)
