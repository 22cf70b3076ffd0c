"""Choose listening ports below the ephemeral range.

A port from the ephemeral range can be taken by any outgoing connection between the
choice and the `listen`, so a start would fail now and then. And they stay below the range of
node ports, which network policies do not close.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path

FIRST, LAST = 20_000, 29_999


def kept_ports(path: Path, *names: str) -> dict[str, int]:
    """Return a port per name; a name keeps its port, so that clients survive a restart."""
    ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in names if name not in ports]
    if missing:
        ports |= zip(missing, free_ports(len(missing)), strict=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ports))
    return {name: ports[name] for name in names}


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
