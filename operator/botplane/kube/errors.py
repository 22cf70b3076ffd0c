"""The one translation of API server answers into our errors."""

from __future__ import annotations

import json
from http import HTTPStatus

from botplane.errors import Rejected, Retryable


class NotFoundError(Exception):
    """The object does not exist."""


class GoneError(Exception):
    """The resourceVersion is older than what the API server remembers."""


class ConflictError(Exception):
    """The object changed, or is another one, since it was read."""


def answer_error(status: int, body: bytes, what: str, retry_after: str | None = None) -> Exception:
    """Return the error that an API server's answer stands for.

    Args:
        status: HTTP status, 400 or higher.
        body: Body of the answer, usually a `Status` object.
        what: The call in words, for messages.
        retry_after: Header of that name, in seconds.
    """
    message = _message(body) or f"HTTP {status}"
    match status:
        case HTTPStatus.NOT_FOUND:
            return NotFoundError(f"{what}: {message}")
        case HTTPStatus.CONFLICT:
            return ConflictError(f"{what}: {message}")
        case HTTPStatus.FORBIDDEN if "exceeded quota" in message:
            return Rejected("QuotaExceeded", message)
        case HTTPStatus.FORBIDDEN if "is being terminated" in message:
            return Retryable("NamespaceTerminating", message, after_seconds=1)
        case HTTPStatus.FORBIDDEN:
            # A role that was bound a moment ago takes effect with a delay.
            return Retryable("Forbidden", f"{what}: {message}", after_seconds=0.2)
        case HTTPStatus.UNPROCESSABLE_ENTITY | HTTPStatus.BAD_REQUEST:
            return Rejected("InvalidObject", f"{what}: {message}")
        case _:
            after = float(retry_after) if retry_after and retry_after.isdecimal() else None
            return Retryable("APIServerError", f"{what}: {message}", after_seconds=after)


def _message(body: bytes) -> str:
    try:
        parsed = json.loads(body)
    except ValueError:
        return body[:200].decode("utf-8", "replace")
    return str(parsed.get("message", "")) if isinstance(parsed, dict) else ""
