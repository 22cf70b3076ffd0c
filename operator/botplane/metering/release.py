"""The few calls that metering makes on single objects: let a pod go, and ask about its node."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from queue import SimpleQueue
from typing import Final
from uuid import UUID

import structlog

from botplane.api import labels
from botplane.errors import Retryable
from botplane.metering import metrics
from botplane.metering.calls import CONCURRENT_CALLS, Api, Query
from botplane.metering.evidence import Json, Pod

TIMEOUT_SECONDS: Final = 10
PAGE_SIZE: Final = 500
WRITES_PER_SECOND: Final = 50
"""What a thousand pods that end at once may ask of the API server; it has others to serve."""
SECOND: Final = 1.0
NODE_LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

log = structlog.get_logger()


class Release(StrEnum):
    """What became of a pod that was to be released."""

    DONE = "done"
    CHANGED = "changed"
    UNANSWERED = "unanswered"


class Pace:
    """So many writes in any second of the API server's time, however late each of them arrives.

    A write arrives between its sending and its answer. So each takes one of as many places
    as a second has writes, and the place is free again a second after the answer. Beyond that they
    keep their distance, which spreads them over the second.
    """

    def __init__(self, per_second: int) -> None:
        self._distance = SECOND / per_second
        self._turn = threading.Lock()
        self._next = 0.0
        self._free_at: SimpleQueue[float] = SimpleQueue()
        for _ in range(per_second):
            self._free_at.put(0.0)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Wait for a place, and hold it until what was sent is answered."""
        free_at = self._free_at.get()
        with self._turn:
            now = time.monotonic()
            at = max(now, self._next, free_at)
            self._next = at + self._distance
        time.sleep(at - now)
        try:
            yield
        finally:
            self._free_at.put(time.monotonic() + SECOND)


class Cluster:
    """Single-object calls to the API server, some at once, writes at a pace."""

    def __init__(self, api: Api, at_once: int = CONCURRENT_CALLS, pace: Pace | None = None) -> None:
        self._api = api
        self._calls = ThreadPoolExecutor(at_once, thread_name_prefix="release")
        self._pace = pace or Pace(WRITES_PER_SECOND)

    def release(self, pods: Sequence[Pod]) -> dict[UUID, Release]:
        """Remove our finalizer from pods; a pod that is gone already counts as done.

        After a call that was not answered the rest is left for later, so that an API server
        that is away costs one timeout and not one for every pod.
        """
        answered = [True]

        def release_one(pod: Pod) -> tuple[UUID, Release]:
            if not answered[0]:
                return pod.uid, Release.UNANSWERED
            result = self._release(pod)
            if result is Release.UNANSWERED:
                answered[0] = False
            return pod.uid, result

        return dict(self._calls.map(release_one, pods))

    def vanished(self, objects: Sequence[tuple[str, UUID]]) -> list[UUID]:
        """Return which of the objects (path, uid) no longer exist.

        An object of which the API server does not say so counts as existing.
        """

        def is_gone(one: tuple[str, UUID]) -> bool:
            path, uid = one
            found = self._get("object", path)
            if found is None:
                return False
            return not found or found["metadata"]["uid"] != str(uid)

        gone = self._calls.map(is_gone, objects)
        return [uid for (_, uid), is_it in zip(objects, gone, strict=True) if is_it]

    def node(self, name: str) -> Json | None:
        """Return a Node; an empty object when there is none, None when nobody can tell."""
        return self._get("node", f"/api/v1/nodes/{name}")

    def lease(self, node: str) -> Json | None:
        """Return the Lease of a node; an empty object for none, None when nobody can tell."""
        return self._get("lease", f"{NODE_LEASES}/{node}")

    def nodes_seen_at(self) -> dict[str, datetime] | None:
        """Return when each node's kubelet last renewed its Lease; None when nobody can tell."""
        found: dict[str, datetime] = {}
        token = ""
        while True:
            page = self._get("leases", NODE_LEASES, {"limit": PAGE_SIZE, "continue": token})
            if not page:
                return None
            for lease in page["items"]:
                if (renewed := renewed_at(lease)) is not None:
                    found[lease["metadata"]["name"]] = renewed
            token = page["metadata"].get("continue") or ""
            if not token:
                return found

    def close(self) -> None:
        """Give up calls that have not begun."""
        self._calls.shutdown(wait=False, cancel_futures=True)

    def _release(self, pod: Pod) -> Release:
        path = f"/metadata/finalizers/{pod.finalizer}"
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": str(pod.uid)},
            {"op": "test", "path": path, "value": labels.METERING_FINALIZER},
            {"op": "remove", "path": path},
        ]
        try:
            with self._pace.place():
                reply = self._api.patch(pod.path, patch, timeout=TIMEOUT_SECONDS)
        except Retryable as error:
            metrics.API_ERRORS.labels("release").inc()
            log.warning("Could not release a pod", pod=pod.key, error=error.message)
            return Release.UNANSWERED
        return self._verdict(pod, reply.status)

    def _verdict(self, pod: Pod, status: int) -> Release:
        if status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
            return Release.DONE
        if status in (HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.CONFLICT):
            return Release.CHANGED
        metrics.API_ERRORS.labels("release").inc()
        log.warning("Could not release a pod", pod=pod.key, status=status)
        return Release.UNANSWERED

    def _get(self, kind: str, path: str, query: Query | None = None) -> Json | None:
        try:
            reply = self._api.get(path, query, timeout=TIMEOUT_SECONDS)
        except Retryable:
            metrics.API_ERRORS.labels(f"get_{kind}").inc()
            return None
        if reply.status == HTTPStatus.NOT_FOUND:
            return {}
        if reply.status != HTTPStatus.OK:
            metrics.API_ERRORS.labels(f"get_{kind}").inc()
            return None
        document: Json = json.loads(reply.body)
        return document


def renewed_at(lease: Json) -> datetime | None:
    """Return when the kubelet of a node last renewed its Lease."""
    renewed = (lease.get("spec") or {}).get("renewTime")
    return datetime.fromisoformat(renewed).replace(microsecond=0) if renewed else None
