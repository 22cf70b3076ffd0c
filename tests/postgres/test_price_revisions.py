"""Prices that change in mid-period: what the plan includes, and its tiers, count on."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.tenants.store import register_tenant
from botplane.usage.store import standing_of
from tests.support.billing import a_plan, an_account, at, complete_until, record_usage

NOV, DEC = at("2026-11-02"), at("2026-12-02")
FEE_MINOR = 7
quantities = st.lists(st.integers(0, 4_000_000).map(lambda n: Decimal(n).scaleb(-3)), min_size=1)


def calls_at(price: str, **more: Any) -> dict[str, Any]:
    """Return a price of calls with one tier."""
    return {
        "meter": "rpc_calls",
        "model": "PerUnit",
        "tiers": [{"unitPrice": price, "flatFee": "0.07"}],
        **more,
    }


def tiered(model: str) -> dict[str, Any]:
    tiers = [
        {"upTo": "1000.5", "unitPrice": "0.3", "flatFee": "0.07"},
        {"upTo": "7000", "unitPrice": "0.123456789", "flatFee": "1.00"},
        {"unitPrice": "0.01", "flatFee": "0.50"},
    ]
    return calls_at("0", model=model, included="900.25", unitSize="7", tiers=tiers)


PRICES = {
    "PerUnit": calls_at("0.3", included="900.25", unitSize="7"),
    "Flat": calls_at("0", model="Flat", included="900.25"),
    "Package": calls_at("0.3", model="Package", included="900.25", unitSize="7"),
    "Graduated": tiered("Graduated"),
    "Volume": tiered("Volume"),
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=st.sampled_from(sorted(PRICES)), used=quantities)
def test_revisions_that_change_no_price_change_no_charge(
    conn: psycopg.Connection[Any], model: str, used: list[Decimal]
) -> None:
    name = model.lower()
    publish_plan(conn, a_plan(name, prices=[PRICES[model]]), NOV)
    befores = [sum(used[:n], Decimal(0)) for n in range(len(used))]
    rows = conn.execute(
        "SELECT sum(r.exact), max(w.exact), sum(r.billable), max(w.billable)"
        " FROM unnest(%(used)s::numeric[], %(befores)s::numeric[]) AS q (used, before)"
        " CROSS JOIN LATERAL rate_quantity(%(plan)s, 1, 'rpc_calls', q.used, q.before, %(whole)s,"
        "   600, 1000) r"
        " CROSS JOIN rate_quantity(%(plan)s, 1, 'rpc_calls', %(whole)s, 0, %(whole)s, 600, 1000) w",
        {"plan": name, "used": used, "befores": befores, "whole": sum(used)},
    ).fetchall()

    [(parts, whole, billable, billable_whole)] = rows
    assert billable == billable_whole
    assert abs(parts - whole) <= Decimal(len(used)).scaleb(-18)


def test_meter_that_gets_a_price_counts_what_was_used_before(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(), at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    free, priced = at("2026-10-10T12:00:00Z"), at("2026-10-20T12:00:00Z")
    publish_plan(conn, a_plan(prices=[calls_at("1", included="100")]), at("2026-10-16"))
    used = [(free, "rpc_calls", Decimal(70)), (priced, "rpc_calls", Decimal(50))]
    record_usage(conn, account.tenant_id, used)
    now = at("2026-10-31T23:00:00Z")

    stand = standing_of(conn, "acme", now)

    [line] = [line for line in invoice(conn, "acme", "2026-10", now).lines if line.meter]
    assert line.quantity == 50
    assert line.amount_minor == 2000 + FEE_MINOR
    assert sum(meter.cost for meter in stand.meters) == line.exact == Decimal("20.07")
    assert (line.detail["included"], line.detail["billable"]) == ("100", "20")
    assert line.detail["usedBefore"] == "70"


def test_volume_price_of_a_plan_does_not_count_what_the_next_plan_has(
    conn: psycopg.Connection[Any],
) -> None:
    tiers = [{"upTo": "100", "unitPrice": "1"}, {"unitPrice": "0.5"}]
    volume = {"meter": "rpc_calls", "model": "Volume", "tiers": tiers}
    publish_plan(conn, a_plan(prices=[volume]), at("2026-10-01"))
    publish_plan(conn, a_plan("pro"), at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    publish_plan(conn, a_plan(fee="1", prices=[volume]), at("2026-10-10"))
    register_tenant(conn, replace(account, plan="pro"), at("2026-10-20"))
    days = {"2026-10-05": 60, "2026-10-15": 30, "2026-10-25": 50}
    used = [(at(day), "rpc_calls", Decimal(quantity)) for day, quantity in days.items()]
    record_usage(conn, account.tenant_id, used)
    now = at("2026-10-31T23:00:00Z")

    stand = standing_of(conn, "acme", now)

    lines = [line for line in invoice(conn, "acme", "2026-10", now).lines if line.meter]
    assert [line.amount_minor for line in lines] == [6000, 3000]
    assert sum(meter.cost for meter in stand.meters) == 90


@pytest.mark.parametrize(
    ("scope", "charged"),
    # 31 days, cut after 15: 48.387... of 100 are included before, 51.612... after.
    [("Period", [0, 2000]), ("Phase", [1161, 839])],
)
def test_what_is_late_is_counted_as_its_revision_counts(
    conn: psycopg.Connection[Any], scope: str, charged: list[int]
) -> None:
    price = calls_at("1", included="100", tiers=[{"unitPrice": "1"}])
    publish_plan(conn, a_plan(prices=[price], tierScope=scope), at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    publish_plan(conn, a_plan(fee="1", prices=[price], tierScope=scope), at("2026-10-16"))
    days = [at("2026-10-05T12:00:00Z"), at("2026-10-20T12:00:00Z")]
    record_usage(conn, account.tenant_id, [(day, "rpc_calls", Decimal(60)) for day in days])
    complete_until(conn, NOV)
    billing_run(conn, NOV)
    record_usage(conn, account.tenant_id, [(days[0], "rpc_calls", Decimal(10))])
    complete_until(conn, DEC)
    billing_run(conn, DEC)

    billed = invoice(conn, "acme", "2026-10", NOV).lines
    corrected = [
        li for li in invoice(conn, "acme", "2026-11", DEC).lines if li.kind == "correction"
    ]
    assert [line.amount_minor for line in billed if line.kind == "usage"] == charged
    assert [line.amount_minor for line in corrected] == [1000]
