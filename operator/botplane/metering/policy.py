"""Which seconds a pod has run, and whether it may go.

Pure. An interval is one run of one container at one size, keyed by
`(pod, container, restart, segment)`. What the API proves is exact; what nobody can know is
bounded in the tenant's favour. An exact end never moves, a closed run never opens again, so any
order, repetition or loss of observations leads to the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from botplane.metering.evidence import Container, Json, Pod, Run, Size

LOST_AFTER: Final = timedelta(minutes=5)
"""How long past its deletionTimestamp a pod may wait for its kubelet: the eviction default."""

CLOCK_TOLERANCE: Final = timedelta(minutes=5)
"""How far in the future a time may lie before the clock that told it is not believed."""


class Reason(StrEnum):
    """What closed an interval."""

    TERMINATED = "terminated"
    RESTARTED = "restarted"
    RESIZED = "resized"
    POD_GONE = "pod_gone"
    NODE_LOST = "node_lost"
    RECONCILED = "reconciled"


class Quality(StrEnum):
    """How well the end of an interval is known."""

    EXACT = "exact"
    BOUNDED = "bounded"
    ESTIMATED = "estimated"


RANK: Final = {None: 0, Quality.ESTIMATED: 1, Quality.BOUNDED: 2, Quality.EXACT: 3}


class Fate(StrEnum):
    """What is known of the pod beyond its own status."""

    PRESENT = "present"
    GONE = "gone"
    NODE_LOST = "node_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One run of one container at one size; open while `ended_at` is None."""

    container: str
    restart: int
    seg: int
    started_at: datetime
    ended_at: datetime | None
    last_seen_at: datetime
    size: Size
    reason: Reason | None
    quality: Quality | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Runs nobody saw, billed at nothing; they lie somewhere between the two times."""

    container: str
    first: int
    last: int
    started_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """When and how a pod was looked at.

    Attributes:
        at: API time until which its status is known.
        fate: What else is known of it.
        node_seen_at: Last renewal of its node's Lease, where it is known: the API shows a pod as
            running for minutes after its node has lost power.
    """

    at: datetime
    fate: Fate = Fate.PRESENT
    node_seen_at: datetime | None = None

    @property
    def latest(self) -> datetime:
        """No time that the API tells of what was seen is later; it may be later than `at`.

        `at` is the second of an answer, which may have begun before what it tells.
        """
        return self.at + CLOCK_TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The rows to write for one pod: intervals that changed, and gaps."""

    intervals: tuple[Interval, ...]
    gaps: tuple[Gap, ...]


def settle(pod: Pod, stored: Iterable[Interval], sight: Sight) -> Settlement:
    """Return what has to be written so that the stored intervals of a pod tell all it shows."""
    rows: dict[str, list[Interval]] = defaultdict(list)
    for row in sorted(stored, key=lambda row: (row.container, row.restart, row.seg)):
        rows[row.container].append(row)

    changed: list[Interval] = []
    gaps: list[Gap] = []
    for container in pod.containers:
        before = rows[container.name]
        after = _settle_container(pod, container, before, sight)
        known = {(row.restart, row.seg): row for row in before}
        changed += [row for row in after if known.get((row.restart, row.seg)) != row]
        unseen_from = 1 + max((row.restart for row in before), default=-1)
        gaps += _gaps(pod, container, after, unseen_from)
    return Settlement(intervals=tuple(changed), gaps=tuple(gaps))


def may_release(pod: Pod, sight: Sight) -> bool:
    """Say whether the pod may go once its rows are committed.

    It is being deleted, and every container that ever started has an end; or the end will never
    be told. A container that waits may still be starting until the pod's deletionTimestamp.
    """
    if pod.finalizer is None or pod.deletion_at is None or sight.fate is Fate.GONE:
        return False
    if pod.account is None or pod.force_settle or sight.fate is Fate.NODE_LOST or pod.terminal:
        return True
    if any(c.runs and not c.runs[-1].over for c in pod.containers):
        return False
    all_ended = all(c.runs for c in pod.containers)
    return all_ended or pod.node is None or pod.deletion_at <= sight.at


