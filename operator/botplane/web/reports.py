"""`GET /v1/usage` and `GET /v1/invoices`: what the key's own tenant used and owes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from botplane.errors import Rejected
from botplane.usage import store as usage_store
from botplane.usage.documents import standing_document
from botplane.web import store
from botplane.web.auth import Bearers

Call = Callable[..., Any]
"""Calls a store function with a connection; blocks."""


def reports_router(bearers: Bearers, call: Call, clock: Callable[[], datetime]) -> APIRouter:
    """Return the routes that read."""
    router = APIRouter()

    @router.get("/v1/usage")
    async def get_usage(request: Request) -> JSONResponse:
        """Where the tenant stands in the period that runs now, to the second."""
        key = await bearers.key_of(request.headers.get("authorization"), "usage:read")
        now = clock()
        stands, _ = await asyncio.to_thread(call, usage_store.standings, now, [key.tenant_id])
        if key.tenant_id not in stands:
            raise Rejected("PeriodNotFound", "The tenant has no billing period now.")
        return JSONResponse(standing_document(stands[key.tenant_id], now))

    @router.get("/v1/invoices")
    async def get_invoices(request: Request) -> JSONResponse:
        """The invoices that were issued to the tenant, the newest first, a hundred at most."""
        key = await bearers.key_of(request.headers.get("authorization"), "usage:read")
        return JSONResponse(
            {"invoices": await asyncio.to_thread(call, store.invoices, key.tenant_id)}
        )

    return router
