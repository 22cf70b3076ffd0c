"""The end of a scenario: the objects of a tenant, and whose keys its bots hold."""

from __future__ import annotations

import hashlib
import hmac

from tests.faults import oracle
from tests.support.installation import MASTER_KEY
from tests.support.world import World


def end_state(world: World, token: str) -> oracle.State:
    """Return all objects of a tenant, normalised; a usage key by the bot that it names."""
    state = oracle.end_state(world, token)
    for bot in world.list("BotDeployment", f"tenant-{token}"):
        name, uid = bot["metadata"]["name"], bot["metadata"]["uid"]
        keys = state.get(f"Secret {name}", {}).get("data", {})
        if keys.get("usage-key") == _usage_key_hash(uid):
            keys["usage-key"] = f"usage key of {name}"
    return state


def _usage_key_hash(uid: str) -> str:
    """Return the hash of the key that a bot shows when it reports usage: RFC 5869, one block."""
    extracted = hmac.new(b"botplane/v1", MASTER_KEY.encode(), hashlib.sha256).digest()
    secret = hmac.new(extracted, f"usage/{uid}/0\x01".encode(), hashlib.sha256).hexdigest()
    return hashlib.sha256(f"{uid}.{secret}".encode()).hexdigest()