def is_suspect(pod: Pod, now: datetime) -> bool:
    """Say whether a deleted pod has a run whose end its kubelet should have told by now."""
    if pod.deletion_at is None or not any(c.runs and not c.runs[-1].over for c in pod.containers):
        return False
    return pod.terminal or pod.deletion_at + LOST_AFTER <= now


def is_lost(node: Json) -> bool:
    """Say whether no kubelet stands behind a node any more; an empty object is a node gone."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return not node or any(
        c.get("type") == "Ready" and c.get("status") == "Unknown" for c in conditions
    )


def recheck_after(pod: Pod, now: datetime) -> timedelta | None:
    """Return how long to wait before a pod that cannot be released is worth another look."""
    if pod.deletion_at is None or pod.finalizer is None:
        return None
    if pod.deletion_at > now:
        return pod.deletion_at - now
    return max(pod.deletion_at + LOST_AFTER - now, timedelta(seconds=15))


def better(old: Interval, new: Interval) -> Interval:
    """Return the row that rests on better evidence; on a tie the one that came first."""
    return new if RANK[new.quality] > RANK[old.quality] else old


def _settle_container(
    pod: Pod, container: Container, before: Sequence[Interval], sight: Sight
) -> list[Interval]:
    rows = list(before)
    resized_at = min(container.resized_at or pod.status_at or sight.at, sight.latest)
    for run in container.runs:
        rows = _close_superseded(rows, run)
        rows = [
            *(row for row in rows if row.restart != run.restart),
            *_settle_run(container, run, rows, resized_at, sight),
        ]
        rows.sort(key=lambda row: (row.restart, row.seg))
    return [_close_unproven(pod, row, sight) for row in rows]


def _settle_run(
    container: Container,
    run: Run,
    rows: Sequence[Interval],
    resized_at: datetime,
    sight: Sight,
) -> list[Interval]:
    segments = [row for row in rows if row.restart == run.restart]
    others = [row for row in rows if row.restart != run.restart]
    if not segments:
        opened = _open(container, run, others, sight)
        return [] if opened is None else [_end(opened, run, others, sight)]
    *closed, last = segments
    if run.over and not _grew_before(container, run, last):
        return [*closed, _end(last, run, others, sight)]
    if run.over:
        *closed, last = [*closed, *_resize(last, container.size, resized_at)]
        return [*closed, _end(last, run, others, sight)]
    # A volume does not shrink: a smaller one is a look at the past.
    is_new = container.size.storage_bytes >= last.size.storage_bytes
    is_other = is_new and last.size != container.size
    if last.ended_at is None and is_other and sight.at >= last.last_seen_at:
        return [*closed, *_resize(last, container.size, resized_at)]
    return segments


def _grew_before(container: Container, run: Run, row: Interval) -> bool:
    """Say whether a run that is over changed its size unseen, at a time that is told."""
    at, end = container.resized_at, run.ended_at
    return (
        row.quality is not Quality.EXACT
        and row.size != container.size
        and at is not None
        and end is not None
        and row.started_at <= at <= end
    )


def _open(container: Container, run: Run, others: list[Interval], sight: Sight) -> Interval | None:
    if run.started_at is None:
        return None
    if not run.over and (
        run.started_at > sight.latest or any(row.restart > run.restart for row in others)
    ):
        return None
    ends = [row.ended_at for row in others if row.restart < run.restart and row.ended_at]
    # Its size before that is not known, and not billed.
    resized_at = _not_after(container.resized_at, sight.latest)
    started_at = _later(max([run.started_at, *ends]), resized_at)
    is_seen = not run.over and sight.fate is Fate.PRESENT
    return Interval(
        container=container.name,
        restart=run.restart,
        seg=0,
        started_at=started_at,
        ended_at=None,
        last_seen_at=max(started_at, _earlier(sight.at, sight.node_seen_at))
        if is_seen
        else started_at,
        size=container.size,
        reason=None,
        quality=None,
    )


def _end(row: Interval, run: Run, others: list[Interval], sight: Sight) -> Interval:
    """Close a run by its own end; a clock that stepped back must not bill a second twice."""
    if not run.over:
        return row
    if run.ended_at is None or run.end_unseen:
        end = _earlier(row.last_seen_at, run.ended_at)
        return _close(row, end, Reason.RECONCILED, Quality.ESTIMATED)
    next_starts = [other.started_at for other in others if other.restart > run.restart]
    latest = min([sight.latest, *next_starts])
    if row.started_at <= run.ended_at <= latest:
        return _close(row, run.ended_at, Reason.TERMINATED, Quality.EXACT)
    end = min([run.ended_at, *next_starts])
    return _close(row, end, Reason.TERMINATED, Quality.ESTIMATED)


def _resize(row: Interval, size: Size, at: datetime) -> list[Interval]:
    """Cut an interval where its size changed: the seconds stay whole, the price changes."""
    end = max(at, row.started_at)
    seen = max(end, row.last_seen_at)
    return [
        replace(row, ended_at=end, reason=Reason.RESIZED, quality=Quality.EXACT),
        replace(
            row,
            seg=row.seg + 1,
            started_at=end,
            ended_at=None,
            last_seen_at=seen,
            size=size,
            reason=None,
            quality=None,
        ),
    ]


def _close_superseded(rows: list[Interval], run: Run) -> list[Interval]:
    """Close runs before one that has begun: their own end was overwritten before we looked."""
    return [
        _close(
            row,
            _earlier(row.last_seen_at, run.started_at),
            Reason.RESTARTED,
            Quality.BOUNDED,
        )
        if row.restart < run.restart and row.ended_at is None
        else row
        for row in rows
    ]


def _close_unproven(pod: Pod, row: Interval, sight: Sight) -> Interval:
    """Close an open run of which no end will ever be told."""
    if row.ended_at is not None:
        return row
    match sight.fate:
        case Fate.GONE:
            wish = _not_after(pod.deleted_at, sight.at)
            # Nobody was there to obey the wish when the node had no power.
            ran = wish if wish is None else _earlier(wish, sight.node_seen_at)
            end = _later(row.last_seen_at, ran)
            return _close(row, end, Reason.POD_GONE, Quality.BOUNDED)
        case Fate.NODE_LOST:
            signs = [at for at in (pod.deleted_at, sight.node_seen_at, sight.at) if at]
            return _close(row, min(signs), Reason.NODE_LOST, Quality.BOUNDED)
        case Fate.PRESENT:
            pass
    if pod.terminal or (pod.force_settle and pod.deletion_at is not None):
        end = _earlier(row.last_seen_at, pod.deleted_at)
        return _close(row, end, Reason.RECONCILED, Quality.ESTIMATED)
    return row


def _close(row: Interval, at: datetime, reason: Reason, quality: Quality) -> Interval:
    end = max(at, row.started_at)
    return better(row, replace(row, ended_at=end, reason=reason, quality=quality))


def _gaps(pod: Pod, container: Container, rows: Sequence[Interval], unseen_from: int) -> list[Gap]:
    """Return the runs after the newest stored one and before the visible ones."""
    if not container.runs:
        return []
    if container.resized_at is not None:
        return _size_unseen(container, rows, unseen_from)
    known = {row.restart for row in rows}
    missing = [n for n in range(unseen_from, container.runs[-1].restart) if n not in known]
    later = [row for row in rows if row.restart > max(missing, default=0)]
    if not missing or not later:
        return []
    earlier = [row.ended_at for row in rows if row.restart < missing[0] and row.ended_at]
    start = max(earlier, default=pod.started_at or pod.created_at)
    end = max(later[0].started_at, start)
    return [
        Gap(
            container=container.name,
            first=missing[0],
            last=missing[-1],
            started_at=start,
            ended_at=end,
        )
    ]


def _size_unseen(container: Container, rows: Sequence[Interval], unseen_from: int) -> list[Gap]:
    """Return the time before a first look at which a size was that nobody saw."""
    start = container.runs[0].started_at
    if unseen_from > 0 or not rows or start is None or rows[0].started_at <= start:
        return []
    name = container.name
    return [Gap(container=name, first=0, last=0, started_at=start, ended_at=rows[0].started_at)]


def _later(at: datetime, other: datetime | None) -> datetime:
    return at if other is None else max(at, other)


def _earlier(at: datetime, other: datetime | None) -> datetime:
    return at if other is None else min(at, other)


def _not_after(at: datetime | None, limit: datetime) -> datetime | None:
    return at if at is not None and at <= limit else None
