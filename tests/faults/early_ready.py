"""Watch whether any Tenant says that it is Ready before its namespace is closed.

All objects lie in one etcd, so their resourceVersions order the changes of different kinds: what
was there at the moment of a status write can be told exactly, however late events arrive.
"""

from __future__ import annotations

import json
import ssl
import threading
import urllib.request
from dataclasses import dataclass, replace
from typing import Any

from tests.support.controlplane.api import Api
from tests.support.world import condition

WATCHED = {
    "Tenant": "/apis/botplane.io/v1alpha1/tenants",
    "ResourceQuota": "/api/v1/resourcequotas",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/networkpolicies",
    "ConfigMap": "/api/v1/configmaps",
}
NEEDED = (
    ("ResourceQuota", "plan"),
    ("NetworkPolicy", "default-deny"),
    ("ConfigMap", "tenant-policy"),
)


class LostHistoryError(Exception):
    """The API server has forgotten changes that were not seen yet: nothing can be proved."""


@dataclass(frozen=True, order=True)
class Change:
    """An object as it was from one moment on."""

    version: int
    kind: str
    namespace: str
    name: str
    exists: bool
    ready: bool


class EarlyReady:
    """Follows four kinds from now on until it is closed."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._changes: list[Change] = []
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=item, daemon=True)
            for item in WATCHED.items()
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        for thread in self._threads:
            thread.join(10)

    def judged(self) -> tuple[int, list[str]]:
        """Return how many Tenants became Ready, and which of them too early."""
        present: set[tuple[str, str, str]] = set()
        ready: set[str] = set()
        transitions, early = 0, []
        for change in sorted(set(self._changes)):
            if change.kind != "Tenant":
                here = (change.kind, change.namespace, change.name)
                (present.add if change.exists else present.discard)(here)
                continue
            if change.ready and change.name not in ready and change.version:
                transitions += 1
                space = f"tenant-{change.name}"
                missing = [n for k, n in NEEDED if (k, space, n) not in present]
                early += [f"{change.name} at {change.version} without {missing}"] * bool(missing)
            (ready.add if change.ready else ready.discard)(change.name)
        return transitions, early

    def _follow(self, kind: str, path: str) -> None:
        version = ""
        while not self._closed.is_set():
            try:
                if not version:
                    version = self._list(kind, path)
                version = self._watch(kind, path, version)
            except (OSError, ValueError):
                # The API server was away; what happened meanwhile is in its history.
                self._closed.wait(0.2)

    def _list(self, kind: str, path: str) -> str:
        found = self._api.get(path)
        if found is None:
            raise ValueError(path)
        for body in found["items"]:
            # Since when it has been so is not known: all of it was there at the start.
            change = _change(kind, body, exists=True)
            self._changes.append(replace(change, version=0))
        return str(found["metadata"]["resourceVersion"])

    def _watch(self, kind: str, path: str, version: str) -> str:
        address = f"{self._api.server}{path}?watch=1&timeoutSeconds=5&allowWatchBookmarks=true"
        request = urllib.request.Request(
            f"{address}&resourceVersion={version}",
            headers={"Authorization": f"Bearer {self._api.token}"},
        )
        tls = ssl.create_default_context(cafile=str(self._api.ca))
        with urllib.request.urlopen(request, timeout=15, context=tls) as lines:
            for line in lines:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise LostHistoryError(kind)
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    gone = event["type"] == "DELETED"
                    self._changes.append(_change(kind, event["object"], exists=not gone))
        return version


def _change(kind: str, body: dict[str, Any], *, exists: bool) -> Change:
    meta = body["metadata"]
    return Change(
        version=int(meta["resourceVersion"]),
        kind=kind,
        namespace=meta.get("namespace", ""),
        name=meta["name"],
        exists=exists,
        ready=exists and kind == "Tenant" and condition(body, "Ready")[0] == "True",
    )
