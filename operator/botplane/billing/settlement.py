"""From charges to what is due: coupons, taxes, credits and carried balances, in this order. Pure.

The order is fixed: minimum commitments are lines already; coupons on lines (percent before fixed),
coupons on the invoice (oldest first, a percentage of what remains), tax on what is left of each
line, once per rate, then credits, which do not lower the tax base, then balances of other periods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING

from botplane.billing.invoices import CreditUse, Discount, Settled, Tax
from botplane.billing.money import EXACT, Rounding, to_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from decimal import Decimal

    from botplane.billing.invoices import BilledPeriod, Line

WHOLE_INVOICE = "invoice"
CREDIT_KINDS = ("promotional", "purchased", "credit_note")
"""In the order in which they are used."""

_END_OF_TIME = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Coupon:
    """A discount that a tenant was granted: `percent`, or `amount_minor` of its currency.

    Attributes:
        target: `invoice`, a kind of line, or one meter such as `usage/rpc_calls`.
        starts_at: It counts for the periods that [starts_at, ends_at) touches.
        uses_left: Invoices that it may still lower; None is no limit.
    """

    code: str
    percent: Decimal | None
    amount_minor: int | None
    target: str
    starts_at: datetime
    ends_at: datetime | None
    granted_at: datetime
    uses_left: int | None


@dataclass(frozen=True, kw_only=True)
class TaxRule:
    """A rate of one tax on all lines or on one kind of them; the narrower rule counts.

    Attributes:
        target: `all` or a kind of line.
        rate: Share of the net amount, 0 to 1.
        reason: Why the rate is 0, such as reverse charge.
        starts_at: It counts for the periods whose last moment is in [starts_at, ends_at).
    """

    name: str
    target: str
    rate: Decimal
    reason: str | None
    starts_at: datetime
    ends_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Credit:
    """Money that a tenant has in advance; it counts for periods that end before it expires."""

    credit_id: str
    kind: str
    left_minor: int
    granted_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class ChargeLimits:
    """What a processor can collect in a currency: at least `minimum`, in whole `step`s (minor)."""

    minimum_minor: int = 0
    step_minor: int = 1


NO_LIMITS = ChargeLimits()


@dataclass(frozen=True, kw_only=True)
class Account:
    """What, besides its charges, decides what a tenant has to pay.

    Attributes:
        carried_minor: Owed from earlier periods, because it was too little to collect.
        limits: What the payment processor can collect; what it cannot is carried over.
        rounding: Of coupons and taxes to the minor unit.
    """

    coupons: tuple[Coupon, ...] = ()
    taxes: tuple[TaxRule, ...] = ()
    credits: tuple[Credit, ...] = ()
    carried_minor: int = 0
    limits: ChargeLimits = NO_LIMITS
    rounding: Rounding = Rounding.HALF_EVEN


def settle(billed: BilledPeriod, lines: Iterable[Line], account: Account) -> Settled:
    """Return the lines with their discounts, and all that follows them on the invoice."""
    net, discounts = _discounted(billed, tuple(lines), account)
    taxes = _taxes(billed, net, account)
    total = sum(line.net_minor for line in net) + sum(tax.amount_minor for tax in taxes)
    uses = _credits(billed, total, account.credits)
    owed = total - sum(use.amount_minor for use in uses) + account.carried_minor
    too_little = 0
    if owed > 0:
        small = owed < account.limits.minimum_minor
        too_little = owed if small else owed % account.limits.step_minor
    return Settled(
        lines=net,
        discounts=discounts,
        taxes=taxes,
        credits=uses,
        carried_in_minor=account.carried_minor,
        carried_out_minor=too_little,
        refunded_minor=max(-owed, 0),
    )


def after(account: Account, settled: Settled, new_credit: Credit | None) -> Account:
    """Return the account as the tenant's next invoice finds it."""
    used = {use.credit_id: use.amount_minor for use in settled.credits}
    redeemed = {discount.code for discount in settled.discounts}
    left = [
        replace(credit, left_minor=credit.left_minor - used.get(credit.credit_id, 0))
        for credit in account.credits
    ]
    return replace(
        account,
        coupons=tuple(
            replace(coupon, uses_left=coupon.uses_left - 1)
            if coupon.code in redeemed and coupon.uses_left is not None
            else coupon
            for coupon in account.coupons
        ),
        credits=tuple(left if new_credit is None else [*left, new_credit]),
        carried_minor=settled.carried_out_minor,
    )


