"""What the gateway serves: `POST /<chain>` with a bot's key, JSON-RPC in and out."""

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

from botplane.errors import Rejected, Retryable
from botplane.gateway import metrics
from botplane.gateway.counts import Counts
from botplane.gateway.http import (
    MOST_HEADER_BYTES,
    READ_SECONDS,
    HTTPRequest,
    HTTPResponse,
)
from botplane.gateway.policy import (
    CODES,
    MOST_BYTES,
    Access,
    Call,
    Caller,
    Request,
    answer_body,
    batch_body,
    caller_of,
    check_age,
    check_limits,
    read_request,
    refusal_body,
)
from botplane.gateway.providers import Providers

log = structlog.get_logger()

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

    async def answer(self, http: HTTPRequest) -> HTTPResponse:
        """Answer one HTTP request, whatever happens."""
        request: Request | None = None
        try:
            access, caller, chain = self._admit(http)
            request = read_request(bytes(http.body))
            check_limits(access, caller)
            body = await self._serve(caller, chain, request)
        except (Rejected, Retryable) as error:
            metrics.CALLS.labels(error.reason).inc(len(request.calls) if request else 1)
            return _refused(request, error)
        except Exception:
            log.exception("Could not answer a call")
            return _refused(
                request, Rejected("InternalError", "The gateway's log has the details.")
            )
        return HTTPResponse(status=HTTPStatus.OK, body=body)

    def _admit(self, http: HTTPRequest) -> tuple[Access, Caller, str]:
        if http.refused:
            raise _unread(http.refused)
        access = check_age(self._access(), time.monotonic())
        return access, caller_of(access, _key_hash(http)), self._chain(http)

    def _chain(self, http: HTTPRequest) -> str:
        if http.method != "POST":
            raise Rejected("MethodNotAllowed", "Send calls with POST.")
        chain = http.path.removeprefix("/")
        if chain not in self._providers.secrets:
            known = ", ".join(sorted(self._providers.secrets))
            raise Rejected("ChainNotFound", f"There is no chain {chain[:64]!r}, only {known}.")
        content_type = http.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type != b"application/json":
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
            answer = await self._providers.ask(chain, call, number)
        self._counts.add(caller, at)
        metrics.CALLS.labels("answered" if answer.result else "error").inc()
        # Results may well hold hosts: of nodes. In an error it is the provider that names its own.
        hidden = self._providers.keys if answer.result else self._providers.secrets
        return answer_body(call, answer, hidden[chain])


def _refused(request: Request | None, error: Rejected | Retryable) -> HTTPResponse:
    status, _ = CODES[error.reason]
    is_later = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    if request is None:
        body = refusal_body(None, error)
    else:
        bodies = [refusal_body(call, error) for call in request.calls]
        body = batch_body(bodies) if request.is_batch else bodies[0]
    return HTTPResponse(
        status=status, body=body, retry_after=RETRY_AFTER_SECONDS if is_later else None
    )


def _unread(reason: str) -> Rejected:
    text = {
        "RequestInvalid": "Send HTTP/1.1.",
        "HeadersTooLarge": f"Send {MOST_HEADER_BYTES:,} bytes of headers at most.",
        "BodyTooLarge": f"Send {MOST_BYTES:,} bytes at most.",
        "RequestTooSlow": f"Send the request within {READ_SECONDS:.0f} seconds.",
    }
    return Rejected(reason, text[reason])


def _key_hash(http: HTTPRequest) -> bytes:
    kind, _, key = http.headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() != b"bearer" or not 0 < len(key) <= _LONGEST_KEY:
        text = "Send the header `Authorization: Bearer <gateway-key>`."
        raise Rejected("Unauthenticated", text)
    return hashlib.sha256(key.strip()).digest()
