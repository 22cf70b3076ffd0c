"""Who asks: a bearer `key_id.secret`, looked up in Postgres and remembered for seconds."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Final

from botplane.errors import Rejected
from botplane.metering.events.store import IngestKey

REMEMBERED_SECONDS: Final = 10.0
"""How long a revoked key may still be used."""
MOST_REMEMBERED: Final = 20_000
_PARTS: Final = 2
_MOST_CHARACTERS: Final = 256

FindKey = Callable[[str, str], IngestKey | None]
"""Finds a valid key by id and secret; blocks."""


class Bearers:
    """Proves bearers, and asks Postgres once in ten seconds for each."""

    def __init__(self, find_key: FindKey) -> None:
        self._find_key = find_key
        self._known: dict[bytes, tuple[IngestKey | None, float]] = {}

    async def key_of(self, authorization: str | None, scope: str) -> IngestKey:
        """Return the key that a header proves.

        Raises:
            Rejected: `Unauthenticated` without a valid key, `Forbidden` without the scope.
            Retryable: Postgres is away.
        """
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not 0 < len(token) <= _MOST_CHARACTERS:
            raise Rejected("Unauthenticated", "Send the header `Authorization: Bearer <key>`.")
        key = await self._look_up(token.strip())
        if key is None:
            raise Rejected("Unauthenticated", "The key is unknown or was revoked.")
        if scope not in key.scopes:
            raise Rejected("Forbidden", f"The key {key.key_id} does not have the scope {scope}.")
        return key

    async def _look_up(self, token: str) -> IngestKey | None:
        mark, now = hashlib.sha256(token.encode()).digest(), time.monotonic()
        known = self._known.get(mark)
        if known is not None and now - known[1] < REMEMBERED_SECONDS:
            return known[0]
        parts = token.split(".")
        if len(parts) != _PARTS or not token.isascii() or not token.isprintable():
            return None
        key = await asyncio.to_thread(self._find_key, *parts)
        while len(self._known) >= MOST_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known.pop(mark, None)
        self._known[mark] = (key, now)
        return key