def spread(amount: int, weights: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Split an amount over keys by weight to the last minor unit: largest remainder, tie by key."""
    whole = sum(weight for _, weight in weights)
    exact = {key: Fraction(amount * weight, whole) for key, weight in weights}
    shares = {key: int(share) for key, share in exact.items()}
    left = amount - sum(shares.values())
    by_remainder = sorted(exact, key=lambda key: (shares[key] - exact[key], key))
    for key in by_remainder[:left]:
        shares[key] += 1
    return shares


def _discounted(
    billed: BilledPeriod, lines: tuple[Line, ...], account: Account
) -> tuple[tuple[Line, ...], tuple[Discount, ...]]:
    discounts = []
    for coupon in sorted(account.coupons, key=_coupon_order):
        if not _counts(coupon, billed):
            continue
        targets = [line for line in lines if _is_target(line, coupon.target)]
        base = max(sum(line.net_minor for line in targets), 0)
        amount = _discount(coupon, base, account.rounding)
        if amount:
            weights = [(line.key, line.net_minor) for line in targets if line.net_minor > 0]
            shares = spread(amount, weights)
            lines = tuple(
                replace(line, discount_minor=line.discount_minor + shares.get(line.key, 0))
                for line in lines
            )
            discounts.append(
                Discount(
                    code=coupon.code,
                    target=coupon.target,
                    percent=coupon.percent,
                    amount_minor=amount,
                )
            )
    return lines, tuple(discounts)


def _coupon_order(coupon: Coupon) -> tuple[bool, bool, datetime, str]:
    on_invoice = coupon.target == WHOLE_INVOICE
    fixed_after_percent = not on_invoice and coupon.percent is None
    return on_invoice, fixed_after_percent, coupon.granted_at, coupon.code


def _counts(coupon: Coupon, billed: BilledPeriod) -> bool:
    began = coupon.starts_at < billed.ends_at
    ended = coupon.ends_at is not None and coupon.ends_at <= billed.starts_at
    return began and not ended and coupon.uses_left != 0


def _is_target(line: Line, target: str) -> bool:
    if target in {WHOLE_INVOICE, line.charge_kind}:
        return True
    return target == f"{line.charge_kind}/{line.meter}"


def _discount(coupon: Coupon, base_minor: int, rounding: Rounding) -> int:
    if coupon.percent is None:
        return min(coupon.amount_minor or 0, base_minor)
    return to_whole(EXACT.multiply(coupon.percent, base_minor).scaleb(-2, EXACT), rounding)


def _taxes(billed: BilledPeriod, lines: Iterable[Line], account: Account) -> tuple[Tax, ...]:
    in_force: dict[str, dict[str, TaxRule]] = {}
    for rule in account.taxes:
        is_over = rule.ends_at is not None and rule.ends_at < billed.ends_at
        if rule.starts_at < billed.ends_at and not is_over:
            in_force.setdefault(rule.name, {})[rule.target] = rule
    bases: dict[tuple[str, Decimal, str | None], int] = {}
    for line in lines:
        for name, by_target in in_force.items():
            taxed = by_target.get(line.charge_kind) or by_target.get("all")
            if taxed is not None:
                group = (name, taxed.rate.normalize(EXACT), taxed.reason)
                bases[group] = bases.get(group, 0) + line.net_minor
    return tuple(
        Tax(
            name=name,
            rate=rate,
            reason=reason,
            base_minor=base,
            amount_minor=to_whole(EXACT.multiply(rate, base), account.rounding),
        )
        for (name, rate, reason), base in sorted(
            bases.items(), key=lambda group: (group[0][0], group[0][1], group[0][2] or "")
        )
    )


def _credits(
    billed: BilledPeriod, total_minor: int, held: Iterable[Credit]
) -> tuple[CreditUse, ...]:
    left, uses = max(total_minor, 0), []
    for credit in sorted(held, key=_credit_order):
        expired = credit.expires_at is not None and credit.expires_at < billed.ends_at
        amount = 0 if expired else min(left, credit.left_minor)
        if amount:
            uses.append(
                CreditUse(credit_id=credit.credit_id, kind=credit.kind, amount_minor=amount)
            )
            left -= amount
    return tuple(uses)


def _credit_order(credit: Credit) -> tuple[int, datetime, datetime, str]:
    expiry = credit.expires_at or _END_OF_TIME
    return CREDIT_KINDS.index(credit.kind), expiry, credit.granted_at, credit.credit_id
