"""What a tenant may have: its plan, lowered or raised by overrides. Pure decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from botplane.api.conditions import Finding
from botplane.api.labels import SUSPEND
from botplane.api.plan import OnPaymentOverdue, PlanSpec
from botplane.api.tenant import DeletionProtection, TenantSpec
from botplane.tenants.accounts import MONEY_REASONS

ORDER_OF_REASONS = ("User", "Admin", "SpendLimit", "UsageLimit", "PaymentOverdue")
DELETION_TAKES: Final = timedelta(seconds=10)
"""What is still there later does not go by itself."""
NAMED: Final = 3
"""Objects in one message."""


class Suspension(NamedTuple):
    """One reason why a tenant's bots are stopped; they resume when none is left."""

    reason: str
    message: str


def suspensions(
    spec: TenantSpec, annotations: Mapping[str, str], money: Iterable[str], plan: PlanSpec | None
) -> tuple[Suspension, ...]:
    """Return every reason for which the tenant is suspended, in a fixed order.

    Args:
        spec: What is declared.
        annotations: Of the Tenant; an administrator's reason is one.
        money: The reasons that Postgres gives: SpendLimit, UsageLimit, PaymentOverdue.
        plan: Of the tenant; it may let bots run on while an invoice is overdue.
    """
    found = {reason: MONEY_REASONS[reason] for reason in money}
    if plan is not None and plan.on_payment_overdue is OnPaymentOverdue.NONE:
        found.pop("PaymentOverdue", None)
    if spec.suspend:
        found["User"] = "spec.suspend is true"
    if SUSPEND in annotations:
        found["Admin"] = f"an administrator says: {annotations[SUSPEND][:200]}"
    return tuple(Suspension(r, found[r]) for r in ORDER_OF_REASONS if r in found)


def deletion_held(spec: TenantSpec) -> Finding | None:
    """Return why a Tenant that was deleted stays, with all that it has; None for one that may go.

    Admission lets nobody delete it: it was not there, or this was declared while the Tenant went.
    """
    if spec.deletion.legal_hold is not None:
        return Finding(
            "DeletionBlocked",
            f"Deletion waits: spec.deletion.legalHold is {spec.deletion.legal_hold}; remove it to "
            "let the tenant go",
        )
    if spec.deletion.protection is DeletionProtection.ENABLED:
        return Finding(
            "DeletionBlocked",
            "Deletion waits: spec.deletion.protection is Enabled; set it to Disabled to let the "
            "tenant go with its bots",
        )
    return None


@dataclass(frozen=True, kw_only=True)
class Entitlements:
    """The limits in force for one tenant."""

    plan: PlanSpec
    max_bots: int
    max_replicas: int
    image_registries: tuple[str, ...]


def entitlements(spec: TenantSpec, plan: PlanSpec) -> Entitlements:
    """Return the limits in force; overrides beyond the plan's ceilings are cut to the plan."""
    wanted = spec.configuration.image_registries
    registries = [r for r in wanted if _is_allowed(r, plan)] if wanted else plan.image_registries
    return Entitlements(
        plan=plan,
        max_bots=_overridden(
            spec.overrides.max_bots, plan.max_bots, plan.override_ceilings.max_bots
        ),
        max_replicas=_overridden(
            spec.overrides.max_replicas, plan.max_replicas, plan.override_ceilings.max_replicas
        ),
        image_registries=tuple(registries),
    )


def _overridden(wanted: int | None, planned: int, ceiling: int | None) -> int:
    return planned if wanted is None else min(wanted, max(planned, ceiling or 0))


def plan_not_found(name: str, known: Iterable[str]) -> Finding:
    """Return what to tell when a tenant names a plan that does not exist."""
    names = ", ".join(sorted(known)) or "none"
    return Finding(
        "PlanNotFound",
        f'Plan "{name}" does not exist (plans: {names}); create it or change spec.planRef.name',
    )


def spec_findings(spec: TenantSpec, plan: PlanSpec) -> list[Finding]:
    """Return what the user must change in the spec before the tenant can be set up."""
    findings = []
    if spec.billing.currency != plan.currency:
        findings.append(
            Finding(
                "CurrencyMismatch",
                f'Plan "{spec.plan_ref.name}" is in {plan.currency} and the tenant is billed in '
                f"{spec.billing.currency}; choose a plan in {spec.billing.currency}",
            )
        )
    if not _is_time_zone(spec.billing.time_zone):
        findings.append(
            Finding(
                "UnknownTimeZone",
                f'spec.billing.timeZone "{spec.billing.time_zone}" is not an IANA time zone; '
                "use a name such as Europe/Madrid",
            )
        )
    return findings


def _is_time_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def plan_findings(spec: TenantSpec, plan: PlanSpec, bots: int) -> list[Finding]:
    """Return how the tenant goes beyond its plan; what runs keeps running."""
    findings = []
    ceilings = plan.override_ceilings
    for field, wanted, planned, ceiling in (
        ("maxBots", spec.overrides.max_bots, plan.max_bots, ceilings.max_bots),
        ("maxReplicas", spec.overrides.max_replicas, plan.max_replicas, ceilings.max_replicas),
    ):
        allowed = max(planned, ceiling or 0)
        if wanted is not None and wanted > allowed:
            findings.append(
                Finding(
                    "OverrideNotAllowed",
                    f'spec.overrides.{field} is {wanted}; plan "{spec.plan_ref.name}" allows at '
                    f"most {allowed}, which is used instead",
                )
            )
    foreign = [
        registry
        for registry in spec.configuration.image_registries
        if not _is_allowed(registry, plan)
    ]
    if foreign:
        findings.append(
            Finding(
                "RegistryNotAllowed",
                f"spec.configuration.imageRegistries has {', '.join(foreign)}; plan "
                f'"{spec.plan_ref.name}" allows {", ".join(plan.image_registries) or "none"}',
            )
        )
    limit = entitlements(spec, plan).max_bots
    if bots > limit:
        findings.append(
            Finding(
                "BotLimitReached",
                f"{bots} bots are declared and {limit} are allowed; the newest do not run, or only "
                "until their condition WithinPlan says. Delete bots or change the plan",
            )
        )
    return findings


def _is_allowed(registry: str, plan: PlanSpec) -> bool:
    return any(registry == a or registry.startswith(f"{a}/") for a in plan.image_registries)


def deletion_blocked(kind: str, left: Iterable[Mapping[str, Any]], now: datetime) -> Finding | None:
    """Return what holds up a deletion for longer than deletions take; None for what still goes.

    Args:
        kind: Of the objects.
        left: Metadata of those that are still there.
        now: Time of the decision. A pod's grace period does not count.
    """
    stuck = sorted(_named(kind, meta) for meta in left if _is_overdue(meta, now))
    if not stuck:
        return None
    more = f" and {len(stuck) - NAMED} more" if len(stuck) > NAMED else ""
    return Finding("DeletionBlocked", f"Deletion waits for {', '.join(stuck[:NAMED])}{more}")


def _is_overdue(meta: Mapping[str, Any], now: datetime) -> bool:
    asked = meta.get("deletionTimestamp")
    return asked is not None and datetime.fromisoformat(asked) + DELETION_TAKES <= now


def _named(kind: str, meta: Mapping[str, Any]) -> str:
    finalizers: Sequence[str] = meta.get("finalizers", ())
    held = f" (finalizers: {', '.join(finalizers)})" if finalizers else ""
    return f"{kind} {meta['name']}{held}"
