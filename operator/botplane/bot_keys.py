"""The usage keys of bots: derived, so that Postgres learns only their hashes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from botplane.bots.keys import derive_key
from botplane.metering.events import store
from botplane.metering.events.store import IngestKey, secret_hash
from botplane.postgres import Postgres

OUTLIVES_BOT: Final = timedelta(hours=1)
"""A bot that is deleted still reports what its pods have left to say."""


class BotKeys:
    """Lets the bots that exist report usage, and those that are gone no longer."""

    def __init__(
        self, postgres: Postgres, master_key: bytes, clock: Callable[[], datetime]
    ) -> None:
        self._postgres = postgres
        self._master_key = master_key
        self._clock = clock
        self._issued: dict[UUID, UUID] | None = None
        """Tenants of the bots whose keys are valid; None before Postgres has said it."""
        self._gone: dict[UUID, datetime] = {}
        self._returns = 0
        """How often Postgres had come back when it said so."""

    async def settle(self, bots: Mapping[UUID, UUID]) -> None:
        """Make the keys of these bots valid, and revoke those of bots that are long gone.

        Args:
            bots: The tenant of each bot, both by uid.

        Raises:
            Retryable: Postgres is away; the next call goes on.
        """
        returns = self._postgres.returns
        if self._issued is None or self._returns != returns:
            self._issued = await self._valid(bots)
            self._returns = returns
        now = self._clock()
        missing = {bot: tenant for bot, tenant in bots.items() if self._issued.get(bot) != tenant}
        if missing:
            keys = [self._key(bot, tenant) for bot, tenant in missing.items()]
            await self._postgres.call(store.register_keys, keys, now)
            self._issued |= missing
        since = {bot: self._gone.get(bot, now) for bot in self._issued if bot not in bots}
        over = [bot for bot, at in since.items() if now - at >= OUTLIVES_BOT]
        if over:
            revoked = [(self._issued[bot], str(bot)) for bot in over]
            await self._postgres.call(store.revoke_keys, revoked, now)
        for bot in over:
            del self._issued[bot], since[bot]
        self._gone = since

    async def _valid(self, bots: Mapping[UUID, UUID]) -> dict[UUID, UUID]:
        """Return whose keys are valid already, as an earlier process has left them."""
        known = await self._postgres.call(store.keys_of_bots)
        return {
            key.bot_id: key.tenant_id
            for key in known
            if key.bot_id is not None
            and (key.bot_id not in bots or key == self._key(key.bot_id, key.tenant_id))
        }

    def _key(self, bot: UUID, tenant: UUID) -> IngestKey:
        secret = derive_key(self._master_key, str(bot), "usage")
        return IngestKey(
            key_id=str(bot), tenant_id=tenant, bot_id=bot, secret_hash=secret_hash(secret)
        )
