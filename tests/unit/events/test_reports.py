"""Reports beside events: who asks for many holds up nobody who reports."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from fastapi import Request

from botplane.metering.events.store import IngestKey, secret_hash
from botplane.web.auth import Bearers
from botplane.web.reports import AT_ONCE, reports_router
from tests.support.until import until

KEY = IngestKey(
    key_id="k",
    tenant_id=uuid4(),
    bot_id=None,
    secret_hash=secret_hash("secret"),
    scopes=("usage:read",),
)


async def test_many_reports_leave_threads_and_connections_for_events() -> None:
    reading: list[int] = []
    ended = threading.Semaphore(0)

    def call(*_: Any) -> list[Any]:
        reading.append(1)
        ended.acquire(timeout=30)
        return []

    router = reports_router(Bearers(lambda *_: KEY), call, lambda: datetime.now(UTC))
    get_invoices = next(r.endpoint for r in router.routes if r.path == "/v1/invoices")  # type: ignore[attr-defined]
    headers = [(b"authorization", b"Bearer k.secret")]
    asked = [
        asyncio.create_task(get_invoices(Request({"type": "http", "headers": headers})))
        for _ in range(100)
    ]
    await until(lambda: len(reading) == AT_ONCE)

    stored = await asyncio.to_thread(lambda: "stored")
    seen = len(reading)
    ended.release(100)
    answers = await asyncio.gather(*asked)

    assert (stored, seen) == ("stored", AT_ONCE)
    assert [answer.status_code for answer in answers] == [200] * 100
