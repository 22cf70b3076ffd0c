"""The price book: what a Plan charges, checked and in the exact form that Postgres keeps."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botplane.api.plan import Netting, OnExceed, PriceModel, TierScope
from botplane.api.plan import Rounding as PlanRounding
from botplane.billing.money import Rounding, decimal, minor_units, plain, to_minor
from botplane.errors import Rejected

if TYPE_CHECKING:
    from decimal import Decimal

    from botplane.api.plan import PlanSpec, Price

METERS = (
    "bot_seconds",
    "cpu_core_seconds",
    "memory_gib_seconds",
    "rpc_calls",
    "storage_gb_hours",
    "bandwidth_gb",
    "ai_units",
    "premium_features",
)
"""What can be priced; the table `meter` holds the same."""

_SQL_MODELS = {
    PriceModel.PER_UNIT: "per_unit",
    PriceModel.FLAT: "flat",
    PriceModel.PACKAGE: "package",
    PriceModel.GRADUATED: "graduated",
    PriceModel.VOLUME: "volume",
}
_SQL_TIER_SCOPES = {TierScope.PERIOD: "period", TierScope.PHASE: "phase"}
_ROUNDINGS = {
    PlanRounding.HALF_EVEN: Rounding.HALF_EVEN,
    PlanRounding.HALF_UP: Rounding.HALF_UP,
}
_SQL_NETTINGS = {
    Netting.NONE: "none",
    Netting.PERIOD: "period",
    Netting.HIGH_WATER_MARK: "hwm",
}
_SQL_ON_EXCEED = {OnExceed.BILL: "bill", OnExceed.BLOCK: "block"}
_TIERED = (PriceModel.GRADUATED, PriceModel.VOLUME)


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One step of a price, for billable quantities in `(lo, hi]` of the meter's unit."""

    lo: Decimal
    hi: Decimal | None
    unit_price: Decimal
    flat_fee_minor: int


@dataclass(frozen=True, kw_only=True)
class MeterPrice:
    """The price of one meter; `included` and tiers are in the meter's own unit.

    Attributes:
        on_exceed: `bill` charges what is used beyond `included`, `block` stops the tenant there.
    """

    meter: str
    model: str
    included: Decimal
    on_exceed: str
    unit_size: Decimal
    tiers: tuple[Tier, ...]


@dataclass(frozen=True, kw_only=True)
class CommissionTerms:
    """Commission on winning trades; volume discounts are (from volume, discount).

    Attributes:
        netting: `none`, `period` or `hwm`: what losses do.
    """

    rate: Decimal
    netting: str
    cap_per_trade_minor: int | None
    cap_per_period_minor: int | None
    volume_discounts: tuple[tuple[int, Decimal], ...]


