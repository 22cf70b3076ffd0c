"""The billing account of a tenant: what Postgres must know of it, and what it answers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botplane.api.conditions import ConditionStatus, Verdict, condition_in

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal
    from uuid import UUID


@dataclass(frozen=True, kw_only=True)
class TenantAccount:
    """Who is billed, by which calendar, and for which plan.

    Attributes:
        tenant_id: Uid of the Tenant object.
        currency: ISO 4217 code; that of the plan.
        time_zone: IANA name; periods start at its midnight.
        anchor_day: Day of the month that starts a period, 1 to 28.
        plan: Name of the Plan from now on.
        subscription_start: First moment that is billed; may be long past for a tenant that
            comes from another system. Only the first registration reads it.
        spend_limit: Per period, in the major unit of the currency; None is no limit.
    """

    tenant_id: UUID
    name: str
    namespace: str
    currency: str
    time_zone: str
    anchor_day: int
    organization_name: str
    admin_email: str
    plan: str
    subscription_start: datetime
    spend_limit: Decimal | None


LIMITS_UNKNOWN = Verdict.waits("WithinLimits", "NotMetered", "Nothing was metered yet")
MONEY_REASONS = {
    "SpendLimit": "the spend limit of the billing period is reached; raise spec.billing.spendLimit",
    "UsageLimit": "all that the plan includes of a meter is used; change the plan, or wait for the "
    "next billing period",
    "PaymentOverdue": "an invoice is overdue; pay it",
}


@dataclass(frozen=True, kw_only=True)
class AccountState:
    """What Postgres says of a tenant's account.

    Attributes:
        holds: Why the tenant has to be suspended: SpendLimit, UsageLimit, PaymentOverdue.
        limits: The condition WithinLimits; None before anything was metered.
        usage: The rounded usage; None while there is none.
    """

    holds: frozenset[str] = frozenset()
    limits: Verdict | None = None
    usage: dict[str, Any] | None = None


def remembered(status: Mapping[str, Any]) -> AccountState:
    """Return what a Tenant's status says of its account.

    An operator that has not heard from Postgres yet keeps to it: who is suspended stays so.
    """
    limits = condition_in(status, LIMITS_UNKNOWN.type)
    return AccountState(
        holds=frozenset(status.get("suspendedFor", ())) & MONEY_REASONS.keys(),
        limits=None
        if limits is None
        else Verdict(
            limits["type"], ConditionStatus(limits["status"]), limits["reason"], limits["message"]
        ),
        usage=status.get("usage"),
    )
