"""Pods and claims of volumes as the API server has them: a paged list, then a watch, for ever.

Level-triggered: what happened in between does not matter, only which objects changed since they
were last taken. Each new list is compared with what is known, so a lost event is found at the
latest after one resync. Objects are read as JSON and only their facts are kept: the client's
typed models cost 90 KiB and 1 ms a pod.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
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
from botplane.metering.evidence import Json, Kind, Pod, read_pod
from botplane.metering.volumes import read_claim

PAGE_SIZE: Final = 500
SELECTOR: Final = f"{labels.MANAGED_BY}={labels.MANAGED_BY_VALUE}"
READERS: Final[Mapping[Kind, Callable[[Json], Pod]]] = {Kind.POD: read_pod, Kind.CLAIM: read_claim}
LIST_TIMEOUT_SECONDS: Final = 30
WATCH_TIMEOUT_SECONDS: Final = 90
"""A watch without a word for so long is dead: the server sends a bookmark each minute."""
LONGEST_BACKOFF_SECONDS: Final = 15.0
STALE_LISTS: Final = 5
"""How many lists older than what was seen are refused; after that, etcd was put back in time."""

log = structlog.get_logger()


class FeedError(Exception):
    """The API server refused a list or ended a watch with an error."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What changed, and the API time until which each kind is known.

    Attributes:
        complete_until: Until when everything is known once these settle; None before the first
            list of each kind.
    """

    present: list[Pod]
    gone: list[Pod]
    heard: Mapping[Kind, datetime]
    complete_until: datetime | None


class Feed:
    """Follows all of botplane's pods and claims; safe for following threads and one that takes."""

    def __init__(self, api: Api, clock: Callable[[], datetime], resync_seconds: int) -> None:
        self._api = api
        self._clock = clock
        self._resync_seconds = resync_seconds
        self._changed = threading.Condition()
        self._pods: dict[UUID, Pod] = {}
        self._gone: dict[UUID, Pod] = {}
        self._dirty: set[UUID] = set()
        self._released: set[UUID] = set()
        self._heard: dict[Kind, datetime] = {}
        self._newest = dict.fromkeys(Kind, 0)
        self._stale = dict.fromkeys(Kind, 0)
        self._moved = dict.fromkeys(Kind, time.monotonic())
        self._skew = timedelta(0)
        self.lists = 0

    def follow(self, kind: Kind, stop: threading.Event) -> None:
        """List and watch a kind until `stop`; errors are logged and tried again, for ever."""
        failures = 0
        while not stop.is_set():
            try:
                version = self.list_once(kind)
                failures = 0
                self.watch(kind, version, stop)
            except (FeedError, Retryable, ValueError, KeyError) as error:
                if stop.is_set():
                    return
                failures += 1
                metrics.API_ERRORS.labels("list_or_watch").inc()
                log.warning("Lost the feed", kind=str(kind), error=_brief(error), failures=failures)
                self._moved[kind] = time.monotonic()
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
        """Return what changed since the last call; None before any list."""
        with self._changed:
            if not self._heard:
                return None
            present = [self._pods[uid] for uid in self._dirty if uid in self._pods]
            gone = [self._gone[uid] for uid in self._dirty if uid in self._gone]
            self._dirty.clear()
            return Taken(
                present=present,
                gone=gone,
                heard=dict(self._heard),
                complete_until=min(self._heard.values()) if self.is_complete else None,
            )

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
    def heard(self) -> Mapping[Kind, datetime]:
        """Return the API time until which all changes have arrived, for each kind once listed."""
        return self._heard

    @property
    def is_complete(self) -> bool:
        """Say whether every kind has been listed once."""
        return len(self._heard) == len(READERS)

    @property
    def moved_at(self) -> float:
        """Return when the thread that is furthest behind last moved."""
        return min(self._moved.values())

    def list_once(self, kind: Kind) -> str:
        """Read all objects of a kind and return the version to watch from.

        Raises:
            FeedError: The API server refused, or showed an older state than was seen before.
            Retryable: No answer came.
        """
        asked_at = self._clock()
        found: dict[UUID, Pod] = {}
        token, version = "", ""
        while not version or token:
            page, date = self._page(kind, token)
            for item in page["items"]:
                pod = _read(kind, item)
                if pod is not None:
                    found[pod.uid] = pod
            version = page["metadata"]["resourceVersion"]
            token = page["metadata"].get("continue") or ""
            if date is not None:
                self._skew = date - self._clock()
            self._moved[kind] = time.monotonic()
        self._refuse_stale(kind, int(version))
        with self._changed:
            known = {uid for uid, pod in self._pods.items() if pod.kind is kind}
            for uid in known - found.keys():
                self._vanish(self._pods[uid])
            self._pods |= found
            self._released &= self._pods.keys()
            self._dirty |= found.keys()
            self._hear(kind, asked_at)
            self.lists += 1
            self._changed.notify_all()
        log.debug("Listed", kind=str(kind), count=len(found))
        return version

    def watch(self, kind: Kind, version: str, stop: threading.Event) -> None:
        """Take note of each change of a kind until the server ends the watch.

        Raises:
            FeedError: The server ended it with an error.
            Retryable: The connection broke.
        """
        query: Query = {
            "labelSelector": SELECTOR,
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "1",
            "timeoutSeconds": self._resync_seconds,
        }
        for event in self._api.stream(_collection(kind), query, timeout=WATCH_TIMEOUT_SECONDS):
            if stop.is_set():
                return
            self.note(kind, event)

    def note(self, kind: Kind, event: Json) -> None:
        """Take note of one event of a watch.

        Raises:
            FeedError: It says that the watch is over.
        """
        self._moved[kind] = time.monotonic()
        if event["type"] == "ERROR":
            raise FeedError(f"watch {kind}: {event['object'].get('message')}")
        newest = int(event["object"]["metadata"]["resourceVersion"])
        pod = _read(kind, event["object"]) if event["type"] != "BOOKMARK" else None
        with self._changed:
            if newest > self._newest[kind]:
                self._newest[kind] = newest
                if pod is not None and event["type"] == "DELETED":
                    self._vanish(pod)
                elif pod is not None:
                    self._pods[pod.uid] = pod
                    self._dirty.add(pod.uid)
            self._hear(kind, self._clock())
            self._changed.notify_all()

    def _refuse_stale(self, kind: Kind, version: int) -> None:
        """Refuse a list from the past: what has come since would be taken for gone."""
        if version < self._newest[kind] and self._stale[kind] < STALE_LISTS:
            self._stale[kind] += 1
            raise FeedError(f"list {kind}: version {version} after {self._newest[kind]}")
        self._stale[kind] = 0
        self._newest[kind] = version

    def _page(self, kind: Kind, token: str) -> tuple[Json, datetime | None]:
        query: Query = {"labelSelector": SELECTOR, "limit": PAGE_SIZE, "continue": token}
        reply = self._api.get(_collection(kind), query, timeout=LIST_TIMEOUT_SECONDS)
        if reply.status != HTTPStatus.OK:
            raise FeedError(f"list {kind}: {reply.status} {reply.body[:200]!r}")
        date = reply.headers.get("Date")
        return json.loads(reply.body), parsedate_to_datetime(date) if date else None

    def _vanish(self, pod: Pod) -> None:
        self._pods.pop(pod.uid, None)
        if pod.uid in self._released:
            self._released.discard(pod.uid)
        else:
            self._gone[pod.uid] = pod
            self._dirty.add(pod.uid)

    def _hear(self, kind: Kind, at: datetime) -> None:
        heard = (at + self._skew).replace(microsecond=0)
        if kind not in self._heard or heard > self._heard[kind]:
            self._heard[kind] = heard
        metrics.LAST_SYNC.set(at.timestamp())
        metrics.PODS.set(len(self._pods))


def backoff_seconds(failures: int, longest: float) -> float:
    """Return how long to wait after so many failures in a row, with jitter."""
    return float(min(longest, 0.25 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.5))


def _collection(kind: Kind) -> str:
    return f"/api/v1/{kind.plural}"


def _read(kind: Kind, item: Json) -> Pod | None:
    try:
        return READERS[kind](item)
    except (KeyError, ValueError, TypeError):
        log.exception(
            "Could not read an object",
            kind=str(kind),
            name=(item.get("metadata") or {}).get("name"),
        )
        return None


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
