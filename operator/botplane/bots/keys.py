"""Keys that the operator issues: derived, so that nothing has to be stored or read back."""

from __future__ import annotations

import hashlib
import hmac

KEY_BYTES = 32
MASTER_KEY_BYTES = 32


def derive_key(master: bytes, uid: str, purpose: str, rotation: int = 0) -> str:
    """Return a key for one purpose of one object, as text.

    HKDF with SHA-256 (RFC 5869), one block: the same input always gives the same key, and a key
    tells nothing of the master or of another key.

    Args:
        master: The operator's master key, at least 32 bytes.
        uid: Uid of the object that the key is issued to.
        purpose: What the key opens, such as `gateway`.
        rotation: Number of times that this key was replaced.

    Raises:
        ValueError: The master key is so short that keys could be guessed.
    """
    if len(master) < MASTER_KEY_BYTES:
        raise ValueError(f"the master key must have {MASTER_KEY_BYTES} bytes or more")
    extracted = hmac.new(b"botplane/v1", master, hashlib.sha256).digest()
    info = f"{purpose}/{uid}/{rotation}".encode()
    expanded = hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
    return expanded[:KEY_BYTES].hex()
