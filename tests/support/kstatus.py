"""The readiness that Helm, Flux and Argo CD compute from an object: a port of kstatus.

Written from `pkg/kstatus/status/generic.go` of kubernetes-sigs/cli-utils and not from our own
conditions, so that it can judge them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple


class Status(StrEnum):
    """What a waiting tool does: goes on waiting, succeeds or gives up."""

    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    CURRENT = "Current"
    TERMINATING = "Terminating"


class Result(NamedTuple):
    """The verdict and the text that the tool prints with it."""

    status: Status
    message: str


def compute(body: Mapping[str, Any]) -> Result:
    """Return the status of a custom resource; the order of the checks is kstatus's."""
    metadata, status = body["metadata"], body.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return Result(Status.TERMINATING, "Resource scheduled for deletion")
    observed = status.get("observedGeneration")
    if observed is not None and observed != metadata.get("generation"):
        text = f"{body['kind']} generation is {metadata.get('generation')}, but latest observed"
        return Result(Status.IN_PROGRESS, f"{text} generation is {observed}")
    conditions = status.get("conditions") or ()
    for type_, verdict in (("Reconciling", Status.IN_PROGRESS), ("Stalled", Status.FAILED)):
        found = _find(conditions, type_)
        if found is not None and found["status"] == "True":
            return Result(verdict, found.get("message", ""))
    ready = _find(conditions, "Ready")
    if ready is not None and ready["status"] != "True":
        # False is not a failure: only Stalled says that waiting is in vain.
        return Result(Status.IN_PROGRESS, ready.get("message", ""))
    return Result(Status.CURRENT, "Resource is current")


def _find(conditions: Any, type_: str) -> Mapping[str, Any] | None:
    return next((c for c in conditions if c.get("type") == type_), None)
