"""JSON-RPC 2.0 as bots send it and providers answer it. Pure: it knows neither HTTP nor Postgres.

What a bot sent is never passed on as it came: each call is written anew from what was read, so that
a provider cannot read another method than the one that was checked. Params and results stay as they
are, byte by byte: a number beyond 64 bits or a float keeps its digits.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Raw, Struct

from botplane.api.conditions import Finding
from botplane.errors import Rejected, Retryable

MOST_CALLS: Final = 50
"""In one batch."""
MOST_BYTES: Final = 256 << 10
STALE_SECONDS: Final = 300.0
"""How long calls are served by what was read last, while Postgres is away."""
WRITES: Final = frozenset({"sendTransaction", "eth_sendRawTransaction"})
"""Methods of which nobody knows, without an answer, whether they have had an effect."""
_EXACT: Final = 2**53 - 1

_Id = Annotated[int, Meta(ge=-_EXACT, le=_EXACT)] | Annotated[str, Meta(max_length=128)] | None


class Call(Struct, frozen=True, forbid_unknown_fields=True):
    """One call of a bot; a notification, which has no id, is none."""

    jsonrpc: Literal["2.0"]
    method: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_]{1,64}\Z")]
    id: _Id
    params: Raw = Raw()

    def __post_init__(self) -> None:
        if bytes(self.params).strip()[:1] not in {b"", b"[", b"{"}:
            raise ValueError("params must be an array or an object")


class Answer(Struct, frozen=True):
    """What a provider answered; one of the two is there."""

    id: int | str | None = None
    result: Raw = Raw()
    error: Raw = Raw()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one HTTP request asks for."""

    calls: tuple[Call, ...]
    is_batch: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """The bot that a key was issued to."""

    tenant_id: UUID
    bot_id: UUID


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may call, as it was read from Postgres.

    Attributes:
        callers: By SHA-256 of the key.
        stopped: Why tenants are refused, by tenant.
        read_at: Monotonic seconds.
    """

    callers: Mapping[bytes, Caller]
    stopped: Mapping[UUID, Finding]
    read_at: float


CODES: Final[Mapping[str, tuple[HTTPStatus, int]]] = {
    "BodyInvalid": (HTTPStatus.BAD_REQUEST, -32700),
    "CallInvalid": (HTTPStatus.BAD_REQUEST, -32600),
    "BodyTooLarge": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, -32600),
    "RequestInvalid": (HTTPStatus.BAD_REQUEST, -32600),
    "HeadersTooLarge": (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, -32600),
    "RequestTooSlow": (HTTPStatus.REQUEST_TIMEOUT, -32600),
    "ContentTypeUnsupported": (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, -32600),
    "MethodNotAllowed": (HTTPStatus.METHOD_NOT_ALLOWED, -32600),
    "ChainNotFound": (HTTPStatus.NOT_FOUND, -32600),
    "Unauthenticated": (HTTPStatus.UNAUTHORIZED, -32001),
    "TooManyCalls": (HTTPStatus.TOO_MANY_REQUESTS, -32005),
    "InternalError": (HTTPStatus.INTERNAL_SERVER_ERROR, -32603),
    "SpendLimitReached": (HTTPStatus.PAYMENT_REQUIRED, -32010),
    "UsageLimitReached": (HTTPStatus.PAYMENT_REQUIRED, -32010),
    "LimitsUnknown": (HTTPStatus.SERVICE_UNAVAILABLE, -32011),
    "ProviderFailed": (HTTPStatus.BAD_GATEWAY, -32012),
    "OutcomeUnknown": (HTTPStatus.GATEWAY_TIMEOUT, -32013),
}
"""HTTP status and JSON-RPC code of every refusal: a client that looks at either one sees it."""

_LEFT_OUT = b'{"code":-32000,"message":"The provider\'s answer names itself: it is left out."}'
_ESCAPE = re.compile(rb"\\(?:u00([0-7][0-9a-fA-F])|/)")
_CALL = msgspec.json.Decoder(Call)
_CALLS = msgspec.json.Decoder(list[Call])
_ANSWER = msgspec.json.Decoder(Answer)


def read_request(body: bytes) -> Request:
    """Return the calls of a body.

    Raises:
        Rejected: It is no JSON-RPC 2.0, or more than 50 calls; nothing of it is served then.
    """
    is_batch = body.lstrip()[:1] == b"["
    try:
        body.decode()
        calls = tuple(_CALLS.decode(body)) if is_batch else (_CALL.decode(body),)
    except msgspec.ValidationError as error:
        raise Rejected("CallInvalid", f"The body is no JSON-RPC 2.0 call: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise Rejected("BodyInvalid", f"The body is not JSON: {error}.") from None
    if not 0 < len(calls) <= MOST_CALLS:
        raise Rejected("CallInvalid", f"Send 1 to {MOST_CALLS} calls; these are {len(calls)}.")
    return Request(calls=calls, is_batch=is_batch)


def check_age(access: Access | None, now: float) -> Access:
    """Return what was read last, if it can be gone by.

    Args:
        access: None: Postgres never answered.
        now: Monotonic seconds.

    Raises:
        Retryable: It is too old.
    """
    if access is None or now - access.read_at > STALE_SECONDS:
        raise Retryable("LimitsUnknown", "Postgres does not say who may call. Try again later.")
    return access


def caller_of(access: Access, key_hash: bytes) -> Caller:
    """Return the bot that a key was issued to.

    Args:
        access: What was read last.
        key_hash: SHA-256 of the key that came with the request.

    Raises:
        Rejected: The key is not valid.
    """
    caller = access.callers.get(key_hash)
    if caller is None:
        raise Rejected("Unauthenticated", "The key is unknown or was revoked.")
    return caller


def check_limits(access: Access, caller: Caller) -> None:
    """Return if no hard limit of the caller's tenant is reached.

    Raises:
        Rejected: One is.
    """
    if (stopped := access.stopped.get(caller.tenant_id)) is not None:
        raise Rejected(stopped.reason, stopped.message)


def call_body(call: Call, number: int) -> bytes:
    """Return what is sent to a provider, under an id of our own."""
    params = b',"params":' + bytes(call.params) if call.params else b""
    return b'{"jsonrpc":"2.0","id":%d,"method":"%s"%s}' % (number, call.method.encode(), params)


def read_answer(body: bytes, number: int) -> Answer:
    """Return the answer to the call that was sent under an id.

    What JSON-RPC 1.0 has beside a result or an error, the other one as `null`, is left out.

    Raises:
        Rejected: It is no answer to it.
    """
    try:
        # What is passed on as it is has not been looked at: texts in it may be no UTF-8.
        body.decode()
        answer = _ANSWER.decode(body)
    except (ValueError, RecursionError):
        raise Rejected("ProviderFailed", "The provider's answer is not JSON-RPC 2.0.") from None
    error = b"" if (error := bytes(answer.error)) == b"null" else error
    result = Raw() if error and answer.result == Raw(b"null") else answer.result
    if answer.id != number or bool(result) == bool(error):
        raise Rejected("ProviderFailed", "The provider's answer belongs to no call.")
    if error and error[:1] != b"{":
        raise Rejected("ProviderFailed", "The provider's answer is not JSON-RPC 2.0.")
    return Answer(id=number, result=result, error=Raw(error))


def answer_body(call: Call, answer: Answer, secrets: Collection[bytes]) -> bytes:
    """Return an answer as the bot gets it: under its own id, without the provider's secrets."""
    content = bytes(answer.result or answer.error)
    if _names(content, secrets):
        return _framed(call, b"error", _LEFT_OUT)
    return _framed(call, b"result" if answer.result else b"error", content)


def refusal_body(call: Call | None, error: Rejected | Retryable) -> bytes:
    """Return a refusal in JSON-RPC: its words, and its reason for machines."""
    _, code = CODES[error.reason]
    content = {"code": code, "message": error.message, "data": {"reason": error.reason}}
    return _framed(call, b"error", msgspec.json.encode(content))


def batch_body(answers: Collection[bytes]) -> bytes:
    """Return answers as one."""
    return b"[" + b",".join(answers) + b"]"


def _names(content: bytes, secrets: Collection[bytes]) -> bool:
    """Say whether JSON holds a secret, also one that is written in escapes."""
    if b"\\" in content:
        content = _ESCAPE.sub(
            lambda found: bytes.fromhex(found[1].decode()) if found[1] else b"/", content
        )
    return any(secret in content for secret in secrets)


def _framed(call: Call | None, name: bytes, content: bytes) -> bytes:
    of = msgspec.json.encode(None if call is None else call.id)
    return b'{"jsonrpc":"2.0","id":%s,"%s":%s}' % (of, name, content)
