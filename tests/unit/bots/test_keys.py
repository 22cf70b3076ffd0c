"""Issued keys: RFC 5869, and different for everything that they depend on."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from botplane.bots.keys import derive_key
from tests.support.declared import BOT_UID, MASTER_KEY, TENANT_UID


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """Return what RFC 5869 section 2 says, for any length."""
    extracted = hmac.digest(salt, key, hashlib.sha256)
    blocks, last = b"", b""
    for number in range(1, 256):
        last = hmac.digest(extracted, last + info + bytes([number]), hashlib.sha256)
        blocks += last
    return blocks[:length]


def test_the_function_of_this_test_is_that_of_the_rfc() -> None:
    """RFC 5869, appendix A.1."""
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))

    assert hkdf(b"\x0b" * 22, salt, info, 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_a_key_is_what_the_rfc_says() -> None:
    info = f"gateway/{BOT_UID}/0".encode()

    key = derive_key(MASTER_KEY, BOT_UID, "gateway")

    assert key == hkdf(MASTER_KEY, b"botplane/v1", info, 32).hex()


def test_a_key_does_not_change_with_a_release() -> None:
    # Bots that run hold it: another value would lock all of them out.
    assert derive_key(MASTER_KEY, BOT_UID, "gateway") == (
        "fa5c82d520d097794b38924c7300488fe0a0f9f309e1eb0186b4892f8484c981"
    )


def test_whatever_a_key_depends_on_makes_another_key() -> None:
    keys = {
        derive_key(MASTER_KEY, BOT_UID, "gateway"),
        derive_key(MASTER_KEY, BOT_UID, "usage"),
        derive_key(MASTER_KEY, TENANT_UID, "gateway"),
        derive_key(MASTER_KEY, BOT_UID, "gateway", rotation=1),
        derive_key(MASTER_KEY[::-1], BOT_UID, "gateway"),
    }

    assert len(keys) == 5


@pytest.mark.parametrize("master", [b"", b"0123456789abcdef0123456789abcde"], ids=["none", "short"])
def test_a_master_key_that_can_be_guessed_issues_nothing(master: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        derive_key(master, BOT_UID, "gateway")
