"""Tenant: one customer, one namespace."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from botplane.api.conditions import Condition
from botplane.api.types import (
    SET,
    APIModel,
    Currency,
    ImageRegistry,
    LocalReference,
    Money,
    Timestamp,
    cel,
    list_map,
    validations,
)


class MemberKind(StrEnum):
    """What a member is for Kubernetes."""

    USER = "User"
    GROUP = "Group"
    SERVICE_ACCOUNT = "ServiceAccount"


class MemberRole(StrEnum):
    """What a member may do in the tenant's namespace."""

    VIEWER = "Viewer"
    OPERATOR = "Operator"


class DeletionProtection(StrEnum):
    """Whether the Tenant may be deleted, and its bots with it."""

    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Billing(APIModel):
    """How the tenant is billed."""

    currency: Annotated[
        Currency,
        Field(
            json_schema_extra=validations(
                cel("self == oldSelf", "must not change: the ledger of a tenant has one currency")
            )
        ),
    ] = "USD"
    """Currency of invoices, ISO 4217; the plan must have the same. Default `USD`; immutable."""
    time_zone: Annotated[
        str, Field(pattern=r"^[A-Za-z][A-Za-z0-9+_-]*(/[A-Za-z0-9+_-]+){0,2}$", max_length=64)
    ] = "UTC"
    """Time zone whose midnight starts a billing period, such as `Europe/Madrid`. Default `UTC`."""
    anchor_day: Annotated[int, Field(ge=1, le=28)] = 1
    """Day of the month on which a billing period starts, 1 to 28. Default 1."""
    subscription_start_time: Timestamp | None = None
    """When the subscription starts, RFC 3339. Earlier than the Tenant itself: the past is billed
    too, for a customer who moves in. Default: creation of the Tenant."""
    spend_limit: Money | None = None
    """Spend per billing period at which bots are suspended. Absent: no limit."""
    payment_secret_ref: LocalReference | None = None
    """Secret with the payment method, in the operator's namespace. Absent: paid by transfer."""


class SLA(APIModel):
    """Service level that plan `custom` derives the RPC tier from."""

    latency_ms: Annotated[int, Field(ge=1, le=10000)]
    """Highest latency of an RPC call, in milliseconds."""


class Overrides(APIModel):
    """Deviations from the plan: lower at will, higher only up to the plan's ceilings."""

    max_bots: Annotated[int, Field(ge=0, le=2000)] | None = None
    """How many BotDeployments the tenant may have. Absent: the plan's figure."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Highest number of replicas of one bot. Absent: the plan's figure."""


class Member(APIModel):
    """Somebody who may see or operate the tenant's bots."""

    kind: MemberKind
    """User, Group or ServiceAccount (of the tenant's own namespace)."""
    name: Annotated[str, Field(pattern=r"^[^\x00-\x20]+$", min_length=1, max_length=253)]
    """Name as the API server's authentication gives it."""
    role: MemberRole
    """Viewer reads; Operator also changes bots, ConfigMaps and Secrets."""


class Configuration(APIModel):
    """Settings for all of the tenant's bots."""

    image_registries: Annotated[
        list[ImageRegistry], Field(max_length=20, json_schema_extra=SET)
    ] = []
    """Registries that bots may run images from; within the plan's. Default: the plan's."""
    propagate_labels: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]],
        Field(
            max_length=10,
            json_schema_extra=validations(
                cel(
                    "self.all(k, k.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && size(k) <= 63)",
                    "must have keys of lower-case letters, digits and `-`, such as `cost-center`",
                ),
                cel(
                    "self.all(k, self[k].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))",
                    "must have values that are Kubernetes label values",
                ),
            ),
        ),
    ] = {}
    """Labels `user.botplane.io/<key>` for everything made for this tenant, pods too: a change
    restarts its bots. Default none."""


