"""Signatures of webhooks: HMAC-SHA256 over time and body, several secrets while one rotates. Pure.

The scheme is Stripe's: header `t=<unix time>,v1=<hex>`, message `<t>.<body>`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from botplane.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

TOLERANCE_SECONDS = 300
LONGEST_ID = 255
_TIME = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A webhook as it came, and the secrets that may have signed it."""

    body: bytes
    header: str
    secrets: tuple[str, ...]


def verify_signature(body: bytes, header: str, secrets: Iterable[str], now: datetime) -> None:
    """Accept a body that one of the secrets has signed within the last five minutes.

    Raises:
        Rejected: It was not signed by any, or at another time.
    """
    fields = [field.strip().partition("=") for field in header.split(",")]
    times = [value for name, _, value in fields if name == "t"]
    claimed = [value for name, _, value in fields if name == "v1"]
    if len(times) != 1 or not _TIME.fullmatch(times[0]) or not claimed:
        raise Rejected("SignatureInvalid", "The signature header has no time or no v1 signature.")
    right = [signature(body, int(times[0]), secret) for secret in secrets]
    if not any(
        hmac.compare_digest(expected.encode(), given.encode())
        for expected in right
        for given in claimed
    ):
        raise Rejected("SignatureInvalid", "No known secret has signed this body.")
    if abs(now.timestamp() - int(times[0])) > TOLERANCE_SECONDS:
        raise Rejected("SignatureExpired", "The signature is older than five minutes.")


def signature(body: bytes, at: int, secret: str) -> str:
    """Return the v1 signature of a body at a unix time."""
    return hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()


def read_body(body: bytes) -> dict[str, Any]:
    """Return the event of a webhook.

    Raises:
        Rejected: It is no JSON object with an id of at most 255 characters.
    """
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        event = None
    name = event.get("id") if isinstance(event, dict) else None
    if not isinstance(event, dict) or not isinstance(name, str) or len(name) > LONGEST_ID:
        raise Rejected("EventInvalid", "The body is no event with an id.")
    return event


def invoice_of(event: Any) -> UUID | None:
    """Return the invoice that an event speaks of, from the metadata of its object."""
    for name in ("data", "object", "metadata", "invoice_id"):
        event = event.get(name) if isinstance(event, dict) else None
    try:
        return None if event is None else UUID(event)
    except (ValueError, AttributeError):
        return None
