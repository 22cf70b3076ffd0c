"""The keys of bots, for usage and for RPC: derived, so that Postgres learns only their hashes."""

from __future__ import annotations

from collections import defaultdict
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
SCOPES: Final[Mapping[str, str]] = {"usage": "usage:write", "gateway": "rpc:call"}
"""What the keys of a bot open, by the purpose that they derive from: each has one of each."""


class BotKeys:
    """Lets the bots that exist report usage and call RPC, and those that are gone no longer."""

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
            keys = [key for bot, tenant in missing.items() for key in self._keys(bot, tenant)]
            await self._postgres.call(store.register_keys, keys, now)
            self._issued |= missing
        since = {bot: self._gone.get(bot, now) for bot in self._issued if bot not in bots}
        over = [bot for bot, at in since.items() if now - at >= OUTLIVES_BOT]
        if over:
            revoked = [(self._issued[bot], _key_id(bot, p)) for bot in over for p in SCOPES]
            await self._postgres.call(store.revoke_keys, revoked, now)
        for bot in over:
            del self._issued[bot], since[bot]
        self._gone = since

    async def _valid(self, bots: Mapping[UUID, UUID]) -> dict[UUID, UUID]:
        """Return whose keys are valid already, as an earlier process has left them."""
        known = defaultdict[tuple[UUID, UUID], dict[str, IngestKey]](dict)
        for key in await self._postgres.call(store.keys_of_bots):
            if key.bot_id is not None:
                known[key.bot_id, key.tenant_id][key.key_id] = key
        return {
            bot: tenant
            for (bot, tenant), keys in known.items()
            if bot not in bots or all(keys.get(k.key_id) == k for k in self._keys(bot, tenant))
        }

    def _keys(self, bot: UUID, tenant: UUID) -> list[IngestKey]:
        return [
            IngestKey(
                key_id=_key_id(bot, purpose),
                tenant_id=tenant,
                bot_id=bot,
                secret_hash=secret_hash(derive_key(self._master_key, str(bot), purpose)),
                scopes=(scope,),
            )
            for purpose, scope in SCOPES.items()
        ]


def _key_id(bot: UUID, purpose: str) -> str:
    return str(bot) if purpose == "usage" else f"{bot}-{purpose}"
