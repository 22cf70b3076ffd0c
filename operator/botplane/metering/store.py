"""Where settled time lies: bots, pods, intervals, gaps and the watermark of metering.

Every write is an upsert on the identity of what it says, so doing it again changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from botplane.errors import Retryable
from botplane.metering.evidence import Account, Kind, Pod, Size, object_path
from botplane.metering.policy import (
    Fate,
    Interval,
    Quality,
    Reason,
    Settlement,
    Sight,
    settle,
)
from botplane.store.errors import translated_errors
from botplane.store.queries import load_queries

QUERIES: Final = load_queries("botplane.metering")

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Look:
    """A pod with an account, and how it was looked at."""

    pod: Pod
    account: Account
    sight: Sight


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a batch.

    Attributes:
        closed: How many intervals were closed, by quality.
        refused: Pods whose rows Postgres does not take; nothing of them is written.
    """

    closed: Mapping[Quality, int]
    refused: frozenset[UUID]


@dataclass(frozen=True, kw_only=True)
class StoredPod:
    """A pod or a claim that Postgres knows and has not seen settled."""

    kind: Kind
    tenant_id: UUID
    pod_uid: UUID
    namespace: str
    name: str

    @property
    def path(self) -> str:
        """Return the path of the object on the API server."""
        return object_path(self.kind, self.namespace, self.name)


class MeteringStore:
    """The statements of `queries.sql`, each method one transaction.

    Every method raises `Retryable` while Postgres is away, busy or not migrated.
    """

    def __init__(self, pool: ConnectionPool[Connection]) -> None:
        self._pool = pool

    def settle(self, looks: Sequence[Look], now: datetime) -> Outcome:
        """Write what the pods show and return once it is on disk.

        A pod that Postgres refuses is found by halving the batch, so that it stops nobody else.
        """
        try:
            with self._transaction() as connection:
                closed = _settle(connection, looks, now)
        except (psycopg.DataError, psycopg.IntegrityError):
            if len(looks) == 1:
                return Outcome(closed={}, refused=frozenset({looks[0].pod.uid}))
            middle = len(looks) // 2
            first, second = (
                self.settle(looks[:middle], now),
                self.settle(looks[middle:], now),
            )
            total = {q: first.closed.get(q, 0) + second.closed.get(q, 0) for q in Quality}
            return Outcome(closed=total, refused=first.refused | second.refused)
        return Outcome(closed=closed, refused=frozenset())

    def mark_settled(self, pods: Sequence[tuple[UUID, UUID]], now: datetime) -> None:
        """Note that pods (tenant, uid) were released."""
        with self._transaction() as connection:
            connection.execute(QUERIES["mark_settled"], {"pods": _keys(pods), "now": now})

    def unsettled_pods(self) -> list[StoredPod]:
        """Return the pods that have not been released."""
        with self._transaction() as connection:
            rows = connection.execute(QUERIES["unsettled_pods"]).fetchall()
        return [
            StoredPod(
                kind=Kind(kind), tenant_id=tenant, pod_uid=uid, namespace=namespace, name=name
            )
            for kind, tenant, uid, namespace, name in rows
        ]

    def close_vanished(self, pods: Sequence[tuple[UUID, UUID]], now: datetime) -> int:
        """Close and settle pods that are gone from the API; return how many runs were open."""
        with self._transaction() as connection:
            found = connection.execute(QUERIES["close_vanished"], {"pods": _keys(pods)}).fetchone()
            connection.execute(QUERIES["mark_settled"], {"pods": _keys(pods), "now": now})
        return int(found[0]) if found else 0

    def beat(
        self,
        running: Sequence[tuple[Pod, datetime]],
        complete_until: datetime,
        now: datetime,
    ) -> None:
        """Note until when runs were seen to go on, and until when everything is here."""
        runs = [
            {
                "tenant_id": str(pod.account.tenant_id),
                "pod_uid": str(pod.uid),
                "container": container,
                "restart": restart,
                "seen_at": seen_at.isoformat(),
            }
            for pod, seen_at in running
            if pod.account is not None
            for container, restart in pod.running
        ]
        with self._transaction() as connection:
            connection.execute(QUERIES["see_running"], {"runs": Jsonb(runs)})
            _advance(connection, complete_until, now)

    def advance_watermark(self, complete_until: datetime, now: datetime) -> None:
        """Note until when everything is here."""
        with self._transaction() as connection:
            _advance(connection, complete_until, now)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with (
                translated_errors(),
                self._pool.connection() as connection,
                connection.transaction(),
            ):
                yield connection
        except (psycopg.DataError, psycopg.IntegrityError):
            raise
        except Retryable as error:
            if isinstance(error.__cause__, psycopg.IntegrityError):
                raise error.__cause__ from error
            raise
        except psycopg.Error as error:
            raise Retryable("DatabaseRefused", f"Postgres refused: {error}") from error


