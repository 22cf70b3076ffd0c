"""Bodies of requests: of bounded size, and read within bounded time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from botplane.errors import Rejected

if TYPE_CHECKING:
    from fastapi import Request

READ_SECONDS: Final = 30.0


async def read_body(request: Request, most_bytes: int) -> bytes:
    """Return the body of a request.

    Raises:
        Rejected: It is larger than `most_bytes`, or did not come within 30 seconds.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise too_large(most_bytes)
    except TimeoutError:
        raise Rejected("BodyTooSlow", f"Send the body within {READ_SECONDS:.0f} seconds.") from None
    return bytes(body)


def too_large(most_bytes: int) -> Rejected:
    """Return the refusal of a body, before or while it is read."""
    return Rejected("BodyTooLarge", f"Send {most_bytes:,} bytes at most.")
