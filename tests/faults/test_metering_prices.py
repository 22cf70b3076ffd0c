"""A price that changes while pods run: two lines, whose seconds are those that were used. By seeds.

The faults and the killed meterings are those of `test_metering_seeds.py`; every end is proven here,
so that the truth is known to the second.
"""

from __future__ import annotations

import random
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from botplane.billing.run import invoice
from botplane.billing.store import publish_plan
from botplane.tenants.store import register_tenant
from tests.faults.lives import Life, Script, populate
from tests.faults.play import PODS, Play, Wires
from tests.faults.rehearsal import WHOLE
from tests.faults.stand_in import EPOCH
from tests.support.billing import LATER, a_plan, an_account, complete_until, per_hour
from tests.support.controlplane.postgres import Postgres

SEEDS = 40 if WHOLE else 3
ENDED = ("finishes", "is killed", "crashes")
TENANTS = {f"t{number}": UUID(int=1000 + number) for number in range(3)}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_price_that_changes_mid_pod_makes_two_lines_that_add_up_to_the_second(
    postgres: Postgres, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(f"price {seed}")
    with Wires.to(postgres, f"metering_prices_{seed}") as wires:
        _subscribe(wires.own)
        with Play.of(seed, wires) as play:
            play.script = Script(play.server, play.script.dice, play.script.outage_at)
            populate(play.script, PODS, 0, among=ENDED)
            play.run()
        lives = play.script.lives
        changed_at = _mid_pod(lives, dice)
        publish_plan(wires.own, _prices("0.11"), EPOCH + timedelta(seconds=changed_at))
        lines = {tenant: _lines(wires.own, tenant) for tenant in TENANTS}

    used = {tenant: _used(lives, tenant, changed_at) for tenant in TENANTS}
    told = sum(int(quantity) for found in lines.values() for _, quantity, _ in found)
    true = sum(sum(pair) for pair in used.values())
    with capsys.disabled():
        print(f" C-12: {true} s used, {told} s in {sum(map(len, lines.values()))} lines")
    for tenant, pair in used.items():
        priced = zip((1, 2), map(Decimal, pair), ("0.05", "0.11"), strict=True)
        assert lines[tenant] == [line for line in priced if line[1]]
    assert any(before and after for before, after in used.values())


def _subscribe(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, _prices("0.05"), EPOCH)
    for name, uid in TENANTS.items():
        register_tenant(conn, an_account(name, tenant_id=uid), EPOCH)


def _prices(an_hour: str) -> Any:
    return a_plan(prices=[per_hour(an_hour)])


def _mid_pod(lives: list[Life], dice: random.Random) -> int:
    """Return a second at which a pod has run and goes on."""
    runs = [(start, end) for life in lives for _, start, end, _ in life.true if end - start > 1]
    start, end = dice.choice(runs)
    return dice.randrange(start + 1, end)


def _used(lives: list[Life], tenant: str, changed_at: int) -> tuple[int, int]:
    """Return how many seconds a tenant's pods truly ran before and after."""
    runs = [run for life in lives if life.namespace == f"tenant-{tenant}" for run in life.true]
    before = sum(max(0, min(end, changed_at) - start) for _, start, end, _ in runs)
    return before, sum(end - start for _, start, end, _ in runs) - before


def _lines(conn: psycopg.Connection[Any], tenant: str) -> list[tuple[int, Decimal, str]]:
    """Return revision, seconds and price of an hour of each line of usage."""
    now = EPOCH + LATER
    complete_until(conn, now)
    issued = invoice(conn, tenant, "2026-10", now)
    return [
        (line.detail["version"], line.quantity, line.detail["tiers"][0]["unitPrice"])
        for line in sorted(issued.lines, key=lambda line: line.starts_at)
        if line.kind == "usage"
    ]
