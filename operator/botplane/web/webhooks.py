"""`POST /v1/webhooks/stripe`: what the payment processor tells, kept for the next payment run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from botplane.billing.payments.run import receive_webhook
from botplane.billing.payments.webhooks import Signed
from botplane.web.body import read_body

MOST_BYTES: Final = 256 << 10
AT_ONCE: Final = 16
"""Anybody may send a body, and only then it can be known who has signed it."""

Call = Callable[..., Any]
"""Calls a store function with a connection; blocks."""


def webhooks_router(
    secrets: tuple[str, ...], call: Call, clock: Callable[[], datetime]
) -> APIRouter:
    """Return the route of webhooks.

    Args:
        secrets: That a webhook may be signed with: two while one rotates.
        call: Calls a store function.
        clock: Current time, UTC.
    """
    router = APIRouter()
    turn = asyncio.Semaphore(AT_ONCE)

    @router.post("/v1/webhooks/stripe")
    async def post_webhook(request: Request) -> Response:
        """Keep a signed event; 200 says that it is on disk, anything else: send it again."""
        header = request.headers.get("stripe-signature", "")
        async with turn:
            body = await read_body(request, MOST_BYTES)
            signed = Signed(body=body, header=header, secrets=secrets)
            await asyncio.to_thread(call, receive_webhook, "stripe", signed, clock())
        return Response(status_code=HTTPStatus.OK)

    return router
