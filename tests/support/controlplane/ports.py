"""Choose listening ports below the ephemeral range.

A port from the ephemeral range can be taken by any outgoing connection between the
choice and the `listen`, so a start would fail now and then.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

FIRST, LAST = 20_000, 32_767


def free_ports(count: int) -> tuple[int, ...]:
    """Return `count` different ports of 127.0.0.1 that nobody listens on."""
    found = _free()
    return tuple(next(found) for _ in range(count))


def _free() -> Iterator[int]:
    for port in random.SystemRandom().sample(range(FIRST, LAST + 1), LAST - FIRST + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
