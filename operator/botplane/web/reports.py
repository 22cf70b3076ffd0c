"""`GET /v1/usage`, `/v1/invoices` and `/v1/notices`: what the key's own tenant used and owes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from botplane.billing.dunning.policy import notice_document
from botplane.billing.dunning.store import notices_of
from botplane.errors import Rejected
from botplane.usage import store as usage_store
from botplane.usage.documents import standing_document
from botplane.usage.forecast.store import forecast_of
from botplane.web import store
from botplane.web.auth import Bearers

if TYPE_CHECKING:
    from uuid import UUID

    from psycopg import Connection

AT_ONCE: Final = 2
"""Reports that are read at a time: the other connections are for events, whoever asks how often."""

Call = Callable[..., Any]
"""Calls a store function with a connection; blocks."""


def reports_router(bearers: Bearers, call: Call, clock: Callable[[], datetime]) -> APIRouter:
    """Return the routes that read."""
    router = APIRouter()
    turn = asyncio.Semaphore(AT_ONCE)

    async def read(function: Callable[..., Any], *arguments: Any) -> Any:
        async with turn:
            return await asyncio.to_thread(call, function, *arguments)

    @router.get("/v1/usage")
    async def get_usage(request: Request) -> JSONResponse:
        """Where the tenant stands in the period that runs now, and what it is likely to cost."""
        key = await bearers.key_of(request.headers.get("authorization"), "usage:read")
        return JSONResponse(await read(_usage, key.tenant_id, clock()))

    @router.get("/v1/invoices")
    async def get_invoices(request: Request) -> JSONResponse:
        """The invoices that were issued to the tenant, the newest first, a hundred at most."""
        key = await bearers.key_of(request.headers.get("authorization"), "usage:read")
        return JSONResponse({"invoices": await read(store.invoices, key.tenant_id)})

    @router.get("/v1/notices")
    async def get_notices(request: Request) -> JSONResponse:
        """What the tenant was told of unpaid invoices, the newest first, a hundred at most."""
        key = await bearers.key_of(request.headers.get("authorization"), "usage:read")
        found = await read(notices_of, key.tenant_id)
        return JSONResponse({"notices": [notice_document(notice) for notice in found]})

    return router


def _usage(conn: Connection[Any], tenant_id: UUID, now: datetime) -> dict[str, Any]:
    stands, _ = usage_store.standings(conn, now, [tenant_id])
    if tenant_id not in stands:
        raise Rejected("PeriodNotFound", "The tenant has no billing period now.")
    stand = stands[tenant_id]
    return standing_document(stand, forecast_of(conn, stand, now), now)
