"""What the claim of a volume, as the API server shows it, proves: bound since when, at which size.

Pure. A claim is metered as a pod whose one container, its volume, runs while the claim is bound and
not asked to go. No field says when it was bound or grew; the API server's managed fields tell when
the mark of a bound claim and `status.capacity` were written. (The phase would be the wrong one:
its writer writes a condition beside it whenever a pod begins or ends to use the claim.)
"""

from __future__ import annotations

from datetime import datetime
from decimal import ROUND_CEILING
from typing import Final

from botplane.metering.evidence import (
    LARGEST_BYTES,
    Container,
    Json,
    Kind,
    Pod,
    Run,
    Size,
    read_metadata,
    time_of,
)
from botplane.metering.quantity import quantity

Path = tuple[str, ...]
BOUND: Final = ("f:metadata", "f:annotations", "f:pv.kubernetes.io/bind-completed")
PHASE: Final = ("f:status", "f:phase")
CAPACITY: Final = ("f:status", "f:capacity", "f:storage")
VOLUME: Final = "volume"
"""What stands for the name of a container."""


def read_claim(claim: Json) -> Pod:
    """Read a PersistentVolumeClaim as the API server sends it.

    Raises:
        KeyError, ValueError: The object is not a claim that an API server could have sent.
    """
    metadata: Json = claim["metadata"]
    status: Json = claim.get("status") or {}
    asked_to_go = time_of(metadata.get("deletionTimestamp"))
    held = str((status.get("capacity") or {}).get("storage", "0"))
    volume = Container(
        name=VOLUME,
        size=Size(
            cpu_milli=0,
            mem_bytes=0,
            storage_bytes=min(int(quantity(held).to_integral_value(ROUND_CEILING)), LARGEST_BYTES),
        ),
        runs=_runs(status.get("phase"), _written_at(metadata, BOUND), asked_to_go),
        resized_at=_written_at(metadata, CAPACITY, beside=PHASE),
    )
    return Pod(
        **read_metadata(metadata),
        kind=Kind.CLAIM,
        node=None,
        deleted_at=asked_to_go,
        started_at=None,
        status_at=None,
        terminal=False,
        lost=False,
        containers=(volume,),
    )


def _runs(
    phase: str | None, since: datetime | None, asked_to_go: datetime | None
) -> tuple[Run, ...]:
    """Return the time that a claim is bound; when one lost its volume is not told."""
    if phase == "Lost":
        return (Run(restart=0, started_at=None, ended_at=None, over=True),)
    if phase != "Bound" or since is None or (asked_to_go is not None and asked_to_go < since):
        return ()
    return (Run(restart=0, started_at=since, ended_at=asked_to_go, over=asked_to_go is not None),)


def _written_at(metadata: Json, path: Path, *, beside: Path | None = None) -> datetime | None:
    """Return when a field was written last, by the managed fields.

    Args:
        metadata: Of the claim.
        path: The field.
        beside: Another field, whose writer does not count: who binds writes the first size too.
    """
    times = [
        datetime.fromisoformat(entry["time"])
        for entry in metadata.get("managedFields") or ()
        if entry.get("time") and _has(entry, path) and not (beside and _has(entry, beside))
    ]
    return max(times, default=None)


def _has(entry: Json, path: Path) -> bool:
    fields = entry.get("fieldsV1")
    for step in path:
        fields = (fields or {}).get(step)
    return fields is not None
