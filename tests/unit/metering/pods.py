"""Pods as the API server shows them, with everything the story does not mention defaulted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

TENANT_UID = "11111111-1111-4111-8111-111111111111"
BOT_UID = "22222222-2222-4222-8222-222222222222"
POD_UID = "33333333-3333-4333-8333-333333333333"
NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Return so many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def text(seconds: float) -> str:
    """Return so many seconds after noon, as Kubernetes writes it."""
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def running(start: float, *, restart: int = 0, last: Any = None, **more: Any) -> dict[str, Any]:
    """Return the status of a running container."""
    state = {"running": {"startedAt": text(start)}}
    return _status(state, restart, last, more)


def ended(
    start: float | None,
    end: float | None,
    *,
    restart: int = 0,
    last: Any = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the status of a container that has ended."""
    return _status(termination(start, end), restart, last, more)


def waiting(*, restart: int = 0, last: Any = None, **more: Any) -> dict[str, Any]:
    """Return the status of a container that waits for its next run."""
    return _status({"waiting": {"reason": "CrashLoopBackOff"}}, restart, last, more)


def termination(start: float | None, end: float | None) -> dict[str, Any]:
    """Return a terminated state; None is a time that the kubelet lost."""
    return {
        "terminated": {
            "exitCode": 1,
            "startedAt": None if start is None else text(start),
            "finishedAt": None if end is None else text(end),
        }
    }


def a_pod(
    *statuses: dict[str, Any],
    deleted: float | None = None,
    grace: int = 0,
    phase: str = "Running",
    spec: dict[str, Any] | None = None,
    **metadata: Any,
) -> dict[str, Any]:
    """Return a pod with one container `bot` of 500m and 1Gi on node `n1`."""
    requests = {"cpu": "500m", "memory": "1Gi"}
    deletion = (
        {
            "deletionTimestamp": text(deleted + grace),
            "deletionGracePeriodSeconds": grace,
        }
        if deleted is not None
        else {}
    )
    return {
        "metadata": {
            "name": "bot-1",
            "namespace": "tenant-acme",
            "uid": POD_UID,
            "creationTimestamp": text(-5),
            "finalizers": ["botplane.io/metering"],
            "labels": {
                "botplane.io/tenant": "acme",
                "botplane.io/tenant-uid": TENANT_UID,
                "botplane.io/bot": "arb-1",
                "botplane.io/bot-uid": BOT_UID,
            },
            **deletion,
            **metadata,
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "bot", "resources": {"requests": requests}}],
            **(spec or {}),
        },
        "status": {
            "phase": phase,
            "startTime": text(-2),
            "containerStatuses": list(statuses),
        },
    }


def a_claim(
    phase: str = "Bound",
    *,
    bound: float = 0,
    size: str = "10Gi",
    resized: float | None = None,
    deleted: float | None = None,
    **metadata: Any,
) -> dict[str, Any]:
    """Return the claim of a volume, bound and resized at seconds after noon."""
    pod = a_pod(deleted=deleted, **metadata)
    capacity: dict[str, Any] = {"f:status": {"f:capacity": {"f:storage": {}}}}
    annotations: dict[str, Any] = {"f:pv.kubernetes.io/bind-completed": {}}
    mark: dict[str, Any] = {"f:metadata": {"f:annotations": annotations}}
    # Whoever binds writes conditions later on, and has the phase and the first size in one entry.
    first: dict[str, Any] = {"f:status": {"f:phase": {}}}
    writers = [("binder", bound, mark), ("binder", 990, first)]
    if resized is None:
        first["f:status"] |= capacity["f:status"]
    else:
        writers.append(("resizer", resized, capacity))
    return {
        "metadata": {
            "managedFields": [
                {
                    "manager": manager,
                    "time": text(when),
                    "fieldsV1": written,
                }
                for manager, when, written in writers
            ],
            **pod["metadata"],
        },
        "status": {"phase": phase}
        | ({} if phase == "Pending" else {"capacity": {"storage": size}}),
    }


def _status(state: dict[str, Any], restart: int, last: Any, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "bot",
        "restartCount": restart,
        "state": state,
        "lastState": {} if last is None else termination(*last),
        **more,
    }
