"""What is kept for how long: nothing goes that an invoice may still ask for."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from botplane.billing.proof.store import reconcile
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.errors import Retryable
from botplane.metering.events.policy import UsageEvent, Verdict
from botplane.metering.events.store import (
    Batch,
    IngestKey,
    ingest,
    prune,
    register_keys,
    revoke_keys,
    secret_hash,
)
from botplane.store.pool import Role, become
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.store import register_tenant
from tests.support.billing import (
    a_plan,
    an_account,
    at,
    complete_until,
    record_usage,
    whole_content,
)

START, NOW = at("2026-01-01"), at("2027-04-10")
"""The invoice of March 2027 may still correct January of the year before; that of April cannot."""
CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> TenantAccount:
    """A tenant with events in each month, whose periods begin in the evening of UTC."""
    publish_plan(conn, a_plan(fee="1.00", prices=[CALLS]), START)
    account = an_account(time_zone="Asia/Kolkata", subscription_start=START)
    register_tenant(conn, account, START)
    conn.execute("SELECT ensure_partitions('2025-12-01', '2030-01-01')")
    moments = [START + timedelta(days=10 + 30.4 * month) for month in range(14)]
    record_usage(conn, account.tenant_id, [(m, "rpc_calls", Decimal(100)) for m in moments])
    return account


def billed(conn: psycopg.Connection[Any], now: datetime) -> datetime:
    """Bill every period that has ended."""
    complete_until(conn, now)
    assert billing_run(conn, now).parked == ()
    return now


def months(conn: psycopg.Connection[Any], relation: str) -> list[str]:
    """Return the months that a table still has, with rows in them."""
    rows = conn.execute(
        f"SELECT DISTINCT right(tableoid::regclass::text, 6) FROM {relation} ORDER BY 1"
    ).fetchall()
    return [month for (month,) in rows]


@pytest.mark.usefixtures("acme")
def test_months_go_when_no_invoice_can_ask_for_them(conn: psycopg.Connection[Any]) -> None:
    billed(conn, NOW)

    dropped = prune(conn, NOW)

    assert dropped == {"usage_event_202512": 1, "usage_event_202601": 1}
    assert months(conn, "usage_event")[0] == "202602"
    assert months(conn, "usage_hourly")[0] == "202601"
    assert prune(conn, NOW) == {}


@pytest.mark.usefixtures("acme")
def test_hourly_sums_stay_for_twenty_five_months(conn: psycopg.Connection[Any]) -> None:
    now = billed(conn, at("2028-03-10"))

    assert "usage_hourly_202601" in prune(conn, now)
    assert months(conn, "usage_hourly")[0] == "202602"


@pytest.mark.usefixtures("acme")
def test_an_open_period_keeps_its_events(conn: psycopg.Connection[Any]) -> None:
    billed(conn, NOW)
    second = an_account("second", subscription_start=START)
    register_tenant(conn, second, START)
    record_usage(conn, second.tenant_id, [(at("2026-01-20"), "rpc_calls", Decimal(7))])

    assert prune(conn, NOW) == {"usage_event_202512": 1}
    assert months(conn, "usage_event")[0] == "202601"
    billed(conn, NOW)
    assert prune(conn, NOW) == {"usage_event_202601": 1}


@pytest.mark.usefixtures("acme")
def test_a_period_that_an_open_one_may_correct_keeps_its_events(
    conn: psycopg.Connection[Any],
) -> None:
    billed(conn, at("2027-03-10"))

    # January begins in the evening of December 31st.
    assert prune(conn, NOW) == {}
    billed(conn, NOW)
    assert len(prune(conn, NOW)) == 2


@pytest.mark.usefixtures("acme")
def test_books_are_as_before_and_prove_true(conn: psycopg.Connection[Any]) -> None:
    billed(conn, NOW)
    before = [invoice(conn, "acme", f"2026-{month:02}", NOW) for month in (1, 2)]

    prune(conn, NOW)

    assert [invoice(conn, "acme", f"2026-{month:02}", NOW) for month in (1, 2)] == before
    assert reconcile(conn, START, NOW) == []
    said = conn.execute(
        "SELECT object FROM audit_log WHERE action = 'prune' ORDER BY seq"
    ).fetchall()
    assert said == [("usage_event_202512",), ("usage_event_202601",)]


def an_event(event_id: str, occurred_at: datetime) -> UsageEvent:
    return UsageEvent(
        source="bot",
        event_id=event_id,
        meter="rpc_calls",
        occurred_at=occurred_at,
        quantity=Decimal(1),
        dims="{}",
    )


def test_event_whose_key_is_gone_is_refused_and_never_counted_again(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    now = at("2026-06-20T12:00:00Z")
    moments = [now - timedelta(days=days) for days in (71, 69, 1)]
    batch = Batch(
        tenant_id=acme.tenant_id,
        bot_id=None,
        events=[an_event(f"e-{n}", moment) for n, moment in enumerate(moments)],
    )
    for moment in moments:
        ingest(conn, [batch], moment)
    told: list[list[Verdict]] = []
    pruned: list[int] = []

    for hour in range(3):
        pruned.append(prune(conn, now + timedelta(hours=hour)).get("usage_event_key", 0))
        told += ingest(conn, [batch], now + timedelta(hours=hour))

    assert pruned == [0, 1, 0]
    assert told == [["duplicate"] * 3, *[["rejected", "duplicate", "duplicate"]] * 2]
    stored = conn.execute("SELECT count(*) FROM usage_event WHERE source = 'bot'").fetchone()
    assert stored == (3,)


def test_event_that_is_new_but_as_old_as_keys_that_are_gone_is_refused(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    now = at("2026-06-20T12:00:00Z")
    prune(conn, now)
    late, in_time = now - timedelta(days=70, seconds=1), now - timedelta(days=70)
    events = [an_event("late", late), an_event("in-time", in_time), an_event("late", late)]

    told = ingest(conn, [Batch(tenant_id=acme.tenant_id, bot_id=None, events=events)], now)

    assert told == [["rejected", "accepted", "rejected"]]


def test_content_of_webhooks_goes_and_their_ids_stay(conn: psycopg.Connection[Any]) -> None:
    old, young = NOW - timedelta(days=91), NOW - timedelta(days=89)
    rows = [("old", old, old), ("young", young, young), ("unheard", old, None)]
    conn.cursor().executemany(
        "INSERT INTO webhook_inbox VALUES ('stripe', %s, %s, '{\"card\": 1}', %s)", rows
    )

    assert prune(conn, NOW) == {"webhook_inbox": 1}
    left = conn.execute("SELECT event_id, body = '{}' FROM webhook_inbox ORDER BY 1").fetchall()
    assert left == [("old", True), ("unheard", False), ("young", False)]
    assert prune(conn, NOW) == {}


def test_revoked_keys_are_forgotten_and_valid_ones_are_not(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    keys = [
        IngestKey(key_id=k, tenant_id=acme.tenant_id, bot_id=None, secret_hash=secret_hash(k))
        for k in ("old", "young", "valid")
    ]
    register_keys(conn, keys, START)
    revoke_keys(conn, [(acme.tenant_id, "old")], NOW - timedelta(days=400))
    revoke_keys(conn, [(acme.tenant_id, "young")], NOW - timedelta(days=300))

    assert prune(conn, NOW) == {"ingest_key": 1}
    left = conn.execute("SELECT key_id FROM ingest_key ORDER BY 1").fetchall()
    assert left == [("valid",), ("young",)]


@pytest.mark.usefixtures("acme")
def test_a_month_in_use_is_left_for_the_next_time(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    billed(conn, NOW)
    before = whole_content(conn)
    with psycopg.connect(migrated) as reader:
        reader.execute("SELECT count(*) FROM usage_event")
        with pytest.raises(Retryable):
            prune(conn, NOW)

    assert whole_content(conn) == before
    assert len(prune(conn, NOW)) == 2


@pytest.mark.usefixtures("acme")
def test_two_at_once_drop_each_month_once(conn: psycopg.Connection[Any], migrated: str) -> None:
    billed(conn, NOW)
    dropped: list[dict[str, int]] = []

    def prune_too() -> None:
        with psycopg.connect(migrated, autocommit=True) as other:
            dropped.append(prune(other, NOW))

    threads = [threading.Thread(target=prune_too) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(month for found in dropped for month in found) == [
        "usage_event_202512",
        "usage_event_202601",
    ]


def test_only_the_web_process_may_prune(conn: psycopg.Connection[Any]) -> None:
    become(conn, Role.WEB)
    assert prune(conn, NOW) == {}
    conn.execute("RESET ROLE")
    become(conn, Role.METERING)

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        prune(conn, NOW)
