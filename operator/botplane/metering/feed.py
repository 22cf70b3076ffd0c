"""The pods as the API server has them: one paged list, then one watch, again and again.

Level-triggered: what happened in between does not matter, only which pods changed since they
were last taken. Each new list is compared with what is known, so a lost event is found at the
latest after one resync. Objects are read as JSON and only their facts are kept: the client's
typed models cost 90 KiB and 1 ms a pod.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final
from uuid import UUID

import structlog

from botplane.api import labels
from botplane.errors import Retryable
from botplane.metering import metrics
from botplane.metering.calls import Api, Query
from botplane.metering.evidence import Json, Pod, read_pod

PAGE_SIZE: Final = 500
SELECTOR: Final = f"{labels.MANAGED_BY}={labels.MANAGED_BY_VALUE}"
PODS: Final = "/api/v1/pods"
LIST_TIMEOUT_SECONDS: Final = 30
WATCH_TIMEOUT_SECONDS: Final = 90
"""A watch without a word for so long is dead: the server sends a bookmark each minute."""
LONGEST_BACKOFF_SECONDS: Final = 15.0

log = structlog.get_logger()


class FeedError(Exception):
    """The API server refused a list or ended a watch with an error."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Pods that changed, and the API time until which everything is known once they settle."""

    present: list[Pod]
    gone: list[Pod]
    heard_at: datetime


class PodFeed:
    """Follows all of botplane's pods; safe for one following and one taking thread."""

    def __init__(self, api: Api, clock: Callable[[], datetime], resync_seconds: int) -> None:
        self._api = api
        self._clock = clock
        self._resync_seconds = resync_seconds
        self._changed = threading.Condition()
        self._pods: dict[UUID, Pod] = {}
        self._gone: dict[UUID, Pod] = {}
        self._dirty: set[UUID] = set()
        self._released: set[UUID] = set()
        self._heard_at: datetime | None = None
        self._skew = timedelta(0)
        self.lists = 0
        self.moved_at = time.monotonic()

    def follow(self, stop: threading.Event) -> None:
        """List and watch until `stop`; errors are logged and tried again, for ever."""
        failures = 0
        while not stop.is_set():
            try:
                version = self._list()
                failures = 0
                self._follow_watch(version, stop)
            except (FeedError, Retryable, ValueError, KeyError) as error:
                if stop.is_set():
                    return
                failures += 1
                metrics.API_ERRORS.labels("list_or_watch").inc()
                log.warning("Lost the pod feed", error=_brief(error), failures=failures)
                self.moved_at = time.monotonic()
                stop.wait(backoff_seconds(failures, LONGEST_BACKOFF_SECONDS))

    def interrupt(self) -> None:
        """Wake whoever waits for a change."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Return when pods changed, or after some seconds."""
        with self._changed:
            if not self._dirty:
                self._changed.wait(seconds)

    def take(self) -> Taken | None:
        """Return what changed since the last call; None before the first list."""
        with self._changed:
            if self._heard_at is None:
                return None
            present = [self._pods[uid] for uid in self._dirty if uid in self._pods]
            gone = [self._gone[uid] for uid in self._dirty if uid in self._gone]
            self._dirty.clear()
            return Taken(present=present, gone=gone, heard_at=self._heard_at)

    def put_back(self, uids: Iterable[UUID]) -> None:
        """Have pods taken again, as they are by then."""
        with self._changed:
            self._dirty |= {uid for uid in uids if uid in self._pods or uid in self._gone}
            self._changed.notify_all()

    def forget_gone(self, uids: Iterable[UUID]) -> None:
        """Drop vanished pods that are settled."""
        with self._changed:
            for uid in uids:
                self._gone.pop(uid, None)

    def expect_gone(self, uids: Iterable[UUID]) -> None:
        """Note that pods were released: they are settled, their disappearance is no news."""
        with self._changed:
            self._released |= {uid for uid in uids if uid in self._pods}

    def pods(self) -> list[Pod]:
        """Return every pod that exists."""
        with self._changed:
            return list(self._pods.values())

    def knows(self, uid: UUID) -> bool:
        """Say whether a pod exists, or has vanished and is not settled yet."""
        with self._changed:
            return uid in self._pods or uid in self._gone

    @property
    def heard_at(self) -> datetime | None:
        """Return the API time until which all changes have arrived; None before the first list."""
        return self._heard_at

    def _list(self) -> str:
        asked_at = self._clock()
        found: dict[UUID, Pod] = {}
        token, version = "", ""
        while not version or token:
            page, date = self._page(token)
            for item in page["items"]:
                pod = _read(item)
                if pod is not None:
                    found[pod.uid] = pod
            version = page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue") or ""
            if date is not None:
                self._skew = date - self._clock()
            self.moved_at = time.monotonic()
        with self._changed:
            for uid in self._pods.keys() - found.keys():
                self._vanish(self._pods[uid])
            self._pods = found
            self._released &= found.keys()
            self._dirty |= found.keys()
            self._hear(asked_at)
            self.lists += 1
            self._changed.notify_all()
        log.debug("Listed pods", count=len(found))
        return version

    def _page(self, token: str) -> tuple[Json, datetime | None]:
        query: Query = {"labelSelector": SELECTOR, "limit": PAGE_SIZE, "continue": token}
        reply = self._api.get(PODS, query, timeout=LIST_TIMEOUT_SECONDS)
        if reply.status != HTTPStatus.OK:
            raise FeedError(f"list pods: {reply.status} {reply.body[:200]!r}")
        date = reply.headers.get("Date")
        return json.loads(reply.body), parsedate_to_datetime(date) if date else None

    def _follow_watch(self, version: str, stop: threading.Event) -> None:
        query: Query = {
            "labelSelector": SELECTOR,
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "1",
            "timeoutSeconds": self._resync_seconds,
        }
        for event in self._api.stream(PODS, query, timeout=WATCH_TIMEOUT_SECONDS):
            if stop.is_set():
                return
            self.moved_at = time.monotonic()
            if event["type"] == "ERROR":
                raise FeedError(f"watch pods: {event['object'].get('message')}")
            pod = _read(event["object"]) if event["type"] != "BOOKMARK" else None
            with self._changed:
                if pod is not None and event["type"] == "DELETED":
                    self._vanish(pod)
                elif pod is not None:
                    self._pods[pod.uid] = pod
                    self._dirty.add(pod.uid)
                self._hear(self._clock())
                self._changed.notify_all()

    def _vanish(self, pod: Pod) -> None:
        self._pods.pop(pod.uid, None)
        if pod.uid in self._released:
            self._released.discard(pod.uid)
        else:
            self._gone[pod.uid] = pod
            self._dirty.add(pod.uid)

    def _hear(self, at: datetime) -> None:
        heard = (at + self._skew).replace(microsecond=0)
        if self._heard_at is None or heard > self._heard_at:
            self._heard_at = heard
        metrics.LAST_SYNC.set(at.timestamp())
        metrics.PODS.set(len(self._pods))


def backoff_seconds(failures: int, longest: float) -> float:
    """Return how long to wait after so many failures in a row, with jitter."""
    return float(min(longest, 0.25 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.5))


def _read(item: Json) -> Pod | None:
    try:
        return read_pod(item)
    except (KeyError, ValueError, TypeError):
        log.exception("Could not read a pod", name=(item.get("metadata") or {}).get("name"))
        return None


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
