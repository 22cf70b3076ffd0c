"""The metering process: pods and claims that changed → settled in Postgres → released.

The order is what makes it exact: upsert, COMMIT, and only then the finalizer goes. The process
holds nothing that it could not read again, so it may be killed at any instruction.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar
from uuid import UUID

import structlog

from botplane.errors import Retryable
from botplane.metering import metrics
from botplane.metering.calls import open_api
from botplane.metering.evidence import Json, Kind, Pod
from botplane.metering.feed import Feed, Taken, backoff_seconds
from botplane.metering.nodes import TOLD_WITHIN, Nodes
from botplane.metering.policy import (
    Fate,
    Quality,
    Sight,
    is_lost,
    is_suspect,
    may_release,
    recheck_after,
)
from botplane.metering.release import Cluster, Release, renewed_at
from botplane.metering.store import Look, MeteringStore
from botplane.store.pool import Role, open_pool
from botplane.telemetry.health import serve_health

BATCH_SIZE: Final = 500
RELEASE_AT_ONCE: Final = 250
"""So many pods are released in a turn, five seconds of writes: what ends meanwhile is settled."""
RESYNC_SECONDS: Final = 120
HEARTBEAT_SECONDS: Final = 60.0
WATERMARK_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 1.0
GATHER_SECONDS: Final = 0.05
"""Pods seldom change alone: a batch of ten costs little more than one."""
RETRY_SECONDS: Final = 3.0
REFUSED_RETRY_SECONDS: Final = 60.0
LONGEST_BACKOFF_SECONDS: Final = 10.0
STUCK_AFTER_SECONDS: Final = 330.0
"""Longer than the longest statement, the slowest list and the longest backoff."""

T = TypeVar("T")

log = structlog.get_logger()


class Metering:
    """Settles what the feed brings, lets pods go, and keeps the watermark."""

    def __init__(
        self,
        feed: Feed,
        store: MeteringStore,
        cluster: Cluster,
        clock: Callable[[], datetime],
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed = feed
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._ticks = ticks
        self._due: dict[UUID, float] = {}
        self._releasable: dict[UUID, Pod] = {}
        self._nodes = Nodes(cluster.nodes_seen_at, ticks)
        self._suspects: dict[str, Json | None] = {}
        self._refused: set[UUID] = set()
        self._unbillable: set[UUID] = set()
        self._complete_until: datetime | None = None
        self._swept = 0
        self._marked_at = float("-inf")
        # Before that no Lease proves anything.
        self._beat_at = ticks() + TOLD_WITHIN.total_seconds() - HEARTBEAT_SECONDS
        self.moved_at = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Settle until `stop`; a database that is away is waited for, for ever."""
        failures = 0
        while not stop.is_set():
            self.moved_at = time.monotonic()
            try:
                self.turn(stop)
                failures = 0
            except Retryable as error:
                failures += 1
                metrics.SQL_ERRORS.inc()
                log.warning("Could not reach Postgres", error=error.message, failures=failures)
                stop.wait(backoff_seconds(failures, LONGEST_BACKOFF_SECONDS))
                continue
            self._feed.wait(self._idle_seconds())
            stop.wait(GATHER_SECONDS)

    def is_stuck(self) -> bool:
        """Say whether one of the loops has not moved for too long."""
        oldest = min(self.moved_at, self._feed.moved_at)
        return time.monotonic() - oldest > STUCK_AFTER_SECONDS

    def is_ready(self) -> bool:
        """Say whether everything has been listed once."""
        return self._feed.is_complete

    def turn(self, stop: threading.Event) -> None:
        """Settle and release what has changed since the last turn.

        Raises:
            Retryable: Postgres is away; what was not settled is taken again.
        """
        self._put_back_due()
        taken = self._feed.take()
        if taken is None:
            return
        self._nodes.look()
        if self._settle(taken, stop) and taken.complete_until is not None:
            self._complete_until = taken.complete_until
        if self._feed.lists > self._swept:
            lists = self._feed.lists
            self._sweep(taken.heard.keys())
            self._swept = lists
        self._beat(taken.heard)
        self._release(list(self._releasable.values())[:RELEASE_AT_ONCE])

    def _settle(self, taken: Taken, stop: threading.Event) -> bool:
        """Settle what was taken; return whether nothing of it is left open."""
        fates = [(pod, Fate.PRESENT) for pod in taken.present]
        fates += [(pod, Fate.GONE) for pod in taken.gone]
        unsettled = {pod.uid for pod, _ in fates}
        self._suspects.clear()
        try:
            for batch in _batches(fates):
                if stop.is_set():
                    return False
                self.moved_at = time.monotonic()
                looks = [self._look(pod, fate, taken.heard[pod.kind]) for pod, fate in batch]
                self._settle_batch(looks)
                unsettled -= {pod.uid for pod, _ in batch}
        finally:
            self._feed.put_back(unsettled)
            self._count()
        return not self._refused

    def _settle_batch(self, seen: Sequence[tuple[Pod, Sight]]) -> None:
        looks = [
            Look(pod=pod, account=pod.account, sight=sight)
            for pod, sight in seen
            if pod.account is not None
        ]
        refused: frozenset[UUID] = frozenset()
        if looks:
            with metrics.SETTLE_SECONDS.time():
                outcome = self._store.settle(looks, self._clock())
            refused = outcome.refused
            self._note_closed(outcome.closed)
        self._note_refused(seen, refused)
        self._note_unbillable(seen)
        self._feed.forget_gone(
            pod.uid for pod, sight in seen if sight.fate is Fate.GONE and pod.uid not in refused
        )
        for pod, sight in seen:
            self._releasable.pop(pod.uid, None)
            if may_release(pod, sight) and (pod.uid not in refused or pod.force_settle):
                self._releasable[pod.uid] = pod
        self._recheck(pod for pod, sight in seen if not may_release(pod, sight))

    def _release(self, pods: Sequence[Pod]) -> None:
        """Let pods go whose rows are committed."""
        results = self._cluster.release(pods)
        for pod in pods:
            self._releasable.pop(pod.uid, None)
        done = [pod for pod in pods if results[pod.uid] is Release.DONE]
        self._feed.expect_gone(pod.uid for pod in done)
        self._refused -= {pod.uid for pod in done}
        self._unbillable -= {pod.uid for pod in done}
        for pod in pods:
            if results[pod.uid] is not Release.DONE:
                self._later(pod.uid, RETRY_SECONDS)
        metrics.PODS_RELEASED.inc(len(done))
        if settled := [(pod.account.tenant_id, pod.uid) for pod in done if pod.account]:
            self._store.mark_settled(settled, self._clock())
        if done:
            log.info("Released pods", count=len(done))

    def _look(self, pod: Pod, fate: Fate, at: datetime) -> tuple[Pod, Sight]:
        """Ask after the node of a pod whose end is overdue."""
        if fate is Fate.GONE:
            return pod, Sight(at=at, fate=fate, node_seen_at=self._nodes.alive_until(pod))
        running = Sight(at=at, node_seen_at=self._nodes.proves_until(pod, at))
        if pod.node is None or not is_suspect(pod, at):
            return pod, running
        if pod.node not in self._suspects:
            self._suspects[pod.node] = self._cluster.node(pod.node)
        node = self._suspects[pod.node]
        lost = pod.lost if node is None else is_lost(node)
        # Without an answer the pod would be billed until it was asked to go.
        lease = self._cluster.lease(pod.node) if lost else None
        if lease is None:
            return pod, running
        log.warning("Lost the node of a pod", pod=pod.key, node=pod.node)
        return pod, Sight(at=at, fate=Fate.NODE_LOST, node_seen_at=renewed_at(lease))

    def _sweep(self, listed: Collection[Kind]) -> None:
        """Settle pods and claims that vanished while nobody watched."""
        unsettled = [pod for pod in self._store.unsettled_pods() if pod.kind in listed]
        absent = [pod for pod in unsettled if not self._feed.knows(pod.pod_uid)]
        tenants = {pod.pod_uid: pod.tenant_id for pod in absent}
        keys = [(pod.path, pod.pod_uid) for pod in absent]
        for batch in _batches(keys):
            self.moved_at = time.monotonic()
            gone = [(tenants[uid], uid) for uid in self._cluster.vanished(batch)]
            closed = self._store.close_vanished(gone, self._clock()) if gone else 0
            self._note_closed({Quality.BOUNDED: closed})
            if closed:
                log.warning("Closed runs of vanished pods", pods=len(gone), intervals=closed)

    def _beat(self, heard: Mapping[Kind, datetime]) -> None:
        now = self._ticks()
        if self._complete_until is None:
            return
        if now - self._beat_at >= HEARTBEAT_SECONDS:
            self._store.beat(self._running(heard), self._complete_until, self._clock())
            self._beat_at = self._marked_at = now
        elif now - self._marked_at >= WATERMARK_SECONDS:
            self._store.advance_watermark(self._complete_until, self._clock())
            self._marked_at = now
        metrics.WATERMARK.set(self._complete_until.timestamp())

    def _running(self, heard: Mapping[Kind, datetime]) -> list[tuple[Pod, datetime]]:
        """Return what runs or is bound, each with the time until which that is known."""
        return [
            (pod, min(at, self._nodes.proves_until(pod, at) or at))
            for pod in self._feed.pods()
            if pod.running and (at := heard.get(pod.kind)) is not None
        ]

    def _note_closed(self, closed: Mapping[Quality, int]) -> None:
        for quality, count in closed.items():
            metrics.INTERVALS_SETTLED.labels(quality).inc(count)
        if any(count for quality, count in closed.items() if quality is not Quality.EXACT):
            metrics.LAST_INEXACT.set(self._clock().timestamp())

    def _note_refused(self, seen: Sequence[tuple[Pod, Sight]], refused: frozenset[UUID]) -> None:
        for pod, _ in seen:
            if pod.uid not in refused:
                self._refused.discard(pod.uid)
                continue
            if pod.uid not in self._refused:
                log.error(
                    "Postgres refused the intervals of a pod",
                    pod=pod.key,
                    uid=str(pod.uid),
                )
            self._refused.add(pod.uid)
            self._later(pod.uid, REFUSED_RETRY_SECONDS)

    def _note_unbillable(self, seen: Sequence[tuple[Pod, Sight]]) -> None:
        for pod, sight in seen:
            if sight.fate is Fate.GONE:
                self._unbillable.discard(pod.uid)
            elif pod.account is None and pod.uid not in self._unbillable:
                self._unbillable.add(pod.uid)
                log.error("Found a pod that no tenant pays for", pod=pod.key, uid=str(pod.uid))

    def _recheck(self, pods: Iterable[Pod]) -> None:
        heard = self._feed.heard
        for pod in pods:
            after = recheck_after(pod, heard[pod.kind])
            if after is not None:
                self._later(pod.uid, after.total_seconds())

    def _later(self, uid: UUID, seconds: float) -> None:
        self._due[uid] = self._ticks() + seconds * random.uniform(1.0, 1.5)

    def _put_back_due(self) -> None:
        now = self._ticks()
        ready = [uid for uid, at in self._due.items() if at <= now]
        for uid in ready:
            del self._due[uid]
        self._feed.put_back(ready)

    def _idle_seconds(self) -> float:
        if self._releasable:
            return 0.0
        first = min(self._due.values(), default=float("inf"))
        return min(IDLE_SECONDS, max(0.0, first - self._ticks()))

    def _count(self) -> None:
        waiting = [p for p in self._feed.pods() if p.deletion_at and p.finalizer is not None]
        metrics.PODS_AWAITING_SETTLEMENT.set(len(waiting))
        metrics.PODS_UNBILLABLE.set(len(self._unbillable))
        metrics.PODS_REFUSED.set(len(self._refused))


