"""A stand-in of the API server in one process: versions, pages, watches, finalizers, and faults.

It shares no code with the product. Each metering gets its own door to it, with its own dice, so
that a seed tells everything that happens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random
from typing import Any

from botplane.errors import Retryable
from botplane.metering.calls import Reply

Json = dict[str, Any]
EPOCH = datetime(2026, 10, 1, tzinfo=UTC)
PAGE = 7
"""So few objects fit on a page that every list has several."""
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


class KilledError(BaseException):
    """The process was killed here: nothing of it catches this."""


def text(second: int) -> str:
    """Return a second of the simulated time as Kubernetes writes it."""
    return (EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Fuse:
    """How many more calls a process makes before it is killed in one of them; None: it lives on."""

    left: int | None = None

    def burn(self) -> None:
        """Note that a call begins or ends."""
        if self.left is None:
            return
        self.left -= 1
        if self.left <= 0:
            raise KilledError


@dataclass
class Server:
    """The objects, all that ever happened to them, and the time."""

    now: int = 0
    version: int = 100
    objects: dict[str, Json] = field(default_factory=dict)
    events: list[tuple[int, str, str, str, str]] = field(default_factory=list)
    """Version, collection, type, uid, and the object as text."""
    nodes: dict[str, int | None] = field(default_factory=dict)
    """When each node lost its power; None while it has it."""
    left_nodes: set[str] = field(default_factory=set)

    def write(self, collection: str, body: Json, kind: str = "MODIFIED") -> None:
        """Store an object; one that is being deleted and held by nobody goes at once."""
        meta = body["metadata"]
        path = f"{collection}/{meta['namespace']}/{meta['name']}"
        is_free = "deletionTimestamp" in meta and not meta["finalizers"]
        goes = is_free and not meta.get("deletionGracePeriodSeconds")
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        if goes:
            self.objects.pop(path, None)
        else:
            self.objects[path] = body
        told = "DELETED" if goes else kind
        self.events.append((self.version, collection, told, meta["uid"], json.dumps(body)))

    def read(self, collection: str, namespace: str, name: str) -> Json | None:
        """Return a copy of an object."""
        found = self.objects.get(f"{collection}/{namespace}/{name}")
        return None if found is None else json.loads(json.dumps(found))

    def state(self, collection: str, version: int) -> list[str]:
        """Return the objects of a collection as they were at a version."""
        found: dict[str, str] = {}
        for at, where, kind, uid, body in self.events:
            if at > version:
                break
            if where == collection:
                found[uid] = body
                if kind == "DELETED":
                    del found[uid]
        return list(found.values())

    def renewed(self, node: str) -> int:
        """Return when the kubelet of a node last renewed its Lease: every ten seconds."""
        dark = self.nodes[node]
        return (self.now if dark is None else min(self.now, dark)) // 10 * 10


@dataclass
class Faults:
    """What goes wrong at a door, in parts of a hundred."""

    refused: int = 0
    """429, 500, a timeout or, a third as often, 409 before anything was done."""
    unheard: int = 0
    """The connection breaks after a write was done."""
    broken: int = 0
    """A watch ends early, with 410 or without a word."""
    repeated: int = 0
    """An event comes again, sooner or later."""
    hidden: int = 0
    """An event does not come at all."""
    stale: int = 0
    """A list shows an older state."""


class Door:
    """The API as one metering sees it: what `botplane.metering.calls.Api` offers."""

    def __init__(self, server: Server, dice: Random, faults: Faults, fuse: Fuse) -> None:
        self.server = server
        self.faults = faults
        self._dice = dice
        self._fuse = fuse
        self._pages: dict[str, tuple[int, list[str]]] = {}

    def get(self, path: str, query: Mapping[str, Any] | None = None, *, timeout: int) -> Reply:
        """Answer a list, or a read of one object."""
        assert timeout > 0
        self._fuse.burn()
        if refused := self._refusal():
            return refused
        *_, last = path.split("/")
        if path == LEASES:
            items = [self._lease(node) for node in self.server.nodes]
            return self._reply(200, {"items": items, "metadata": {}})
        if path.startswith(LEASES):
            return self._reply(200, self._lease(last))
        if path.startswith("/api/v1/nodes/"):
            return self._node(last)
        parts = path.removeprefix("/api/v1/").split("/")
        if len(parts) == 1:
            return self._list(parts[0], str((query or {}).get("continue", "")))
        found = self.server.read(parts[2], parts[1], parts[3])
        return self._reply(404, {}) if found is None else self._reply(200, found)

    def patch(self, path: str, operations: Sequence[Mapping[str, Any]], *, timeout: int) -> Reply:
        """Answer a JSON patch of tests and one removal, done whole or not at all."""
        assert timeout > 0
        self._fuse.burn()
        if refused := self._refusal():
            return refused
        _, namespace, collection, name = path.removeprefix("/api/v1/").split("/")
        found = self.server.read(collection, namespace, name)
        if found is None:
            return self._reply(404, {})
        *tests, removal = operations
        if any(_at(found, test["path"]) != test["value"] for test in tests):
            return self._reply(422, {})
        if self._happens(self.faults.refused // 3):
            return self._reply(409, {})
        del found["metadata"]["finalizers"][int(removal["path"].rsplit("/", 1)[1])]
        self.server.write(collection, found)
        self._fuse.burn()
        if self._happens(self.faults.unheard):
            raise Retryable("ApiServerUnavailable", "reset after the write")
        return self._reply(200, found)

    def events(self, collection: str, version: int) -> Iterator[Json]:
        """Yield what a watch brings by now; it may repeat, hide, and break off."""
        for at, where, kind, _, body in list(self.server.events):
            if at <= version or where != collection:
                continue
            if self._happens(self.faults.broken):
                if self._happens(50):
                    yield {"type": "ERROR", "object": {"message": "too old", "code": 410}}
                raise Retryable("ApiServerUnavailable", "the watch broke")
            if self._happens(self.faults.hidden):
                continue
            yield {"type": kind, "object": json.loads(body)}
            if self._happens(self.faults.repeated):
                earlier = [e for e in self.server.events if e[1] == collection and e[0] <= at]
                _, _, again, _, old = self._dice.choice(earlier[-6:])
                yield {"type": again, "object": json.loads(old)}
        mark = {"metadata": {"resourceVersion": str(self.server.version)}}
        yield {"type": "BOOKMARK", "object": mark}

    def _list(self, collection: str, token: str) -> Reply:
        if token:
            if token not in self._pages or self._happens(self.faults.broken):
                return self._reply(410, {})
            version, rest = self._pages.pop(token)
        else:
            back = self._dice.randrange(40) if self._happens(self.faults.stale) else 0
            version = self.server.version - back
            rest = self.server.state(collection, version)
        items, rest = rest[:PAGE], rest[PAGE:]
        metadata = {"resourceVersion": str(version)}
        if rest:
            metadata["continue"] = f"{collection}-{version}-{len(rest)}"
            self._pages[metadata["continue"]] = (version, rest)
        return self._reply(200, {"items": [json.loads(i) for i in items], "metadata": metadata})

    def _node(self, name: str) -> Reply:
        if name in self.server.left_nodes:
            return self._reply(404, {})
        dark = self.server.nodes[name]
        is_known = dark is None or self.server.now < dark + 50
        ready = {"type": "Ready", "status": "True" if is_known else "Unknown"}
        return self._reply(200, {"status": {"conditions": [ready]}})

    def _lease(self, node: str) -> Json:
        renewed = text(self.server.renewed(node)).replace("Z", ".000000Z")
        return {"metadata": {"name": node}, "spec": {"renewTime": renewed}}

    def _refusal(self) -> Reply | None:
        if not self._happens(self.faults.refused):
            return None
        status = self._dice.choice([429, 500, 0])
        if status == 0:
            raise Retryable("ApiServerUnavailable", "timeout")
        return self._reply(status, {})

    def _happens(self, percent: int) -> bool:
        return percent > 0 and self._dice.randrange(100) < percent

    def _reply(self, status: int, body: Json) -> Reply:
        date = format_datetime(EPOCH + timedelta(seconds=self.server.now), usegmt=True)
        return Reply(status=status, headers={"Date": date}, body=json.dumps(body).encode())


def _at(body: Any, pointer: str) -> Any:
    for step in pointer.strip("/").split("/"):
        if isinstance(body, list):
            body = body[int(step)] if int(step) < len(body) else None
        else:
            body = (body or {}).get(step)
    return body
