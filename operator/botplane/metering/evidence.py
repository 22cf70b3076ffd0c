"""What a pod, as the API server shows it, proves about the runs of its containers.

Pure. Knows the JSON of a pod; must not know what is stored or what a second costs.
Times are the API's own whole seconds: nothing here looks at a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from botplane.api import labels
from botplane.metering.quantity import quantity

Json = Mapping[str, Any]

FORCE_SETTLE: Final = f"{labels.GROUP}/force-settle"
"""Annotation: settle a pod that is being deleted with what is known now, then let it go."""

TERMINAL_PHASES: Final = frozenset({"Succeeded", "Failed"})
LOST_DISRUPTIONS: Final = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})

UNSEEN_END: Final = (255, "Unknown")
"""Exit code and reason that containerd gives a container which it finds gone at its own start."""

LARGEST_CPU_MILLI: Final = 2**31 - 1
LARGEST_BYTES: Final = 2**63 - 1
"""What the columns of an interval hold: no pod may be refused for asking for more."""


class Kind(StrEnum):
    """What is metered."""

    POD = "Pod"
    CLAIM = "PersistentVolumeClaim"

    @property
    def plural(self) -> str:
        """Return the name that API paths use."""
        return f"{self.lower()}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a container has reserved, or a volume holds: the quantity that prices multiply."""

    cpu_milli: int
    mem_bytes: int
    storage_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one container, as its status shows it.

    Attributes:
        restart: How many runs of this container came before.
        started_at: Kubelet's start; None when the status was lost.
        ended_at: Kubelet's end; None while the run goes on or when the status was lost.
        over: Whether the status says that the run has ended, known end or not.
        end_unseen: Whether the container runtime was itself away at the end, as after a power
            failure: `ended_at` is then when it came back and missed the container.
    """

    restart: int
    started_at: datetime | None
    ended_at: datetime | None
    over: bool
    end_unseen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A billed container: its size and its one or two visible runs, oldest first.

    Attributes:
        resized_at: When its size was written, where the API tells that apart from the rest.
    """

    name: str
    size: Size
    runs: tuple[Run, ...]
    resized_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who pays: the tenant and bot that the pod's labels name."""

    tenant_id: UUID
    tenant: str
    bot_id: UUID
    bot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The part of a pod that metering keeps, about 1.5 KiB instead of 90; or a volume's claim.

    Attributes:
        account: None when the labels are malformed or name another namespace's tenant.
        deletion_at: `deletionTimestamp`: when the kubelet must have killed it.
        deleted_at: When the deletion was asked for, that is, less the grace period.
        started_at: When the kubelet took the pod; the lower bound of runs nobody saw.
        status_at: Time of the last write to the status, where the API records it.
        finalizer: Index of our finalizer in `metadata.finalizers`; None when absent.
        lost: Whether the API itself says that no kubelet stands behind the pod any more.
    """

    kind: Kind
    uid: UUID
    namespace: str
    name: str
    node: str | None
    account: Account | None
    created_at: datetime
    deletion_at: datetime | None
    deleted_at: datetime | None
    started_at: datetime | None
    status_at: datetime | None
    finalizer: int | None
    terminal: bool
    lost: bool
    force_settle: bool
    containers: tuple[Container, ...]

    @property
    def key(self) -> str:
        """Return `namespace/name`, the key under which the pod is queued."""
        return f"{self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """Return the path of the object on the API server."""
        return object_path(self.kind, self.namespace, self.name)

    @property
    def running(self) -> list[tuple[str, int]]:
        """Return container and restart of every run that goes on."""
        if self.terminal:
            return []
        return [
            (c.name, c.runs[-1].restart) for c in self.containers if c.runs and not c.runs[-1].over
        ]


def read_pod(pod: Json) -> Pod:
    """Read a pod as the API server sends it.

    Raises:
        KeyError, ValueError: The object is not a pod that an API server could have sent.
    """
    metadata: Json = pod["metadata"]
    status: Json = pod.get("status") or {}
    deletion_at = time_of(metadata.get("deletionTimestamp"))
    grace = timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
    return Pod(
        **read_metadata(metadata),
        kind=Kind.POD,
        node=(pod.get("spec") or {}).get("nodeName"),
        deleted_at=deletion_at - grace if deletion_at else None,
        started_at=time_of(status.get("startTime")),
        status_at=_status_time(metadata),
        terminal=status.get("phase") in TERMINAL_PHASES,
        lost=_is_lost(status),
        containers=tuple(_containers(pod.get("spec") or {}, status)),
    )


def read_metadata(metadata: Json) -> dict[str, Any]:
    """Return what the metadata of any object says: the fields of `Pod` of the same names.

    Raises:
        KeyError, ValueError: No API server could have sent it.
    """
    finalizers: list[str] = metadata.get("finalizers") or []
    return {
        "uid": UUID(metadata["uid"]),
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "account": _account(metadata),
        "created_at": datetime.fromisoformat(metadata["creationTimestamp"]),
        "deletion_at": time_of(metadata.get("deletionTimestamp")),
        "finalizer": (
            finalizers.index(labels.METERING_FINALIZER)
            if labels.METERING_FINALIZER in finalizers
            else None
        ),
        "force_settle": FORCE_SETTLE in (metadata.get("annotations") or {}),
    }


def object_path(kind: Kind, namespace: str, name: str) -> str:
    """Return the path of an object on the API server."""
    return f"/api/v1/namespaces/{namespace}/{kind.plural}/{name}"


def time_of(text: str | None) -> datetime | None:
    """Return the time that the API server writes as text."""
    return datetime.fromisoformat(text) if text else None


def _account(metadata: Json) -> Account | None:
    found: Json = metadata.get("labels") or {}
    tenant, bot = found.get(labels.TENANT), found.get(labels.BOT)
    if not tenant or not bot or metadata["namespace"] != labels.tenant_namespace(tenant):
        return None
    try:
        return Account(
            tenant_id=UUID(found[labels.TENANT_UID]),
            tenant=tenant,
            bot_id=UUID(found[labels.BOT_UID]),
            bot=bot,
        )
    except (KeyError, ValueError):
        return None


def _is_lost(status: Json) -> bool:
    if status.get("reason") == "NodeLost" or status.get("phase") == "Unknown":
        return True
    return any(
        condition.get("type") == "DisruptionTarget"
        and condition.get("status") == "True"
        and condition.get("reason") in LOST_DISRUPTIONS
        for condition in status.get("conditions") or ()
    )


def _status_time(metadata: Json) -> datetime | None:
    times = [
        datetime.fromisoformat(entry["time"])
        for entry in metadata.get("managedFields") or ()
        if entry.get("subresource") == "status" and entry.get("time")
    ]
    return max(times, default=None)


def _containers(spec: Json, status: Json) -> list[Container]:
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    seen = {
        s["name"]: s
        for group in ("initContainerStatuses", "containerStatuses")
        for s in status.get(group) or ()
    }
    return [
        Container(
            name=container["name"],
            size=_size(container, seen.get(container["name"], {})),
            runs=_runs(seen.get(container["name"], {})),
        )
        for container in [*sidecars, *(spec.get("containers") or ())]
    ]


def _size(container: Json, status: Json) -> Size:
    asked: Json = (container.get("resources") or {}).get("requests") or {}
    actual: Json = (status.get("resources") or {}).get("requests") or asked
    cpu = quantity(str(actual.get("cpu", asked.get("cpu", "0"))))
    memory = quantity(str(actual.get("memory", asked.get("memory", "0"))))
    return Size(
        cpu_milli=min(int((cpu * 1000).to_integral_value(ROUND_CEILING)), LARGEST_CPU_MILLI),
        mem_bytes=min(int(memory.to_integral_value(ROUND_CEILING)), LARGEST_BYTES),
    )


def _runs(status: Json) -> tuple[Run, ...]:
    """Return the visible runs of a container.

    `restartCount` numbers the run in `state`. While the container waits for its next run,
    `state` is `waiting` and `lastState` is the run of that same number; only a status that
    the kubelet lost (no times) has been counted on already.
    """
    restart: int = status.get("restartCount") or 0
    state: Json = status.get("state") or {}
    last: Json | None = (status.get("lastState") or {}).get("terminated")
    running: Json | None = state.get("running")
    terminated: Json | None = state.get("terminated")
    waits = running is None and terminated is None

    runs: list[Run] = []
    if last is not None:
        known = last.get("finishedAt") is not None
        number = restart if waits and (known or restart == 0) else restart - 1
        if number >= 0:
            runs.append(_ended(number, last))
    if running is not None:
        started = time_of(running.get("startedAt"))
        runs.append(Run(restart=restart, started_at=started, ended_at=None, over=False))
    elif terminated is not None:
        runs.append(_ended(restart, terminated))
    return tuple(runs)


def _ended(restart: int, terminated: Json) -> Run:
    return Run(
        restart=restart,
        started_at=time_of(terminated.get("startedAt")),
        ended_at=time_of(terminated.get("finishedAt")),
        over=True,
        end_unseen=(terminated.get("exitCode"), terminated.get("reason")) == UNSEEN_END,
    )
