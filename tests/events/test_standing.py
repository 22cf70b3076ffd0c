"""Where tenants stand is what their invoice would say, kept up while usage arrives."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from botplane.billing.store import publish_plan
from botplane.metering.events.policy import UsageEvent
from botplane.metering.events.store import Batch, ingest
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.store import register_tenant
from botplane.usage.standing import LimitState, Standing
from botplane.usage.store import (
    enforce_limits,
    open_blocks,
    standing_of,
    standings,
    totals_that_differ,
)
from tests.postgres.test_rating_oracle import _tell
from tests.support.billing import (
    Run,
    a_plan,
    a_volume,
    an_account,
    at,
    per_hour,
    record_runs,
    waits_for_a_lock,
)
from tests.support.operator_calls import operator_calls
from tests.support.random_usage import END, a_world
from tests.support.until import until

NOW = at("2026-11-10T12:00:00Z")
CALLS = {"meter": "rpc_calls", "model": "PerUnit", "included": "100", "tiers": [{"unitPrice": "1"}]}


def an_event(number: int, moment: datetime, **more: Any) -> UsageEvent:
    event = UsageEvent(
        source="bot",
        event_id=str(number),
        meter="rpc_calls",
        occurred_at=moment,
        quantity=Decimal(1),
        dims="{}",
    )
    return replace(event, **more)


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> TenantAccount:
    publish_plan(conn, a_plan(prices=[per_hour("0.06"), CALLS]), at("2026-09-01"))
    account = an_account(spend_limit=Decimal("50.00"))
    register_tenant(conn, account, at("2026-10-01"))
    return account


def call(conn: psycopg.Connection[Any], tenant_id: UUID, cost: str, number: int = 0) -> None:
    """Let a tenant's calls cost so much more; the first hundred are included."""
    event = an_event(number, at("2026-11-09"), quantity=Decimal(cost))
    ingest(conn, [Batch(tenant_id=tenant_id, bot_id=None, events=[event])], NOW)


def charged(conn: psycopg.Connection[Any], stand: Standing, now: datetime) -> dict[str, Decimal]:
    """Return what the invoice would say, by meter or kind of line; of trades those until now."""
    rows = conn.execute(
        "SELECT COALESCE(meter, kind), sum(exact) FROM ("
        " SELECT * FROM charge(%(tenants)s, %(periods)s, %(end)s)"
        " WHERE kind NOT IN ('commitment', 'commission') UNION ALL"
        " SELECT * FROM charge_commission(%(tenants)s, %(periods)s, %(now)s)) AS line"
        " GROUP BY 1 HAVING sum(exact) <> 0",
        {
            "tenants": [stand.tenant_id],
            "periods": [stand.period],
            "end": stand.ends_at,
            "now": now,
        },
    )
    return dict(rows.fetchall())


def said(stand: Standing) -> dict[str, Decimal]:
    amounts = {meter.meter: meter.cost for meter in stand.meters}
    amounts |= {"subscription": stand.fee, "commission": stand.commission}
    amounts["one_off"] = stand.one_offs
    return {name: amount for name, amount in amounts.items() if amount}


@pytest.mark.parametrize("seed", [1, 2])
def test_standing_equals_the_charges_in_a_random_world(
    conn: psycopg.Connection[Any], seed: int
) -> None:
    random_ = random.Random(seed)
    tenants = list(_tell(conn, a_world(random_, 60)))
    compared = 0
    for days in (70, 40, 20, 6, 1):
        now = END - timedelta(days=days)
        _use_more(conn, random_, tenants, now)
        stands, _ = standings(conn, now)
        details, _ = standings(conn, now, list(stands))
        _use_more(conn, random_, tenants, now)
        stands, bots = standings(conn, now)

        for tenant_id, stand in stands.items():
            assert said(stand) == charged(conn, stand, now)
            compared += len(said(stand))
            assert {m.meter for m in stand.meters} <= {
                m.meter for m in standings(conn, now, [tenant_id])[0][tenant_id].meters
            }
        assert details.keys() == stands.keys()
        assert bots
        assert totals_that_differ(conn) == []
    assert compared > 120


