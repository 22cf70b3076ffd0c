"""Rating in SQL agrees to the last digit with a slow rating of other hands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest

from botplane.billing.proof.store import reconcile
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.tenants.store import close_tenant, register_tenant
from tests.support.billing import (
    Run,
    a_plan,
    a_volume,
    an_account,
    at,
    complete_until,
    record_runs,
    record_usage,
    record_won_and_lost,
)
from tests.support.ledger_oracle import Customer, ExpectedLine, expected_lines, period_bounds
from tests.support.random_usage import END, START, World, a_world

TENANTS = int(os.environ.get("BOTPLANE_ORACLE_TENANTS", "100"))
SEED = int(os.environ.get("BOTPLANE_ORACLE_SEED", "1"))
MONTHS = ((2026, 8), (2026, 9), (2026, 10), (2026, 11))


def test_every_line_of_every_invoice_equals_the_oracle(
    conn: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    world = a_world(Random(SEED), TENANTS)
    tenants = _tell(conn, world)
    _bill_every_month(conn)

    compared = 0
    for tenant_id, customer in tenants.items():
        for year, month in MONTHS:
            expected = expected_lines(customer, world.plans, period_bounds(customer, year, month))
            assert _billed(conn, tenant_id, f"{year}-{month:02}") == expected, (SEED, tenant_id)
            compared += bool(expected)
    with capsys.disabled():
        print(f"\nSeed {SEED}: {compared:,} periods of {TENANTS:,} tenants equal the oracle")
    assert compared > TENANTS
    assert _counted_on(conn) > TENANTS // 10


def test_trades_that_come_late_cost_what_they_would_have_cost_in_time(
    conn: psycopg.Connection[Any],
) -> None:
    """Also where a late loss lowers the high-water mark of all months after its own."""
    world = a_world(Random(SEED + 1), TENANTS)
    late = {id(customer): customer.trades[::2] for customer in world.customers}
    for customer in world.customers:
        customer.trades = customer.trades[1::2]
    tenants = _tell(conn, world)
    _bill_every_month(conn, at("2026-11-18"))
    for tenant_id, customer in tenants.items():
        _trade(conn, tenant_id, late[id(customer)])
        customer.trades += late[id(customer)]
    _bill_every_month(conn)

    corrected = 0
    for tenant_id, customer in tenants.items():
        for year, month in MONTHS:
            expected = expected_lines(customer, world.plans, period_bounds(customer, year, month))
            billed, corrections = _billed_in_all(conn, tenant_id, f"{year}-{month:02}")
            assert billed == {key: minor for key, _, _, minor in expected if minor}
            corrected += corrections
    assert corrected > TENANTS // 5
    found = {difference.check for difference in reconcile(conn, START, END)}
    assert found <= {"intervals = pods"}  # the runs of this world have no pods


def _bill_every_month(
    conn: psycopg.Connection[Any], until: datetime = END + timedelta(days=60)
) -> None:
    """Each run goes on from what the one before it kept."""
    moment = START
    while moment < until:
        moment = min(moment + timedelta(days=15), until)
        complete_until(conn, moment)
        report = billing_run(conn, moment)
        assert (report.parked, report.waiting) == ((), 0)


def _billed_in_all(
    conn: psycopg.Connection[Any], tenant_id: UUID, period: str
) -> tuple[dict[str, int], int]:
    """Return the amounts of a period with all corrections, by line, and how many these were."""
    rows = conn.execute(
        "SELECT COALESCE(l.corrects_key, l.line_key), sum(l.amount_minor)::bigint,"
        " count(l.corrects_key) FROM invoice i JOIN invoice_line l ON l.tenant_id = i.tenant_id"
        " AND (l.corrects_invoice = i.invoice_id OR l.invoice_id = i.invoice_id"
        "   AND l.corrects_key IS NULL)"
        " WHERE i.tenant_id = %s AND i.period = %s GROUP BY 1",
        [tenant_id, period],
    ).fetchall()
    return {key: minor for key, minor, _ in rows if minor}, sum(count for _, _, count in rows)


def _tell(conn: psycopg.Connection[Any], world: World) -> dict[UUID, Customer]:
    """Publish, subscribe and close in the order of time, then record all usage."""
    for name, revisions in world.plans.items():
        for revision, spec in zip(revisions, world.specs[name], strict=True):
            publish_plan(conn, a_plan(name, **spec), revision.since or START - timedelta(days=1))
    tenants = {}
    for number, customer in enumerate(world.customers):
        account = an_account(
            f"t{number}",
            currency=customer.currency,
            time_zone=customer.zone,
            anchor_day=customer.anchor_day,
            subscription_start=customer.phases[0][0],
        )
        for since, _, plan in customer.phases:
            register_tenant(conn, an_account(**vars(account) | {"plan": plan}), since)
        if customer.phases[-1][1] is not None:
            close_tenant(conn, account.tenant_id, customer.phases[-1][1])
        record_runs(conn, account.tenant_id, _runs(customer))
        record_usage(
            conn,
            account.tenant_id,
            [(moment, meter, _as_decimal(quantity)) for moment, meter, quantity in customer.events],
        )
        _trade(conn, account.tenant_id, customer.trades)
        tenants[account.tenant_id] = customer
    return tenants


def _trade(
    conn: psycopg.Connection[Any],
    tenant_id: UUID,
    trades: list[tuple[datetime, Fraction, Fraction]],
) -> None:
    given = [(moment, _as_decimal(won), _as_decimal(volume)) for moment, won, volume in trades]
    record_won_and_lost(conn, tenant_id, given)


def _runs(customer: Customer) -> Iterator[Run]:
    for start, end, container, cpu_milli, mem_bytes in customer.runs:
        yield Run(
            start=start, end=end, container=container, cpu_milli=cpu_milli, mem_bytes=mem_bytes
        )
    for start, end, size in customer.volumes:
        yield a_volume(size, start, end)


def _billed(conn: psycopg.Connection[Any], tenant_id: UUID, period: str) -> list[ExpectedLine]:
    rows = conn.execute(
        "SELECT line_key, quantity, exact, amount_minor FROM invoice_line"
        " JOIN invoice USING (tenant_id, invoice_id) WHERE tenant_id = %s AND period = %s",
        [tenant_id, period],
    )
    return sorted(
        (key, Fraction(quantity), Fraction(exact), amount) for key, quantity, exact, amount in rows
    )


def _counted_on(conn: psycopg.Connection[Any]) -> int:
    """Count the lines that go on in tiers where a revision before theirs stopped."""
    rows = conn.execute(
        "SELECT count(*) FROM invoice_line WHERE (detail ->> 'usedBefore')::numeric"
        " > (detail ->> 'included')::numeric AND exact > 0"
    ).fetchone()
    return 0 if rows is None else int(rows[0])


def _as_decimal(quantity: Fraction) -> Decimal:
    return Decimal(quantity.numerator) / Decimal(quantity.denominator)
