"""Conditions as kstatus, Helm, Flux and Argo CD read them: the one place that builds them.

Rules: kubernetes api-conventions (typical status properties) and kstatus: `Ready` is positive,
`Reconciling` and `Stalled` are present only while true, `observedGeneration` is in every entry,
`lastTransitionTime` moves only with `status`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from botplane.api.types import APIModel, Timestamp

MAX_MESSAGE = 1024


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(APIModel):
    """One aspect of the object's state."""

    type: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]{1,62}$", max_length=63)]
    """Aspect, such as `Ready` or `QuotaApplied`."""
    status: ConditionStatus
    """True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0)]
    """Generation of the spec that this condition speaks of."""
    last_transition_time: Timestamp
    """When `status` changed last."""
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z]{1,62}$", max_length=63)]
    """One word for machines."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE)]
    """What is wrong, the value seen and what to do; or what is well."""


class Finding(NamedTuple):
    """What a failed check says: `reason` for machines, `message` for people."""

    reason: str
    message: str


class Verdict(NamedTuple):
    """One condition as decided in this pass, before generation and times are put in."""

    type: str
    status: ConditionStatus
    reason: str
    message: str

    @classmethod
    def holds(cls, type_: str, reason: str, message: str) -> Verdict:
        """Return a condition that is True."""
        return cls(type_, ConditionStatus.TRUE, reason, message)

    @classmethod
    def fails(cls, type_: str, finding: Finding) -> Verdict:
        """Return a condition that is False for the finding's reason."""
        return cls(type_, ConditionStatus.FALSE, finding.reason, finding.message)

    @classmethod
    def waits(cls, type_: str, reason: str, message: str) -> Verdict:
        """Return a condition that nobody can judge yet."""
        return cls(type_, ConditionStatus.UNKNOWN, reason, message)


class Outcome(StrEnum):
    """What a pass ended in; it decides what waiting tools do."""

    READY = "Ready"
    """As declared: tools stop waiting, with success."""
    IN_PROGRESS = "InProgress"
    """Not yet, and it will go on by itself: tools wait."""
    STALLED = "Stalled"
    """Not, until somebody changes something: tools fail with our message."""


SUMMARY_TYPES = frozenset({"Ready", "Reconciling", "Stalled"})
"""The types that `summarize` sets."""


def summarize(outcome: Outcome, reason: str, message: str) -> list[Verdict]:
    """Return Ready with its companions Reconciling or Stalled for the outcome of a pass."""
    match outcome:
        case Outcome.READY:
            return [Verdict.holds("Ready", reason, message)]
        case Outcome.IN_PROGRESS:
            finding = Finding(reason, message)
            return [
                Verdict.fails("Ready", finding),
                Verdict.holds("Reconciling", reason, message),
            ]
        case Outcome.STALLED:
            finding = Finding(reason, message)
            return [Verdict.fails("Ready", finding), Verdict.holds("Stalled", reason, message)]


def condition_in(status: Mapping[str, Any], type_: str) -> Mapping[str, Any] | None:
    """Return the condition of a type that a status, as read from the API, shows; None for none."""
    return next((c for c in status.get("conditions", ()) if c["type"] == type_), None)


def only_in_progress(
    status: Mapping[str, Any], finding: Finding
) -> tuple[list[Verdict], dict[str, Any]]:
    """Return verdicts and fields that say why an object waits, and else what its status said."""
    details = [
        Verdict(c["type"], ConditionStatus(c["status"]), c["reason"], c["message"])
        for c in status.get("conditions", ())
        if c["type"] not in SUMMARY_TYPES
    ]
    fields = {k: v for k, v in status.items() if k not in {"conditions", "observedGeneration"}}
    return [*summarize(Outcome.IN_PROGRESS, *finding), *details], fields


def merge(
    previous: Iterable[Mapping[str, Any]],
    verdicts: Sequence[Verdict],
    generation: int,
    now: datetime,
) -> list[dict[str, Any]]:
    """Return the conditions to write, keeping the transition time of each that did not change.

    Args:
        previous: Conditions as read from the object.
        verdicts: Every condition that the object shall have; others go away.
        generation: `metadata.generation` that the pass looked at.
        now: Time of this pass, aware, UTC.

    Returns:
        Conditions as JSON, Ready first, then by type.
    """
    before = {entry["type"]: entry for entry in previous}
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    merged = []
    for verdict in verdicts:
        last = before.get(verdict.type)
        same = last is not None and last["status"] == verdict.status
        merged.append(
            {
                "type": verdict.type,
                "status": str(verdict.status),
                "observedGeneration": generation,
                "lastTransitionTime": last["lastTransitionTime"] if last and same else at,
                "reason": verdict.reason,
                "message": verdict.message[:MAX_MESSAGE],
            }
        )
    return sorted(merged, key=lambda c: (c["type"] != "Ready", c["type"]))