@dataclass(frozen=True, kw_only=True)
class PriceBook:
    """All that a plan charges.

    Attributes:
        tier_scope: `period` counts included quantities and tiers on over revisions of the plan,
            `phase` begins anew with this one.
        rounding: Of each line to the minor unit.
    """

    plan: str
    currency: str
    fee_minor: int
    minimum_commitment_minor: int
    tier_scope: str
    rounding: Rounding
    commission: CommissionTerms
    prices: tuple[MeterPrice, ...]

    @property
    def content_hash(self) -> bytes:
        """SHA-256 of the content: `0.10` and `0.1` are one price, order does not matter."""
        canonical = json.dumps(_canonical(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).digest()


def price_book(plan: str, spec: PlanSpec) -> PriceBook:
    """Return the price book of a Plan.

    Raises:
        Rejected: A price cannot be billed: unknown currency or meter, an amount finer than the
            minor unit, tiers that do not follow each other.
    """
    minor_units(spec.currency)
    if len({price.meter for price in spec.prices}) != len(spec.prices):
        raise Rejected("PriceInvalid", f"Plan {plan} prices a meter twice.")
    return PriceBook(
        plan=plan,
        currency=spec.currency,
        fee_minor=to_minor(spec.fee, spec.currency),
        minimum_commitment_minor=to_minor(spec.minimum_commitment, spec.currency),
        tier_scope=_SQL_TIER_SCOPES[spec.tier_scope],
        rounding=_ROUNDINGS[spec.rounding],
        commission=_commission(spec),
        prices=tuple(
            _meter_price(price, spec.currency)
            for price in sorted(spec.prices, key=lambda price: price.meter)
        ),
    )


def _commission(spec: PlanSpec) -> CommissionTerms:
    terms = spec.commission
    discounts = [
        (to_minor(step.from_volume, spec.currency), decimal(step.discount))
        for step in terms.volume_discounts
    ]
    if len({volume for volume, _ in discounts}) != len(discounts):
        raise Rejected("PriceInvalid", "Two volume discounts start at the same volume.")
    if terms.netting is not Netting.NONE and terms.cap_per_trade is not None:
        raise Rejected(
            "PriceInvalid",
            f"commission.capPerTrade {terms.cap_per_trade} needs netting None: with netting "
            f"{terms.netting} no single trade pays. Remove it, or give capPerPeriod.",
        )
    return CommissionTerms(
        rate=decimal(terms.rate),
        netting=_SQL_NETTINGS[terms.netting],
        cap_per_trade_minor=_optional_minor(terms.cap_per_trade, spec.currency),
        cap_per_period_minor=_optional_minor(terms.cap_per_period, spec.currency),
        volume_discounts=tuple(sorted(discounts)),
    )


def _optional_minor(amount: str | None, currency: str) -> int | None:
    return None if amount is None else to_minor(amount, currency)


def _meter_price(price: Price, currency: str) -> MeterPrice:
    if price.meter not in METERS:
        known = ", ".join(METERS)
        raise Rejected("MeterUnknown", f"Meter {price.meter} is not one of {known}.")
    if decimal(price.unit_size) == 0:
        raise Rejected("PriceInvalid", f"unitSize of {price.meter} must be more than 0.")
    if price.on_exceed is OnExceed.BLOCK and decimal(price.included) == 0:
        raise Rejected(
            "PriceInvalid", f"onExceed Block of {price.meter} needs an included quantity."
        )
    if price.model is PriceModel.FLAT and any(decimal(t.unit_price) for t in price.tiers):
        raise Rejected("PriceInvalid", f"The Flat price of {price.meter} takes only a flatFee.")
    return MeterPrice(
        meter=price.meter,
        model=_SQL_MODELS[price.model],
        included=decimal(price.included),
        on_exceed=_SQL_ON_EXCEED[price.on_exceed],
        unit_size=decimal(price.unit_size),
        tiers=_tiers(price, currency),
    )


def _tiers(price: Price, currency: str) -> tuple[Tier, ...]:
    if price.model not in _TIERED and len(price.tiers) != 1:
        raise Rejected("PriceInvalid", f"{price.model} of {price.meter} takes exactly one tier.")
    if price.tiers[-1].up_to is not None:
        raise Rejected("PriceInvalid", f"The last tier of {price.meter} must have no upTo.")
    lo, tiers = decimal("0"), []
    for step in price.tiers:
        hi = None if step.up_to is None else decimal(step.up_to)
        if (hi is None and step is not price.tiers[-1]) or (hi is not None and hi <= lo):
            raise Rejected("PriceInvalid", f"upTo of the tiers of {price.meter} must go up.")
        tiers.append(
            Tier(
                lo=lo,
                hi=hi,
                unit_price=decimal(step.unit_price),
                flat_fee_minor=to_minor(step.flat_fee, currency),
            )
        )
        lo = lo if hi is None else hi
    return tuple(tiers)


def _canonical(book: PriceBook) -> dict[str, Any]:
    terms = book.commission
    # Books without it are older than it, and stay the ones that they are.
    scope = {} if book.tier_scope == "period" else {"tierScope": book.tier_scope}
    rounding = {} if book.rounding is Rounding.HALF_EVEN else {"rounding": book.rounding.value}
    return {
        **scope,
        **rounding,
        "currency": book.currency,
        "feeMinor": book.fee_minor,
        "minimumCommitmentMinor": book.minimum_commitment_minor,
        "commission": [
            plain(terms.rate),
            terms.cap_per_trade_minor,
            terms.cap_per_period_minor,
            [[volume, plain(discount)] for volume, discount in terms.volume_discounts],
            *([] if terms.netting == "none" else [terms.netting]),
        ],
        "prices": [
            [
                price.meter,
                price.model,
                plain(price.included),
                plain(price.unit_size),
                [
                    [
                        plain(tier.lo),
                        None if tier.hi is None else plain(tier.hi),
                        plain(tier.unit_price),
                        tier.flat_fee_minor,
                    ]
                    for tier in price.tiers
                ],
                # As above.
                *(["block"] if price.on_exceed == "block" else []),
            ]
            for price in book.prices
        ],
    }