def run(
    database_url: str,
    kubeconfig: str | None,
    health_port: int | None,
    stop: threading.Event,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),  # noqa: TID251 - the process entry
) -> None:
    """Meter pods and volumes until `stop` is set, then finish the batch at hand and return.

    Args:
        database_url: Postgres, as libpq reads it.
        kubeconfig: Path; None takes `KUBECONFIG`, or else the pod's own service account.
        health_port: Port of /livez, /readyz and /metrics; None serves none.
        stop: Set by the caller's signal handler.
        clock: Current time in UTC.
    """
    api = open_api(kubeconfig)
    feed = Feed(api, clock, RESYNC_SECONDS)
    cluster = Cluster(api)
    pool = open_pool(database_url, Role.METERING, max_size=2)
    metering = Metering(feed, MeteringStore(pool), cluster, clock)
    health = serve_health(health_port, metering) if health_port is not None else None
    for kind in Kind:
        threading.Thread(target=feed.follow, args=[kind, stop], name=str(kind), daemon=True).start()
    threading.Thread(target=_interrupt, args=[feed, stop], name="stop", daemon=True).start()
    try:
        metering.run(stop)
    finally:
        stop.set()
        cluster.close()
        if health is not None:
            health.shutdown()
        pool.close(timeout=1)
    log.info("Stopped metering")


def _interrupt(feed: Feed, stop: threading.Event) -> None:
    stop.wait()
    feed.interrupt()


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH_SIZE):
        yield items[start : start + BATCH_SIZE]
