"""Read from the API server's audit log who asked for what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that the API server has answered."""

    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int
    arrived_at: datetime
    at: datetime
    """When it was answered."""

    @property
    def is_write(self) -> bool:
        return self.verb in WRITES


def requests(log: Path, *, user: str, since: int = 0) -> Iterator[Request]:
    """Yield a user's answered requests, from a position of the log that `position` gave."""
    with log.open("rb") as lines:
        lines.seek(since)
        for line in lines:
            # The server may be in the middle of its last line.
            if not line.endswith(b"\n"):
                return
            event = json.loads(line)
            if event["stage"] == "ResponseComplete" and event["user"]["username"] == user:
                yield _request(event)


def count_writes(log: Path, *, user: str, since: int = 0) -> int:
    """Count the writes of a user that the API server accepted."""
    return sum(
        request.is_write and request.code < 300 for request in requests(log, user=user, since=since)
    )


def position(log: Path) -> int:
    """Return the current end of the log, to count from later."""
    return log.stat().st_size


def _request(event: dict[str, Any]) -> Request:
    target = event.get("objectRef", {})
    return Request(
        user=event["user"]["username"],
        verb=event["verb"],
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        arrived_at=datetime.fromisoformat(event["requestReceivedTimestamp"]),
        at=datetime.fromisoformat(event["stageTimestamp"]),
    )
