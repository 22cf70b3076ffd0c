"""Rating in SQL agrees to the last digit with a slow rating of other hands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any
from uuid import UUID

import psycopg

from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.tenants.store import close_tenant, register_tenant
from tests.support.billing import (
    Run,
    a_plan,
    a_volume,
    an_account,
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


def test_every_line_of_every_invoice_equals_the_oracle(conn: psycopg.Connection[Any]) -> None:
    world = a_world(Random(SEED), TENANTS)
    tenants = _tell(conn, world)
    complete_until(conn, END + timedelta(days=60))

    report = billing_run(conn, END + timedelta(days=60))

    assert (report.parked, report.waiting) == ((), 0)
    compared = 0
    for tenant_id, customer in tenants.items():
        for year, month in MONTHS:
            expected = expected_lines(customer, world.plans, period_bounds(customer, year, month))
            assert _billed(conn, tenant_id, f"{year}-{month:02}") == expected, (SEED, tenant_id)
            compared += bool(expected)
    assert compared > TENANTS
    assert _counted_on(conn) > TENANTS // 10


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
        record_won_and_lost(
            conn,
            account.tenant_id,
            [
                (moment, _as_decimal(profit), _as_decimal(volume))
                for moment, profit, volume in customer.trades
            ],
        )
        tenants[account.tenant_id] = customer
    return tenants


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