def _advance(connection: Connection, complete_until: datetime, now: datetime) -> None:
    connection.execute(QUERIES["advance_watermark"], {"complete_until": complete_until, "now": now})


def _settle(connection: Connection, looks: Sequence[Look], now: datetime) -> dict[Quality, int]:
    connection.execute(QUERIES["commit_durably"])
    connection.execute(QUERIES["add_bots"], {"bots": Jsonb(_bot_rows(looks))})
    connection.execute(QUERIES["lock_pods"], {"pods": Jsonb([_pod_row(look) for look in looks])})
    stored = _newest_intervals(connection, looks)
    settled = [(look, settle(look.pod, stored[look.pod.uid], look.sight)) for look in looks]
    if intervals := [row for look, done in settled for row in _interval_rows(look, done)]:
        connection.execute(QUERIES["write_intervals"], {"intervals": Jsonb(intervals)})
    if gaps := [row for look, done in settled for row in _gap_rows(look, done)]:
        connection.execute(QUERIES["write_gaps"], {"gaps": Jsonb(gaps)})
    forced = [
        (look.account.tenant_id, look.pod.uid)
        for look in looks
        if look.pod.force_settle and look.pod.deletion_at is not None
    ]
    if forced:
        connection.execute(QUERIES["note_forced"], {"pods": _keys(forced), "now": now})
    gone = [
        (look.account.tenant_id, look.pod.uid) for look in looks if look.sight.fate is Fate.GONE
    ]
    if gone:
        connection.execute(QUERIES["mark_settled"], {"pods": _keys(gone), "now": now})
    return {
        quality: sum(row.quality is quality for _, done in settled for row in done.intervals)
        for quality in Quality
    }


def _newest_intervals(
    connection: Connection, looks: Sequence[Look]
) -> defaultdict[UUID, list[Interval]]:
    containers = [
        {
            "tenant_id": str(look.account.tenant_id),
            "pod_uid": str(look.pod.uid),
            "container": container.name,
        }
        for look in looks
        for container in look.pod.containers
    ]
    found: defaultdict[UUID, list[Interval]] = defaultdict(list)
    rows = connection.execute(QUERIES["newest_intervals"], {"containers": Jsonb(containers)})
    for (
        uid,
        container,
        restart,
        seg,
        started,
        ended,
        seen,
        cpu,
        memory,
        storage,
        reason,
        quality,
    ) in rows:
        found[uid].append(
            Interval(
                container=container,
                restart=restart,
                seg=seg,
                started_at=started,
                ended_at=ended,
                last_seen_at=seen,
                size=Size(cpu_milli=cpu, mem_bytes=memory, storage_bytes=storage),
                reason=Reason(reason) if reason else None,
                quality=Quality(quality) if quality else None,
            )
        )
    return found


def _bot_rows(looks: Sequence[Look]) -> list[dict[str, Any]]:
    rows = {
        (look.account.tenant_id, look.account.bot_id): {
            "tenant_id": str(look.account.tenant_id),
            "bot_id": str(look.account.bot_id),
            "name": look.account.bot,
            "created_at": look.pod.created_at.isoformat(),
        }
        for look in looks
    }
    return list(rows.values())


def _pod_row(look: Look) -> dict[str, Any]:
    pod = look.pod
    return {
        **_identity(look),
        "kind": pod.kind,
        "bot_id": str(look.account.bot_id),
        "namespace": pod.namespace,
        "name": pod.name,
        "node": pod.node,
        "created_at": pod.created_at.isoformat(),
        "deletion_at": _text(pod.deletion_at),
    }


def _interval_rows(look: Look, settlement: Settlement) -> Iterator[dict[str, Any]]:
    for row in settlement.intervals:
        yield {
            **_identity(look),
            "bot_id": str(look.account.bot_id),
            "node": look.pod.node,
            "container": row.container,
            "restart": row.restart,
            "seg": row.seg,
            "started_at": row.started_at.isoformat(),
            "ended_at": _text(row.ended_at),
            "last_seen_at": row.last_seen_at.isoformat(),
            "cpu_milli": row.size.cpu_milli,
            "mem_bytes": row.size.mem_bytes,
            "storage_bytes": row.size.storage_bytes,
            "close_reason": row.reason,
            "close_quality": row.quality,
        }


def _gap_rows(look: Look, settlement: Settlement) -> Iterator[dict[str, Any]]:
    for gap in settlement.gaps:
        yield {
            **_identity(look),
            "container": gap.container,
            "starts_at": gap.started_at.isoformat(),
            "ends_at": gap.ended_at.isoformat(),
            "reason": "RunsUnseen",
        }


def _identity(look: Look) -> dict[str, Any]:
    return {"tenant_id": str(look.account.tenant_id), "pod_uid": str(look.pod.uid)}


def _keys(pods: Sequence[tuple[UUID, UUID]]) -> Jsonb:
    return Jsonb([{"tenant_id": str(tenant), "pod_uid": str(uid)} for tenant, uid in pods])


def _text(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
