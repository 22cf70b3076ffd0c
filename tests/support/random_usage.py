"""Random price books, tenants and usage, crowded around the moments where rating can go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from random import Random
from typing import Any

from tests.support.ledger_oracle import Customer, Price, Revision, period_bounds

START = datetime(2026, 8, 20, 3, 7, 11, tzinfo=UTC)
END = datetime(2026, 12, 3, tzinfo=UTC)
ZONES = (
    *("UTC", "Europe/Madrid", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu"),
    "America/Havana",  # where 1 November 2026 has two midnights
)
INTERVAL_METERS = ("bot_seconds", "cpu_core_seconds", "memory_gib_seconds")
EVENT_METERS = ("rpc_calls", "bandwidth_gb", "ai_units", "premium_features", "storage_gb_hours")
MODELS = ("PerUnit", "Flat", "Package", "Graduated", "Volume")


@dataclass
class World:
    """Everything that the SQL and the oracle must agree on."""

    plans: dict[str, list[Revision]] = field(default_factory=dict)
    specs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    customers: list[Customer] = field(default_factory=list)


def a_world(random: Random, customers: int) -> World:
    """Return plans in three currencies, and tenants that subscribe to and change between them."""
    world = World()
    for currency in ("USD", "JPY", "KWD"):
        for number in range(2):
            name = f"{currency.lower()}-{number}"
            moments = sorted(_moment(random, START, END) for _ in range(random.randrange(5)))
            meters = random.sample(INTERVAL_METERS + EVENT_METERS, random.randrange(3, 9))
            world.specs[name], world.plans[name] = [], []
            for since in [None, *dict.fromkeys(moments)]:
                spec = _spec(random, currency, meters)
                world.specs[name].append(spec)
                world.plans[name].append(_revision(spec, since))
    for _ in range(customers):
        world.customers.append(_customer(random, world))
    return world


def _moment(random: Random, start: datetime, end: datetime) -> datetime:
    return start + timedelta(seconds=random.randrange(int((end - start).total_seconds())))


def _decimal(random: Random, whole: int, decimals: int) -> str:
    text = str(random.randrange(whole + 1))
    return f"{text}.{random.randrange(10**decimals):0{decimals}}" if decimals else text


def _spec(random: Random, currency: str, meters: list[str]) -> dict[str, Any]:
    digits = {"USD": 2, "JPY": 0, "KWD": 3}[currency]
    meters = random.sample(meters, random.randrange(len(meters) - 2, len(meters) + 1))
    return {
        "currency": currency,
        "fee": _decimal(random, 300, digits),
        "minimumCommitment": random.choice(["0", _decimal(random, 40, digits)]),
        "prices": [_price(random, meter, digits) for meter in meters],
        "rounding": random.choice(["HalfEven", "HalfUp"]),
        "tierScope": random.choice(["Period", "Period", "Phase"]),
        "commission": _commission(random, digits),
    }


def _commission(random: Random, digits: int) -> dict[str, Any]:
    starts = random.sample(range(1, 9000), random.randrange(4))
    terms: dict[str, Any] = {
        "rate": random.choice(["0", "0.10", "0.123456"]),
        "volumeDiscounts": [
            {"fromVolume": str(start), "discount": f"0.{random.randrange(10**6):06}"}
            for start in starts
        ],
    }
    terms["netting"] = random.choice(["None", "Period", "HighWaterMark", "HighWaterMark"])
    if terms["netting"] == "None" and random.random() < 0.5:
        terms["capPerTrade"] = _decimal(random, 200, digits)
    if random.random() < 0.5:
        terms["capPerPeriod"] = _decimal(random, 500, digits)
    return terms


def _price(random: Random, meter: str, digits: int) -> dict[str, Any]:
    model = random.choice(MODELS)
    ends = sorted(random.sample(range(1, random.choice([3000, 9000])), random.randrange(4)))
    tiered = model in ("Graduated", "Volume")
    uppers: list[str | None] = [f"{end}.5" for end in ends] if tiered else []
    tiers = []
    for upper in [*uppers, None]:
        unit_price = "0" if model == "Flat" else _decimal(random, 1, random.choice([1, 5, 18]))
        flat = _decimal(random, 9, digits) if random.random() < 0.5 else "0"
        step = {"unitPrice": unit_price, "flatFee": flat}
        tiers.append(step if upper is None else step | {"upTo": upper})
    return {
        "meter": meter,
        "model": model,
        "included": random.choice(["0", _decimal(random, random.choice([400, 4000]), 3)]),
        "unitSize": random.choice(["1", "3", "7", "1000", "3600", "0.7"]),
        "tiers": tiers,
    }


def _revision(spec: dict[str, Any], since: datetime | None) -> Revision:
    return Revision(
        since=since,
        fee=Fraction(spec["fee"]),
        commitment=Fraction(spec["minimumCommitment"]),
        prices={
            price["meter"]: Price(
                model=price["model"],
                included=Fraction(price["included"]),
                unit_size=Fraction(price["unitSize"]),
                tiers=[
                    (
                        Fraction(tier["upTo"]) if "upTo" in tier else None,
                        Fraction(tier["unitPrice"]),
                        Fraction(tier["flatFee"]),
                    )
                    for tier in price["tiers"]
                ],
            )
            for price in spec["prices"]
        },
        commission=Fraction(spec["commission"]["rate"]),
        cap_per_trade=_optional(spec["commission"].get("capPerTrade")),
        cap_per_period=_optional(spec["commission"].get("capPerPeriod")),
        volume_discounts=[
            (Fraction(step["fromVolume"]), Fraction(step["discount"]))
            for step in spec["commission"]["volumeDiscounts"]
        ],
        counts_alone=spec["tierScope"] == "Phase",
        half_up=spec["rounding"] == "HalfUp",
        netting=spec["commission"]["netting"],
    )


def _optional(amount: str | None) -> Fraction | None:
    return None if amount is None else Fraction(amount)


def _customer(random: Random, world: World) -> Customer:
    currency = random.choice(["usd", "jpy", "kwd"])
    changes = sorted({_moment(random, START, END) for _ in range(random.randrange(1, 4))})
    number, phases = random.randrange(2), []
    ends: list[datetime | None] = [*changes[1:], random.choice([None, END])]
    for since, until in zip(changes, ends, strict=True):
        phases.append((since, until, f"{currency}-{number}"))
        number = 1 - number
    customer = Customer(
        currency=currency.upper(),
        zone=random.choice(ZONES),
        anchor_day=random.choice([1, 1, 15, 28]),
        phases=phases,
    )
    edges = [since for since, _, _ in phases]
    edges += [period_bounds(customer, 2026, month)[0] for month in (9, 10, 11)]
    edges += [r.since for _, _, plan in phases for r in world.plans[plan] if r.since is not None]
    for _ in range(random.randrange(12)):
        start = random.choice(edges) - timedelta(seconds=random.randrange(-300, 900))
        end = start + timedelta(seconds=random.randrange(1500))
        container = random.choice(["bot", "bot", "sidecar"])
        request = random.choice([(250, 2**28), (1500, 2**30), (333, 123_456_789)])
        customer.runs.append((start, end, container, *request))
    for _ in range(random.randrange(6)):
        start = random.choice(edges) - timedelta(seconds=random.randrange(-300, 900))
        end = start + timedelta(seconds=random.choice([1, 600, 1200, random.randrange(1500)]))
        size = random.choice([10 * 2**30, 10**9, 7, 123_456_789_123_456])
        customer.volumes.append((start, end, size))
    for _ in range(random.randrange(30)):
        near = random.choice(edges) + timedelta(seconds=random.randrange(-5000, 5000))
        moment = random.choice([near, random.choice(edges), _moment(random, START, END)])
        quantity = Fraction(_decimal(random, 5000, random.choice([0, 6])))
        customer.events.append((moment, random.choice(EVENT_METERS), quantity))
    for _ in range(random.randrange(16)):
        near = random.choice(edges) + timedelta(seconds=random.randrange(-1, 2))
        moment = random.choice([near, _moment(random, START, END)])
        profit = Fraction(_decimal(random, 3000, random.choice([0, 2, 8]))) - 1000
        volume = Fraction(random.choice([1, 999, 4000, random.randrange(9000)]))
        customer.trades.append((moment, profit, volume))
    return customer
