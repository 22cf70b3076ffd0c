"""Calls of the Kubernetes API as faults see them: who asks for what, and what happens to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
WRITES = frozenset(VERBS.values())


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request, by meaning. `nth` counts the calls of the same meaning, from 1."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    subresource: str
    nth: int = 1

    @property
    def is_write(self) -> bool:
        return self.verb in WRITES

    @property
    def meaning(self) -> tuple[str, ...]:
        """All but the count."""
        return tuple(str(value) for key, value in asdict(self).items() if key != "nth")

    def concerns(self, token: str) -> bool:
        """Return whether namespace or name contain a text that only one tenant has."""
        return token in self.namespace or token in self.name


@dataclass(frozen=True)
class Freeze:
    """Hold the call for ever: before it reaches the API server, or with its answer in hand."""

    after: bool


@dataclass(frozen=True)
class Reply:
    """Answer in the API server's place."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    """Default: what the API server says of an error."""


@dataclass(frozen=True)
class DropReply:
    """Let the call be done, and reset the connection in place of the answer."""


@dataclass(frozen=True)
class Delay:
    """Let the call wait."""

    seconds: float


@dataclass(frozen=True)
class Rst:
    """Reset the connection before anything is done."""


@dataclass(frozen=True)
class Hold:
    """Keep this event of a watch and all that follow back for a while."""

    seconds: float


@dataclass(frozen=True)
class Drop:
    """Swallow the event."""


@dataclass(frozen=True)
class Dup:
    """Tell the event twice."""


@dataclass(frozen=True)
class Cut:
    """Reset the connection of the watch in place of the event."""


@dataclass(frozen=True)
class Error:
    """Put an ERROR event into the stream in place of the event, and end it."""

    code: int


@dataclass(frozen=True)
class Truncate:
    """Send half of the event, and end the stream."""


@dataclass(frozen=True)
class Silent:
    """Send nothing more, and keep the connection open until the proxy is cleared."""


Action = (
    Freeze | Reply | DropReply | Delay | Rst | Hold | Drop | Dup | Cut | Error | Truncate | Silent
)
OF_WATCHES = (Hold, Drop, Dup, Cut, Error, Truncate, Silent)


def anything(_event: dict[str, Any]) -> bool:
    """Any event of a watch."""
    return True


@dataclass
class Rule:
    """What shall happen to which calls, and how often."""

    match: Callable[[Call], bool]
    action: Action
    times: int = 1
    event: Callable[[dict[str, Any]], bool] = anything
    """For actions on watches: which events."""
    buries: str = ""
    """Text of a tenant's own: once the call has come, no later write about it comes through."""
    hits: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    """The call has come; for a call that is frozen after it was done: it was done."""
    answered: threading.Event = field(default_factory=threading.Event)
    """A call that was delayed has had its answer."""

    @property
    def is_armed(self) -> bool:
        return self.hits < self.times

    def take(self) -> Action:
        """Count a hit and return what to do."""
        self.hits += 1
        return self.action


def parse(method: str, path: str, *, watch: bool) -> Call | None:
    """Return the meaning of a request, or None when it is not about a resource."""
    parts = path.strip("/").split("/")
    if parts[0] == "api":
        group, rest = "", parts[2:]
    elif parts[0] == "apis":
        group, rest = parts[1] if len(parts) > 1 else "", parts[3:]
    else:
        return None
    if not rest:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in {"status", "finalize"}:
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = [*rest, "", ""][:3]
    reading = "watch" if watch else "get" if name else "list"
    return Call(
        verb=VERBS.get(method, reading),
        group=group,
        resource=resource,
        namespace=namespace,
        name=name,
        subresource=subresource,
    )
