"""Objects packed for keeping: most wait for their next change for days."""

from __future__ import annotations

import zlib
from typing import Any

import orjson

LEVEL, WINDOW_BITS, MEMORY_LEVEL = 1, -12, 4
"""A window of 4 KB packs objects of a few kilobytes as well as one of 32 KB, in a third of the
time (measured): most of that goes into clearing the window."""
FIRST_BUFFER_BYTES = 4096


def pack(text: bytes) -> bytes:
    """Return a JSON text packed."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOW_BITS, MEMORY_LEVEL)
    return packer.compress(text) + packer.flush()


def unpack(packed: bytes) -> Any:
    """Return the value of a packed JSON text."""
    return orjson.loads(zlib.decompress(packed, WINDOW_BITS, FIRST_BUFFER_BYTES))
