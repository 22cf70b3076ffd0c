"""The gateway as an ASGI application: `POST /<chain>` with a bot's key, JSON-RPC in and out."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection
from datetime import datetime
from http import HTTPStatus
from typing import Final
from uuid import UUID

import structlog
from starlette.types import Receive, Scope, Send

from botplane.errors import Rejected, Retryable
from botplane.gateway import metrics
from botplane.gateway.counts import Counts
from botplane.gateway.policy import (
    CODES,
    MOST_BYTES,
    Access,
    Call,
    Caller,
    Request,
    answer_body,
    batch_body,
    call_body,
    caller_of,
    check_age,
    check_limits,
    read_answer,
    read_request,
    refusal_body,
)
from botplane.gateway.providers import Providers

log = structlog.get_logger()

READ_SECONDS: Final = 10.0
RETRY_AFTER_SECONDS: Final = 2
MOST_IN_FLIGHT: Final = 64
"""Calls of one tenant that wait for providers."""
BATCH_AT_ONCE: Final = 8
_LONGEST_KEY = 256


class Gateway:
    """Takes calls of bots, has them answered by providers, and counts what was answered."""

    def __init__(
        self,
        providers: Providers,
        counts: Counts,
        access: Callable[[], Access | None],
        clock: Callable[[], datetime],
    ) -> None:
        self._providers = providers
        self._counts = counts
        self._access = access
        self._clock = clock
        self._numbers = itertools.count(1)
        self._in_flight = Counter[UUID]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        request: Request | None = None
        try:
            access = check_age(self._access(), time.monotonic())
            caller, chain = caller_of(access, _key_hash(scope)), self._chain(scope)
            request = read_request(await _read_body(receive))
            check_limits(access, caller)
            status, body = HTTPStatus.OK, await self._serve(caller, chain, request)
        except (Rejected, Retryable) as error:
            metrics.CALLS.labels(error.reason).inc(len(request.calls) if request else 1)
            status, body = CODES[error.reason][0], _refused(request, error)
        except Exception:
            log.exception("Could not answer a call")
            bug = Rejected("InternalError", "The gateway's log has the details.")
            status, body = CODES[bug.reason][0], _refused(request, bug)
        await _answer(send, status, body)

    def _chain(self, scope: Scope) -> str:
        if scope["method"] != "POST":
            raise Rejected("MethodNotAllowed", "Send calls with POST.")
        chain: str = scope["path"].removeprefix("/")
        if chain not in self._providers.secrets:
            known = ", ".join(sorted(self._providers.secrets))
            raise Rejected("ChainNotFound", f"There is no chain {chain[:64]!r}, only {known}.")
        if _header(scope, b"content-type").partition(b";")[0].strip() != b"application/json":
            raise Rejected("ContentTypeUnsupported", "Send JSON as application/json.")
        return chain

    async def _serve(self, caller: Caller, chain: str, request: Request) -> bytes:
        size, tenant_id = len(request.calls), caller.tenant_id
        if self._in_flight[tenant_id] + size > MOST_IN_FLIGHT:
            text = f"{MOST_IN_FLIGHT} calls of the tenant wait for answers. Send fewer at once."
            raise Rejected("TooManyCalls", text)
        self._in_flight[tenant_id] += size
        try:
            if request.is_batch:
                return await self._serve_batch(caller, chain, request.calls)
            return await self._ask(caller, chain, request.calls[0])
        finally:
            self._in_flight[tenant_id] -= size
            if not self._in_flight[tenant_id]:
                del self._in_flight[tenant_id]

    async def _serve_batch(self, caller: Caller, chain: str, calls: Collection[Call]) -> bytes:
        turns = asyncio.Semaphore(BATCH_AT_ONCE)

        async def one(call: Call) -> bytes:
            async with turns:
                try:
                    return await self._ask(caller, chain, call)
                except Rejected as error:
                    metrics.CALLS.labels(error.reason).inc()
                    return refusal_body(call, error)

        return batch_body(await asyncio.gather(*map(one, calls)))

    async def _ask(self, caller: Caller, chain: str, call: Call) -> bytes:
        number, at = next(self._numbers), self._clock()
        with metrics.PROVIDER_SECONDS.labels(chain).time():
            content = await self._providers.ask(chain, call, call_body(call, number))
        answer = read_answer(content, number)
        self._counts.add(caller, at)
        metrics.CALLS.labels("answered" if answer.result else "error").inc()
        return answer_body(call, answer, self._providers.secrets[chain])


def _refused(request: Request | None, error: Rejected | Retryable) -> bytes:
    if request is None:
        return refusal_body(None, error)
    bodies = [refusal_body(call, error) for call in request.calls]
    return batch_body(bodies) if request.is_batch else bodies[0]


def _key_hash(scope: Scope) -> bytes:
    kind, _, key = _header(scope, b"authorization").partition(b" ")
    if kind.lower() != b"bearer" or not 0 < len(key) <= _LONGEST_KEY:
        text = "Send the header `Authorization: Bearer <gateway-key>`."
        raise Rejected("Unauthenticated", text)
    return hashlib.sha256(key.strip()).digest()


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MOST_BYTES:
                    raise Rejected("BodyTooLarge", f"Send {MOST_BYTES:,} bytes at most.")
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        text = f"Send the body within {READ_SECONDS:.0f} seconds."
        raise Rejected("BodyTooSlow", text) from None


async def _answer(send: Send, status: HTTPStatus, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
    if status in {HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT}:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})