def _use_more(
    conn: psycopg.Connection[Any], random_: random.Random, tenants: list[UUID], now: datetime
) -> None:
    """Record events, runs and one-off charges, close runs, and correct the ends of some."""
    batches = []
    for tenant_id in tenants:
        bot_id = uuid4()
        events = [
            an_event(
                random_.randrange(10**9),
                now - timedelta(seconds=random_.randrange(40 * 86_400)),
                meter=random_.choice(["rpc_calls", "ai_units", "bandwidth_gb"]),
                quantity=Decimal(random_.randrange(10**6)).scaleb(-random_.randrange(7)),
            )
            for _ in range(random_.randrange(6))
        ]
        batches.append(Batch(tenant_id=tenant_id, bot_id=bot_id, events=events))
        if random_.random() < 0.3:
            charge_beside_the_plan(conn, tenant_id, random_, now)
        start = (now - timedelta(days=random_.randrange(1, 30))).replace(microsecond=0)
        run = Run(start=start, end=start + timedelta(seconds=random_.randrange(90_000)))
        record_runs(conn, tenant_id, [replace(run, bot_id=bot_id, mem_bytes=123_456_789)])
        for size in (10**9, 10 * 2**30):
            end = start + timedelta(seconds=random_.randrange(90_000))
            record_runs(conn, tenant_id, [a_volume(size, start, end, bot_id=bot_id)])
    ingest(conn, batches, now)
    conn.execute("""
        UPDATE runtime_interval SET ended_at = started_at + (ended_at - started_at) / 2
        WHERE ended_at IS NOT NULL AND hashtext(pod_uid::text) % 7 = 0
    """)


def charge_beside_the_plan(
    conn: psycopg.Connection[Any], tenant_id: UUID, random_: random.Random, now: datetime
) -> None:
    conn.execute(
        "INSERT INTO one_off (tenant_id, reference, period, description, amount_minor, charged_at)"
        " SELECT tenant_id, %(reference)s, period, 'Help', %(minor)s, %(now)s FROM billing_period"
        " WHERE tenant_id = %(tenant)s AND starts_at <= %(now)s AND ends_at > %(now)s",
        {
            "reference": f"r-{random_.randrange(10**12)}",
            "minor": random_.randrange(1, 10**6),
            "tenant": tenant_id,
            "now": now,
        },
    )


