"""The conditions of a BotDeployment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from botplane.api.conditions import Finding, Outcome, Verdict, summarize
from botplane.bots.backup import backup_name
from botplane.errors import Rejected, Retryable
from botplane.kube.resources import Ref

PLAN_REASONS = frozenset(
    {
        "BotLimitReached", "ReplicaLimitReached", "BotTooLarge", "QuotaExceeded",
        "StorageClassNotAllowed", "ImageNotAllowed",
    }
)  # fmt: skip
CONFIGURATION = frozenset({"ConfigMap", "Secret"})
START_WITH = CONFIGURATION | {"ServiceAccount"}
VOLUME = frozenset({"PersistentVolumeClaim"})
EXPOSURE = frozenset({"Service", "Ingress", "NetworkPolicy"})


@dataclass
class Progress:
    """What a pass has done and found so far."""

    findings: list[Finding] = field(default_factory=list)
    """What the user must change before the bot can run."""
    waiting: Finding | None = None
    """What the bot waits for that comes by itself."""
    failed: dict[Ref, Rejected | Retryable] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    """Status of the Deployment."""
    public_hosts: tuple[str, ...] = ()
    """Hosts of the public ports."""
    backup_schedule: str = ""
    """When backups are made, or nothing."""
    deadline: datetime | None = None
    """Until when a bot that is beyond its plan goes on running."""
    suspended: str = ""
    """Why the bot is suspended, or nothing."""
    suspended_by: str = "User"
    """Reason of that."""
    rests: bool = False
    """The bot declares that no replica runs."""
    changed: bool = False

    @property
    def retry(self) -> Retryable | None:
        """What makes another pass worthwhile."""
        return next((e for e in self.failed.values() if isinstance(e, Retryable)), None)

    def lacks_mounts(self, bot: str) -> bool:
        """Return whether pods would start with what is not the bot's, or is not there.

        A volume that exists and cannot grow is no reason not to start.
        """
        return any(
            ref.name == bot
            and (ref.kind in START_WITH or (ref.kind in VOLUME and error.reason == "Conflict"))
            for ref, error in self.failed.items()
        )

    @property
    def is_blocked_unseen(self) -> bool:
        """Whether what is in the way is not watched: what is not ours, or what a quota counts."""
        return any(error.reason in {"Conflict", "QuotaExceeded"} for error in self.failed.values())


def bot_verdicts(progress: Progress) -> list[Verdict]:
    """Return every condition of the bot."""
    workload = _workload(progress)
    return [
        *_ready(progress, workload),
        _within_plan(progress),
        _configuration(progress),
        workload,
        _exposed(progress),
        _backup_scheduled(progress),
        _suspended(progress),
    ]


def _ready(progress: Progress, workload: Verdict) -> list[Verdict]:
    if progress.findings:
        return summarize(Outcome.STALLED, *progress.findings[0])
    for error in progress.failed.values():
        if isinstance(error, Rejected):
            return summarize(Outcome.STALLED, error.reason, error.message)
    for error in progress.failed.values():
        return summarize(Outcome.IN_PROGRESS, error.reason, error.message)
    if progress.waiting is not None:
        return summarize(Outcome.IN_PROGRESS, *progress.waiting)
    if progress.suspended:
        return summarize(Outcome.READY, "Suspended", f"Suspended: {progress.suspended}")
    if workload.status != "True":
        return summarize(Outcome.IN_PROGRESS, workload.reason, workload.message)
    reason = "Running" if workload.reason == "PodsReady" else workload.reason
    return summarize(Outcome.READY, reason, workload.message)


def _with_deadline(finding: Finding, progress: Progress) -> Finding:
    if progress.deadline is None:
        return finding
    until = f"{progress.deadline:%Y-%m-%d %H:%M} UTC"
    return finding._replace(message=f"{finding.message}. What runs now is stopped at {until}")


def _within_plan(progress: Progress) -> Verdict:
    for finding in progress.findings:
        if finding.reason in PLAN_REASONS:
            return Verdict.fails("WithinPlan", _with_deadline(finding, progress))
    unjudged = [f for f in progress.findings if f.reason == "TenantNotFound"]
    if progress.waiting is not None or unjudged:
        return Verdict.waits("WithinPlan", *(progress.waiting or unjudged[0]))
    return Verdict.holds("WithinPlan", "WithinPlan", "Within the limits of the tenant's plan")


def _configuration(progress: Progress) -> Verdict:
    for finding in progress.findings:
        if finding.reason not in PLAN_REASONS:
            return Verdict.fails("ConfigurationReady", finding)
    if progress.waiting is not None:
        return Verdict.waits("ConfigurationReady", *progress.waiting)
    if failed := _failed(progress, CONFIGURATION):
        return Verdict.fails("ConfigurationReady", failed)
    text = "Configuration and secrets are in place"
    return Verdict.holds("ConfigurationReady", "ConfigurationReady", text)


def _failed(progress: Progress, kinds: frozenset[str]) -> Finding | None:
    """Return why an object of these kinds is not as it should be, if one is not."""
    for ref, error in progress.failed.items():
        if ref.kind in kinds:
            return Finding(error.reason, error.message)
    return None


def _workload(progress: Progress) -> Verdict:
    if progress.findings or progress.waiting is not None:
        return Verdict.waits("WorkloadAvailable", "NotApplied", "Waits for the other conditions")
    if progress.suspended:
        return Verdict.waits("WorkloadAvailable", "Suspended", "Scaled to zero")
    status = progress.workload
    if status.get("isBehind"):
        text = "Kubernetes has not looked at the change yet"
        return Verdict.fails("WorkloadAvailable", Finding("PodsStarting", text))
    if progress.rests and not status.get("replicas"):
        return Verdict.holds("WorkloadAvailable", "ScaledToZero", "spec.replicas is 0")
    wanted, ready = status.get("replicas", 0), status.get("readyReplicas", 0)
    updated = status.get("updatedReplicas", 0)
    failure = _condition(status, "ReplicaFailure")
    if failure:
        return Verdict.fails("WorkloadAvailable", Finding("PodsNotCreated", failure))
    stuck = _condition(status, "Progressing", "False")
    if stuck:
        return Verdict.fails("WorkloadAvailable", Finding("PodsNotReady", stuck))
    if not wanted or ready < wanted or updated < wanted:
        text = f"{ready} of {wanted or 'the'} replicas are ready, {updated} are up to date"
        return Verdict.fails("WorkloadAvailable", Finding("PodsStarting", text))
    return Verdict.holds(
        "WorkloadAvailable", "PodsReady", f"{ready} of {wanted} replicas are ready"
    )


def _condition(status: Mapping[str, Any], type_: str, value: str = "True") -> str:
    for condition in status.get("conditions", ()):
        if condition["type"] == type_ and condition["status"] == value:
            return str(condition.get("message", type_))
    return ""


def _exposed(progress: Progress) -> Verdict:
    for finding in progress.findings:
        if finding.reason == "NoPublicDomain":
            return Verdict.fails("Exposed", finding)
    if not progress.public_hosts:
        return Verdict.fails("Exposed", Finding("NotRequested", "No port is Public"))
    if progress.findings or progress.waiting is not None:
        return Verdict.waits("Exposed", "NotApplied", "Waits for the other conditions")
    if failed := _failed(progress, EXPOSURE):
        return Verdict.fails("Exposed", failed)
    return Verdict.holds("Exposed", "Exposed", f"Reached at {', '.join(progress.public_hosts)}")


def _backup_scheduled(progress: Progress) -> Verdict:
    type_ = "BackupScheduled"
    if not progress.backup_schedule:
        return Verdict.fails(type_, Finding("NotRequested", "spec.backup is not given"))
    if progress.findings or progress.waiting is not None:
        return Verdict.waits(type_, "NotApplied", "Waits for the other conditions")
    if progress.suspended:
        return Verdict.fails(type_, Finding("Suspended", "No backups while the bot is suspended"))
    for ref, error in progress.failed.items():
        if ref.name.endswith(backup_name("")):
            return Verdict.fails(type_, Finding(error.reason, error.message))
    return Verdict.holds(type_, "Scheduled", f"At {progress.backup_schedule} (UTC)")


def _suspended(progress: Progress) -> Verdict:
    if progress.suspended:
        return Verdict.holds("Suspended", progress.suspended_by, progress.suspended)
    finding = Finding("NotSuspended", "Nothing asks for a suspension")
    return Verdict.fails("Suspended", finding)
