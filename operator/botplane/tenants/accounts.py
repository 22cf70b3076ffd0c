"""The billing account of a tenant: what Postgres must know about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