class Deletion(APIModel):
    """What happens when the Tenant is deleted."""

    protection: DeletionProtection = DeletionProtection.ENABLED
    """Enabled: the Tenant cannot be deleted; one that is being deleted stays, with its namespace
    and bots, until this is Disabled. Default Enabled."""
    retention_days: Annotated[int, Field(ge=0, le=3650)] = 30
    """Days for which the stopped tenant's namespace and data are kept. Default 30."""
    legal_hold: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Why the tenant must be kept as it is, such as the number of a court case: meanwhile it is not
    deleted, and nothing of it is purged. Absent: no hold."""


class TenantSpec(APIModel):
    """What the platform team declares about a customer."""

    organization_name: Annotated[str, Field(min_length=1, max_length=200)]
    """Legal name, for invoices."""
    admin_email: Annotated[
        str,
        Field(
            pattern=r"^[^@\t\n\f\r ]+@[^@\t\n\f\r ]+\.[^@\t\n\f\r ]+$", min_length=6, max_length=254
        ),
    ]
    """Address for invoices and notices."""
    plan_ref: LocalReference
    """The Plan that this tenant has subscribed to."""
    billing: Billing = Billing()
    """How the tenant is billed. Default: USD, UTC, first of the month, no spend limit."""
    sla: SLA | None = None
    """Service level, read only by plan `custom`."""
    overrides: Overrides = Overrides()
    """Deviations from the plan. Default none."""
    members: Annotated[
        list[Member], Field(max_length=100, json_schema_extra=list_map("kind", "name"))
    ] = []
    """Who may see or operate the tenant's bots. Default nobody."""
    configuration: Configuration = Configuration()
    """Settings for all of the tenant's bots."""
    suspend: bool = False
    """True stops all bots and keeps their data. Default false."""
    deletion: Deletion = Deletion()
    """What happens when the Tenant is deleted. Default: protected, kept for 30 days."""


class TenantPlanStatus(APIModel):
    """The plan in force."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the Plan."""
    revision: Annotated[int, Field(ge=0)] | None = None
    """Revision of its prices. Absent until the price book is published."""


class TenantBotsStatus(APIModel):
    """Figures of the tenant's bots."""

    running: Annotated[int, Field(ge=0)]
    """BotDeployments with at least one ready replica."""
    desired: Annotated[int, Field(ge=0)]
    """BotDeployments in the namespace."""
    limit: Annotated[int, Field(ge=0)]
    """BotDeployments allowed by plan and overrides."""


class TenantUsageStatus(APIModel):
    """Rounded usage of the running billing period, at most once a minute."""

    period_start: Timestamp
    """Start of the billing period."""
    bot_hours: Annotated[str, Field(max_length=24)]
    """Running time of all bots, in hours."""
    rpc_calls: Annotated[int, Field(ge=0)] = 0
    """RPC calls."""
    cost: Annotated[str, Field(max_length=24)]
    """Cost to date, in the tenant's currency."""
    forecast: Annotated[str, Field(max_length=24)] | None = None
    """Estimated cost of the whole period. Absent until enough of the period is over."""
    limit_percent: Annotated[int, Field(ge=0)] | None = None
    """Share of the spend limit that is used, in percent. Absent without a limit."""
    metered_time: Timestamp
    """Until when usage is complete."""


class TenantStatus(APIModel):
    """What botplane observed and did."""

    conditions: Annotated[
        list[Condition], Field(max_length=24, json_schema_extra=list_map("type"))
    ] = []
    """State by aspect; Ready sums up."""
    observed_generation: int = -1
    """Generation of the spec that this status speaks of; -1 before the first visit."""
    namespace: Annotated[str, Field(max_length=63)] | None = None
    """The tenant's namespace."""
    plan: TenantPlanStatus | None = None
    """The plan in force."""
    bots: TenantBotsStatus | None = None
    """Figures of the tenant's bots."""
    suspended_for: Annotated[
        list[Annotated[str, Field(max_length=63)]],
        Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = []
    """Every reason for which bots are stopped; they resume when none is left."""
    usage: TenantUsageStatus | None = None
    """Usage of the running billing period."""


RESERVED_NAMES = ("default", "system", "kube", "botplane", "openshift", "istio")

TENANT_NAME_RULES = (
    cel(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')",
        "`metadata.name` must be 1 to 40 lower-case letters, digits or `-`, starting with a letter",
    ),
    cel(
        f"!(self.metadata.name in {list(RESERVED_NAMES)}) && "
        "!self.metadata.name.startsWith('kube-') && !self.metadata.name.startsWith('openshift-') "
        "&& !self.metadata.name.contains('--')",
        "`metadata.name` must not be a reserved name (default, kube-*, ...) or contain `--`",
    ),
)
