"""`POST /v1/events`: CloudEvents in, one verdict for each out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from botplane.errors import Rejected
from botplane.metering.events.policy import (
    MOST_BYTES,
    REFUSALS,
    TOO_OLD,
    Refusal,
    UsageEvent,
    Verdict,
    parse_body,
    read_event,
)
from botplane.metering.events.store import Batch, IngestKey
from botplane.web import metrics
from botplane.web.auth import Bearers
from botplane.web.body import read_body, too_large
from botplane.web.queue import EventQueue

IS_BATCH: Final = {
    "application/cloudevents+json": False,
    "application/cloudevents-batch+json": True,
}
MOST_DIGITS: Final = 12
"""Of a Content-Length; a longer number is too large anyhow."""


def events_router(bearers: Bearers, queue: EventQueue, clock: Callable[[], datetime]) -> APIRouter:
    """Return the route of usage events."""
    router = APIRouter()

    @router.post("/v1/events")
    async def post_events(request: Request) -> Response:
        """Store usage events; 200 has a verdict for each, and what it accepts is on disk."""
        key = await bearers.key_of(request.headers.get("authorization"), "usage:write")
        is_batch = _is_batch(request)
        with queue.room_for(_announced_size(request), key.tenant_id):
            body = await read_body(request, MOST_BYTES)
            read = [read_event(raw, clock()) for raw in parse_body(body, is_batch=is_batch)]
            verdicts = await _store(queue, key, [e for e in read if isinstance(e, UsageEvent)])
        return Response(_answer(read, verdicts), media_type="application/json")

    return router


async def _store(
    queue: EventQueue, key: IngestKey, events: Sequence[UsageEvent]
) -> Sequence[Verdict]:
    if not events:
        return []
    return await queue.write(Batch(tenant_id=key.tenant_id, bot_id=key.bot_id, events=events))


def _is_batch(request: Request) -> bool:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in IS_BATCH:
        raise Rejected("ContentTypeUnsupported", f"Send {' or '.join(IS_BATCH)}.")
    return IS_BATCH[content_type]


def _announced_size(request: Request) -> int:
    text = request.headers.get("content-length")
    size = MOST_BYTES
    if text is not None and text.isascii() and text.isdigit():
        size = int(text[:MOST_DIGITS])
    if size > MOST_BYTES:
        raise too_large(MOST_BYTES)
    return size


def _answer(read: Sequence[UsageEvent | Refusal], verdicts: Sequence[Verdict]) -> str:
    given = iter(verdicts)
    results: list[dict[str, Any]] = [
        {"id": event.event_id, "status": Verdict.REJECTED, "code": event.code}
        if isinstance(event, Refusal)
        else {"id": event.event_id, "status": next(given)}
        for event in read
    ]
    for result in results:
        if result["status"] is Verdict.REJECTED:
            result["message"] = REFUSALS[result.setdefault("code", TOO_OLD)]
    counts = Counter(result["status"] for result in results)
    for verdict, count in counts.items():
        metrics.EVENTS.labels(verdict).inc(count)
    totals = {verdict: counts[verdict] for verdict in Verdict}
    return json.dumps(totals | {"results": results}, separators=(",", ":"))
