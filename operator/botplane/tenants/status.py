"""The conditions of a Tenant. Pure: what a pass did and found in, verdicts out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from botplane.api.conditions import Finding, Outcome, Verdict, summarize
from botplane.errors import Rejected, Retryable
from botplane.kube.resources import Ref
from botplane.tenants.accounts import LIMITS_UNKNOWN, AccountState
from botplane.tenants.network import NOT_PROBED
from botplane.tenants.policy import Suspension

STEPS: Mapping[str, tuple[str, frozenset[str]]] = {
    "NamespaceReady": ("NamespaceCreated", frozenset({"Namespace"})),
    "QuotaApplied": ("QuotaApplied", frozenset({"ResourceQuota", "LimitRange"})),
    "IsolationReady": ("Isolated", frozenset({"NetworkPolicy", "ConfigMap"})),
    "AccessReady": ("AccessGranted", frozenset({"RoleBinding", "ServiceAccount"})),
}
DONE = {
    "NamespaceReady": "The namespace exists and enforces Pod Security restricted",
    "QuotaApplied": "Quota and limits are those of the plan",
    "IsolationReady": "Traffic is denied by default and allowed by rule",
    "AccessReady": "Members are bound to their roles",
    "BillingReady": "The billing account is open",
}
QUOTA_ABOVE_PLAN = (
    "Limits are those of the plan, and so is the quota but for what is used beyond it"
)
QUOTA_NOT_COMPUTED = Finding(
    "QuotaNotComputed",
    "The quota is in place and Kubernetes has not computed its use yet; until then it refuses bots",
)


@dataclass
class Progress:
    """What a pass has done and found so far."""

    failed: dict[Ref, Rejected | Retryable] = field(default_factory=dict)
    blocked: Finding | None = None
    """Why nothing may be set up at all."""
    billing: Rejected | Retryable | None = None
    quota_computed: bool = True
    beyond_plan: list[Finding] = field(default_factory=list)
    suspended: tuple[Suspension, ...] = ()
    account: AccountState = field(default_factory=AccountState)
    capacity: Finding | None = None
    """What to tell when the cluster cannot hold the plan beside those of older tenants."""
    network: Verdict = NOT_PROBED
    """Whether the network was seen to enforce policies."""
    waits_for: Finding | None = None
    """Why nothing is set up yet (strict modes)."""
    quota_excess: Finding | None = None
    """What was in use when the quota would have fallen below it."""
    changed: bool = False

    @property
    def retry(self) -> Retryable | None:
        """What makes another pass worthwhile."""
        waiting = [e for e in (*self.failed.values(), self.billing) if isinstance(e, Retryable)]
        return waiting[0] if waiting else None

    @property
    def conflict(self) -> bool:
        """Whether something that is not ours is in the way; it is not watched."""
        reasons = {error.reason for error in self.failed.values()}
        reasons |= {self.blocked.reason} if self.blocked else set()
        return bool(reasons & {"Conflict", "NamespaceConflict"})


def tenant_verdicts(progress: Progress) -> list[Verdict]:
    """Return every condition of the tenant, in order of the steps."""
    steps = [_step(type_, progress) for type_ in STEPS]
    details = [
        *steps,
        _billing(progress),
        _capacity(progress),
        progress.network,
        _within_plan(progress),
        progress.account.limits or LIMITS_UNKNOWN,
        _suspended(progress),
    ]
    return [*_ready(progress), *details]


def _ready(progress: Progress) -> list[Verdict]:
    errors = [*progress.failed.values(), *([progress.billing] if progress.billing else [])]
    refused = [Finding(e.reason, e.message) for e in errors if isinstance(e, Rejected)]
    waiting = [Finding(e.reason, e.message) for e in errors if isinstance(e, Retryable)]
    wrong = [f for f in progress.beyond_plan if f.reason != "BotLimitReached"]
    if progress.blocked is not None:
        return summarize(Outcome.STALLED, *progress.blocked)
    if progress.waits_for is not None:
        return summarize(Outcome.IN_PROGRESS, *progress.waits_for)
    if refused:
        return summarize(Outcome.STALLED, *refused[0])
    if not progress.quota_computed:
        waiting.append(QUOTA_NOT_COMPUTED)
    if waiting:
        return summarize(Outcome.IN_PROGRESS, *waiting[0])
    if wrong:
        return summarize(Outcome.STALLED, *wrong[0])
    return summarize(Outcome.READY, *_well(progress))


def _well(progress: Progress) -> Finding:
    if progress.suspended:
        text = f"Bots are stopped, data is kept: {_reasons(progress.suspended)}"
        return Finding("Suspended", text)
    return Finding("Provisioned", "Everything is set up as the plan says")


def _step(type_: str, progress: Progress) -> Verdict:
    done, kinds = STEPS[type_]
    if progress.blocked is not None:
        return Verdict.fails(type_, progress.blocked)
    if progress.waits_for is not None:
        return Verdict.waits(type_, *progress.waits_for)
    errors = [error for ref, error in progress.failed.items() if ref.kind in kinds]
    if errors:
        return Verdict.fails(type_, Finding(errors[0].reason, errors[0].message))
    if any(ref.kind == "Namespace" for ref in progress.failed):
        return Verdict.waits(type_, "NamespaceNotReady", "Waits for the namespace")
    if type_ == "QuotaApplied" and not progress.quota_computed:
        return Verdict.fails(type_, QUOTA_NOT_COMPUTED)
    if type_ == "QuotaApplied" and progress.quota_excess is not None:
        return Verdict.holds(type_, done, QUOTA_ABOVE_PLAN)
    return Verdict.holds(type_, done, DONE[type_])


def _billing(progress: Progress) -> Verdict:
    if progress.blocked is not None:
        return Verdict.fails("BillingReady", progress.blocked)
    if progress.waits_for is not None:
        return Verdict.waits("BillingReady", *progress.waits_for)
    if progress.billing is not None:
        finding = Finding(progress.billing.reason, progress.billing.message)
        return Verdict.fails("BillingReady", finding)
    return Verdict.holds("BillingReady", "AccountOpen", DONE["BillingReady"])


def _capacity(progress: Progress) -> Verdict:
    if progress.blocked is not None:
        return Verdict.waits("CapacityReserved", *progress.blocked)
    if progress.capacity is not None:
        return Verdict.fails("CapacityReserved", progress.capacity)
    text = "The nodes can hold what the plan promises"
    return Verdict.holds("CapacityReserved", "CapacityReserved", text)


def _reasons(suspensions: Iterable[Suspension]) -> str:
    return "; ".join(s.message for s in suspensions)


def _within_plan(progress: Progress) -> Verdict:
    beyond = [*progress.beyond_plan, *filter(None, [progress.quota_excess])]
    if beyond:
        text = ". ".join(finding.message for finding in beyond)
        return Verdict.fails("WithinPlan", Finding(beyond[0].reason, text))
    if progress.blocked is not None:
        return Verdict.waits("WithinPlan", *progress.blocked)
    return Verdict.holds("WithinPlan", "WithinPlan", "Within the limits of the plan")


def _suspended(progress: Progress) -> Verdict:
    if progress.suspended:
        first = progress.suspended[0].reason
        return Verdict.holds("Suspended", first, _reasons(progress.suspended))
    finding = Finding("NotSuspended", "Nothing asks for a suspension")
    return Verdict.fails("Suspended", finding)