@pytest.mark.parametrize(("used", "last_digit"), [("0.5", 0), ("1.5", 2)])
def test_standing_rounds_its_last_digit_as_an_invoice_does(
    conn: psycopg.Connection[Any], used: str, last_digit: int
) -> None:
    price = CALLS | {"included": "0", "tiers": [{"unitPrice": "0.000000000000000001"}]}
    publish_plan(conn, a_plan(prices=[price]), at("2026-09-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    call(conn, account.tenant_id, used)

    [meter] = standing_of(conn, "acme", NOW).meters

    assert meter.cost == Decimal(last_digit).scaleb(-18)


def test_running_bots_and_volumes_count_up_to_the_second(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    start = at("2026-10-31T23:00:00Z")
    run = Run(start=start, end=None, bot_id=uuid4())
    record_runs(conn, acme.tenant_id, [run, a_volume(10**10, start, None)])

    first = standing_of(conn, "acme", NOW)
    later = standing_of(conn, "acme", NOW + timedelta(seconds=7))
    conn.execute(
        "UPDATE runtime_interval SET ended_at = %s, close_reason = 'terminated',"
        " close_quality = 'exact'",
        [NOW],
    )
    closed = standing_of(conn, "acme", NOW + timedelta(hours=1))
    conn.execute("UPDATE runtime_interval SET ended_at = %s", [NOW - timedelta(hours=2)])
    earlier = standing_of(conn, "acme", NOW + timedelta(hours=1))

    seconds = Decimal(9 * 86_400 + 43_200)
    assert first.quantity("bot_seconds") == closed.quantity("bot_seconds") == seconds
    assert later.quantity("bot_seconds") == seconds + 7
    assert earlier.quantity("bot_seconds") == seconds - 7200
    assert earlier.quantity("storage_gb_hours") == 2260
    assert first.quantity("cpu_core_seconds") == seconds
    assert first.quantity("storage_gb_hours") == closed.quantity("storage_gb_hours") == 2280
    assert totals_that_differ(conn) == []


def test_plan_change_and_new_month_build_the_totals_again(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    call(conn, acme.tenant_id, "150")
    before = standing_of(conn, "acme", NOW)
    dearer = {**CALLS, "tiers": [{"unitPrice": "2"}]}
    publish_plan(conn, a_plan(prices=[per_hour("0.06"), dearer]), NOW)

    same = standing_of(conn, "acme", NOW + timedelta(seconds=1))
    assert said(same) == charged(conn, same, NOW)
    late = an_event(9, NOW + timedelta(minutes=1), quantity=Decimal(200))
    batch = Batch(tenant_id=acme.tenant_id, bot_id=None, events=[late])
    ingest(conn, [batch], NOW + timedelta(minutes=2))
    both = standing_of(conn, "acme", NOW + timedelta(minutes=3))

    assert before.cost == 50
    assert said(both) == charged(conn, both, NOW)
    assert both.cost > same.cost
    assert standing_of(conn, "acme", at("2026-12-01T00:00:01Z")).cost == 0
    assert totals_that_differ(conn) == []


def test_totals_are_not_built_while_usage_is_being_written(
    conn: psycopg.Connection[Any], migrated: str, acme: TenantAccount
) -> None:
    failures: list[BaseException] = []

    def build(own: psycopg.Connection[Any]) -> None:
        standings(own, NOW)

    builder = threading.Thread(target=_on_its_own, args=[migrated, build, failures])
    with conn.transaction():
        call(conn, acme.tenant_id, "150")
        builder.start()
        builder.join(1)
        assert builder.is_alive()
    builder.join(10)

    assert failures == []
    assert totals_that_differ(conn) == []
    assert standing_of(conn, "acme", NOW).cost == 50


def test_usage_that_arrives_while_totals_are_built_is_in_them_once(
    conn: psycopg.Connection[Any], migrated: str, acme: TenantAccount
) -> None:
    others = [replace(an_account(f"t-{n}"), spend_limit=None) for n in range(8)]
    for account in others:
        register_tenant(conn, account, at("2026-10-01"))
    tenants = [acme.tenant_id, *(account.tenant_id for account in others)]
    failures = _race(migrated, tenants)

    assert failures == []
    assert totals_that_differ(conn) == []
    stands, _ = standings(conn, NOW)
    assert {stand.quantity("rpc_calls") for stand in stands.values()} == {Decimal(600)}


def _on_its_own(
    url: str, work: Callable[[psycopg.Connection[Any]], None], failures: list[BaseException]
) -> None:
    try:
        with psycopg.connect(url, autocommit=True) as own:
            work(own)
    except BaseException as error:  # noqa: BLE001 - told by the test
        failures.append(error)


def _race(url: str, tenants: list[UUID]) -> list[BaseException]:
    """Let two writers report sixty times five events while a third builds the totals."""
    stop, failures = threading.Event(), list[BaseException]()

    def report(own: psycopg.Connection[Any], first: int) -> None:
        for number in range(first, first + 60):
            events = [an_event(number * 10 + i, NOW - timedelta(hours=i)) for i in range(5)]
            ingest(own, [Batch(tenant_id=t, bot_id=None, events=events) for t in tenants], NOW)

    def rebuild(own: psycopg.Connection[Any]) -> None:
        while not stop.is_set():
            own.execute("SELECT drop_segments(%s)", [tenants])
            standings(own, NOW)

    writers = [
        threading.Thread(target=_on_its_own, args=[url, partial(report, first=first), failures])
        for first in (0, 1000)
    ]
    builder = threading.Thread(target=_on_its_own, args=[url, rebuild, failures])
    for thread in [*writers, builder]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    builder.join()
    return failures


def test_every_warning_comes_once_and_the_limit_blocks(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    told, states = [], []
    for number, (more, limit) in enumerate(
        [("139.99", 50), ("0.01", 50), ("5", 50), ("5", 50), ("0", 55)]
    ):
        call(conn, acme.tenant_id, more, number)
        conn.execute("UPDATE tenant SET spend_limit = %s", [limit])
        stand = standing_of(conn, "acme", NOW)
        for _ in range(2):
            notices = enforce_limits(conn, [stand], NOW)
            told += [(n.scope, n.percent) for n in notices if n.scope == "spend"]
        stand = standing_of(conn, "acme", NOW)
        states.append((stand.limit_percent, stand.limit_state))

    assert told == [("spend", 50), ("spend", 80), ("spend", 90), ("spend", 100)]
    assert states == [
        (79, LimitState.CLEAR),
        (80, LimitState.CLEAR),
        (90, LimitState.CLEAR),
        (100, LimitState.BLOCKED),
        (90, LimitState.CLEAR),
    ]


def blocked(conn: psycopg.Connection[Any]) -> dict[UUID, set[str]]:
    """Return who has reached which hard limits."""
    return {tenant_id: {*scopes} for tenant_id, scopes in open_blocks(conn, NOW).items()}


def test_credit_makes_room_at_once(conn: psycopg.Connection[Any], acme: TenantAccount) -> None:
    call(conn, acme.tenant_id, "150")
    enforce_limits(conn, [standing_of(conn, "acme", NOW)], NOW)
    assert blocked(conn) == {acme.tenant_id: {"spend"}}
    conn.execute("SET session_replication_role = replica")
    conn.execute(
        "INSERT INTO credit_grant (tenant_id, credit_id, kind, amount_minor, granted_at)"
        " VALUES (%s, 'c', 'purchased', 500, %s)",
        [acme.tenant_id, NOW],
    )

    stand = standing_of(conn, "acme", NOW)
    enforce_limits(conn, [stand], NOW)

    assert stand.spend_limit == Decimal(55)
    assert stand.limit_percent == 90
    assert blocked(conn) == {}


def test_bots_are_suspended_after_notice_and_resume_in_the_next_period(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    call(conn, acme.tenant_id, "150")
    enforce_limits(conn, [standing_of(conn, "acme", NOW)], NOW)

    soon, later = NOW + timedelta(minutes=14), NOW + timedelta(minutes=15)
    assert open_blocks(conn, soon) == {acme.tenant_id: {"spend": LimitState.BLOCKED}}
    assert open_blocks(conn, later) == {acme.tenant_id: {"spend": LimitState.SUSPENDED}}
    assert standing_of(conn, "acme", later).limit_state is LimitState.SUSPENDED

    december = at("2026-12-01T00:01:00Z")
    enforce_limits(conn, [standing_of(conn, "acme", december)], december)
    assert blocked(conn) == {}


async def test_warnings_of_a_round_that_breaks_off_are_told_by_the_next(
    conn: psycopg.Connection[Any], migrated: str, acme: TenantAccount
) -> None:
    call(conn, acme.tenant_id, "150")
    operator = operator_calls(migrated, lambda: NOW)
    with psycopg.connect(migrated) as other:
        other.execute("LOCK payment_attempt")  # which is read last
        broken = asyncio.create_task(operator.follow())
        await until(lambda: waits_for_a_lock(conn), seconds=20)
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        assert await broken is None

    news = await operator.follow()
    operator.close()

    assert news is not None
    assert acme.tenant_id in {tenant_id for tenant_id, _ in news.warnings}


async def test_prices_that_change_while_standings_are_read_do_not_free_who_is_blocked(
    conn: psycopg.Connection[Any], migrated: str, acme: TenantAccount
) -> None:
    call(conn, acme.tenant_id, "150")
    enforce_limits(conn, [standing_of(conn, "acme", NOW)], NOW)
    later = NOW + timedelta(minutes=20)

    def read_and_enforce() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            enforce_limits(mine, standings(mine, later)[0].values(), later)

    reading = threading.Thread(target=read_and_enforce)
    with psycopg.connect(migrated, autocommit=True) as other:
        with conn.transaction():
            conn.execute("LOCK source_watermark")  # which is read after the terms
            reading.start()
            await until(lambda: waits_for_a_lock(other), seconds=20)
            publish_plan(other, a_plan(prices=[per_hour("0.07"), CALLS]), later)
        reading.join()

    assert open_blocks(conn, later) == {acme.tenant_id: {"spend": LimitState.SUSPENDED}}


@pytest.mark.parametrize(
    ("percent", "minutes", "still"),
    [("99", 60, 1), ("95", 60, 1), ("94.9", 60, 0), ("94.9", 9, 1)],
)
def test_limit_does_not_flap(
    conn: psycopg.Connection[Any],
    acme: TenantAccount,
    percent: str,
    minutes: int,
    still: int,
) -> None:
    call(conn, acme.tenant_id, "150")
    stand = standing_of(conn, "acme", NOW)
    enforce_limits(conn, [stand], NOW)

    cheaper = replace(stand, meters=(), fee=Decimal(percent) / 2)
    enforce_limits(conn, [cheaper], NOW + timedelta(minutes=minutes))

    assert len(blocked(conn)) == still


def test_two_passes_at_once_warn_once(
    conn: psycopg.Connection[Any], migrated: str, acme: TenantAccount
) -> None:
    call(conn, acme.tenant_id, "150")
    stand = standing_of(conn, "acme", NOW)
    start, told = threading.Barrier(4), list[tuple[str, int]]()

    def work() -> None:
        with psycopg.connect(migrated, autocommit=True) as own:
            start.wait()
            told.extend((n.scope, n.percent) for n in enforce_limits(own, [stand], NOW))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    expected = {
        (scope, percent): 1
        for scope in ("spend", "included/rpc_calls")
        for percent in (50, 80, 90, 100)
    }
    assert Counter(told) == expected
    assert conn.execute("SELECT count(*) FROM spend_block").fetchone() == (1,)
