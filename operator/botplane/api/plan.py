"""Plan: what a tenant may use, and what it pays for it. Price data: a change makes a revision."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from botplane.api.conditions import Condition
from botplane.api.types import (
    ATOMIC,
    SET,
    Amount,
    APIModel,
    Currency,
    DNSLabel,
    DNSName,
    Fraction,
    ImageRegistry,
    Money,
    Quantity,
    UnitPrice,
    cel,
    list_map,
    validations,
)


class PriceModel(StrEnum):
    """How a quantity becomes an amount."""

    PER_UNIT = "PerUnit"
    FLAT = "Flat"
    PACKAGE = "Package"
    GRADUATED = "Graduated"
    VOLUME = "Volume"


class TierScope(StrEnum):
    """Over which time included quantities and tiers count."""

    PERIOD = "Period"
    PHASE = "Phase"


class Rounding(StrEnum):
    """Where the half of a minor unit goes."""

    HALF_EVEN = "HalfEven"
    HALF_UP = "HalfUp"


class OnExceed(StrEnum):
    """What happens when all that is included of a meter is used."""

    BILL = "Bill"
    BLOCK = "Block"


class Netting(StrEnum):
    """Whether losses lower the commission on wins."""

    NONE = "None"
    PERIOD = "Period"
    HIGH_WATER_MARK = "HighWaterMark"


class RPCTier(StrEnum):
    """Service level of RPC calls."""

    ECONOMY = "Economy"
    STANDARD = "Standard"
    PREMIUM = "Premium"


class OnPaymentOverdue(StrEnum):
    """What happens to a tenant's bots when an invoice stays unpaid."""

    SUSPEND = "Suspend"
    NONE = "None"


class ImageDigests(StrEnum):
    """Whether bots may run images by tag, which somebody can move to another image."""

    OPTIONAL = "Optional"
    REQUIRED = "Required"


class PlanQuota(APIModel):
    """What all bots of a tenant may request together."""

    cpu: Quantity
    """CPU that all bots may request together, in cores, such as `20` or `500m`."""
    memory: Quantity
    """Memory that all bots may request together, in bytes, such as `64Gi`."""
    storage: Quantity = Quantity("0")
    """Persistent storage of all bots together, in bytes. Default `0`: none."""


class BotLimits(APIModel):
    """What one bot (each of its replicas) may use, and what it gets when it asks for nothing."""

    max_cpu: Annotated[Quantity, Field(alias="maxCPU")]
    """Highest CPU limit of one replica, in cores."""
    max_memory: Quantity
    """Highest memory limit of one replica, in bytes."""
    max_storage: Quantity = Quantity("0")
    """Largest volume of one bot, in bytes. Default `0`: none."""
    default_cpu: Annotated[Quantity, Field(alias="defaultCPU")] = Quantity("250m")
    """CPU request of a replica that names none, in cores. Default `250m`."""
    default_memory: Quantity = Quantity("256Mi")
    """Memory request of a replica that names none, in bytes. Default `256Mi`."""

    @property
    def usual_cpu(self) -> Quantity:
        """CPU request of a replica that names none: never more than it may have."""
        return self.default_cpu.at_most(self.max_cpu)

    @property
    def usual_memory(self) -> Quantity:
        """Memory request of a replica that names none: never more than it may have."""
        return self.default_memory.at_most(self.max_memory)


class PriceTier(APIModel):
    """One step of a price. A quantity belongs to the first tier whose `upTo` it does not exceed."""

    up_to: Amount | None = None
    """Upper end of this tier, inclusive, in units. Absent: no upper end; only in the last tier."""
    unit_price: UnitPrice = "0"
    """Price of one unit (of `unitSize`), in the plan's currency. Default `0`."""
    flat_fee: Money = "0"
    """Fee added once when this tier is entered, in the plan's currency. Default `0`."""


class Price(APIModel):
    """The price of one meter."""

    meter: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$", max_length=31)]
    """What is priced: `bot_seconds`, `cpu_core_seconds`, `memory_gib_seconds`, `rpc_calls` ..."""
    model: PriceModel
    """How the quantity becomes an amount: PerUnit, Flat, Package, Graduated or Volume."""
    included: Amount = "0"
    """Quantity that the plan's fee covers, per billing period. Default `0`."""
    on_exceed: OnExceed = OnExceed.BILL
    """What happens when all of `included` is used. Bill charges what is used beyond; Block refuses
    RPC at once and stops the bots 15 minutes later, until the next billing period or a plan with
    more. Default Bill."""
    unit_size: Amount = "1"
    """How much of the meter is one unit: `3600` prices `bot_seconds` by the hour. Default `1`."""
    tiers: Annotated[
        list[PriceTier],
        Field(
            min_length=1,
            max_length=20,
            json_schema_extra=ATOMIC
            | validations(
                cel(
                    "self.all(t, has(t.upTo) || t == self[size(self) - 1])",
                    "must give `upTo` in every tier but the last",
                )
            ),
        ),
    ]
    """The steps of the price, lowest first; one for PerUnit, Flat and Package."""


class VolumeDiscount(APIModel):
    """A discount on commission from a traded volume on."""

    from_volume: Money
    """Traded volume of the billing period from which the discount applies, inclusive."""
    discount: Fraction
    """Share of the commission that is waived, such as `0.05`."""


class Commission(APIModel):
    """Commission on winning trades."""

    rate: Fraction = "0"
    """Share of the profit of each winning trade, such as `0.10`. Default `0`."""
    netting: Netting = Netting.NONE
    """What losses do. None: nothing, each winning trade pays. Period: they offset wins of the same
    time on the plan in the billing period. HighWaterMark: only what all trades of the tenant
    reach beyond the highest end of such a time before pays. Default None."""
    cap_per_trade: Money | None = None
    """Highest commission on one trade. Absent: no cap. Only without netting."""
    cap_per_period: Money | None = None
    """Highest commission in one billing period. Absent: no cap."""
    volume_discounts: Annotated[
        list[VolumeDiscount], Field(max_length=20, json_schema_extra=list_map("fromVolume"))
    ] = []
    """Discounts by traded volume of the period. Default none."""


class PlanRateLimits(APIModel):
    """Limits of RPC traffic of one tenant."""

    requests_per_second: Annotated[int, Field(ge=1, le=100000)] = 50
    """Sustained calls a second. Default 50."""
    burst: Annotated[int, Field(ge=1, le=200000)] = 100
    """Calls that may come at once. Default 100."""
    concurrent: Annotated[int, Field(ge=1, le=10000)] = 32
    """Calls in flight. Default 32."""


class PlanRPC(APIModel):
    """RPC service that the plan includes."""

    tier: RPCTier | None = None
    """Service level. Absent: chosen from the tenant's `sla` (plan custom)."""
    monthly_calls: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """Calls per billing period that are planned for. Default 0."""
    rate_limits: PlanRateLimits = PlanRateLimits()
    """Limits of traffic. Default 50 calls a second, burst 100, 32 in flight."""
    price_multiplier: UnitPrice = "1"
    """Provider cost times this is the price of a call. Default `1`."""


class OverrideCeilings(APIModel):
    """How far a Tenant may raise limits of its plan. Absent: it may only lower them."""

    max_bots: Annotated[int, Field(ge=0, le=2000)] | None = None
    """Highest `overrides.maxBots`."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Highest `overrides.maxReplicas`."""


class PlanSpec(APIModel):
    """What the plan allows and costs."""

    display_name: Annotated[str, Field(max_length=100)] = ""
    """Name shown to people. Default: the object's name."""
    currency: Annotated[
        Currency,
        Field(
            json_schema_extra=validations(
                cel("self == oldSelf", "must not change: create another plan for another currency")
            )
        ),
    ]
    """Currency of every amount in this plan, ISO 4217. It cannot change."""
    fee: Money
    """Fee per billing period, charged in arrears and by the second."""
    quota: PlanQuota
    """What all bots of a tenant may request together."""
    max_bots: Annotated[int, Field(ge=0, le=2000)]
    """How many BotDeployments a tenant may have."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Highest number of replicas of one bot, by spec, scale or autoscaling. Default 1."""
    bot: BotLimits
    """Limits and defaults of one replica."""
    storage_classes: Annotated[list[DNSName], Field(max_length=20, json_schema_extra=SET)] = []
    """StorageClasses that bots may use. Default none."""
    image_registries: Annotated[
        list[ImageRegistry], Field(max_length=20, json_schema_extra=SET)
    ] = []
    """Registries that bots may run images from. Default: only the operator's own repository."""
    image_digests: ImageDigests = ImageDigests.OPTIONAL
    """Whether every bot must name its `image` with a sha256 digest. Default Optional."""
    prices: Annotated[list[Price], Field(max_length=50, json_schema_extra=list_map("meter"))] = []
    """Prices of meters. A meter without a price costs nothing."""
    tier_scope: TierScope = TierScope.PERIOD
    """Over which time `included` and tiers count. Period goes on through a change of these prices;
    a change to another plan divides it by seconds. Phase divides it, and begins anew, at each
    change of these prices too. Default Period."""
    rounding: Rounding = Rounding.HALF_EVEN
    """How each line of an invoice is rounded to the minor unit, and the coupons and taxes of the
    invoice at whose end these prices are in force: HalfEven takes a half to the even neighbour,
    HalfUp away from zero, as some laws want it. Default HalfEven."""
    minimum_commitment: Money = "0"
    """Least amount of usage charges per billing period. Default `0`."""
    commission: Annotated[
        Commission,
        Field(
            json_schema_extra=validations(
                cel(
                    "!has(self.capPerTrade) || self.netting == 'None'",
                    "must not be given with `netting`, where no single trade pays",
                    ".capPerTrade",
                )
            )
        ),
    ] = Commission()
    """Commission on winning trades. Default none."""
    rpc: PlanRPC = PlanRPC()
    """RPC service that the plan includes."""
    on_payment_overdue: OnPaymentOverdue = OnPaymentOverdue.SUSPEND
    """What happens to bots when an invoice stays unpaid. Default Suspend."""
    downgrade_grace_days: Annotated[int, Field(ge=0, le=365)] = 7
    """Days for which bots beyond this plan go on running after a downgrade; then the newest stop.
    Default 7."""
    override_ceilings: OverrideCeilings = OverrideCeilings()
    """How far a Tenant may raise limits. Default: not at all."""
    priority_class_name: DNSLabel | None = None
    """PriorityClass of the bots' pods. Absent: the cluster's default."""


class PlanStatus(APIModel):
    """What botplane observed and did."""

    conditions: Annotated[
        list[Condition], Field(max_length=24, json_schema_extra=list_map("type"))
    ] = []
    """State by aspect; Ready sums up."""
    observed_generation: int = -1
    """Generation of the spec that this status speaks of; -1 before the first visit."""
    revision: Annotated[int, Field(ge=0)] | None = None
    """Revision of the prices in force. Absent until the price book is published."""
