"""What is kept for how long: nothing goes that an invoice may still ask for."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import threading
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from botplane.billing.proof.store import reconcile
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.errors import Rejected, Retryable
from botplane.metering.archive.store import Archived, archive_usage
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
    Run,
    a_plan,
    an_account,
    at,
    complete_until,
    record_runs,
    record_usage,
    waits_for_a_lock,
    whole_content,
)
from tests.support.controlplane.waiting import until as wait_until
from tests.support.cut_connection import CutConnection
from tests.support.until import until

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


def archive(conn: psycopg.Connection[Any], directory: Path, now: datetime) -> list[Archived]:
    return list(archive_usage(conn, directory, "ana", now))


def forget(conn: psycopg.Connection[Any], now: datetime) -> dict[str, int]:
    """Archive what is over, and let it go."""
    with TemporaryDirectory() as directory:
        archive(conn, Path(directory), now)
    return prune(conn, now)


def months(conn: psycopg.Connection[Any], relation: str) -> list[str]:
    """Return the months that a table still has, with rows in them."""
    rows = conn.execute(
        f"SELECT DISTINCT right(tableoid::regclass::text, 6) FROM {relation} ORDER BY 1"
    ).fetchall()
    return [month for (month,) in rows]


@pytest.mark.usefixtures("acme")
def test_months_go_when_no_invoice_can_ask_for_them(conn: psycopg.Connection[Any]) -> None:
    billed(conn, NOW)

    dropped = forget(conn, NOW)

    assert dropped == {"usage_event_202512": 1, "usage_event_202601": 1}
    assert months(conn, "usage_event")[0] == "202602"
    assert months(conn, "usage_hourly")[0] == "202601"
    assert forget(conn, NOW) == {}


@pytest.mark.usefixtures("acme")
def test_hourly_sums_stay_for_twenty_five_months(conn: psycopg.Connection[Any]) -> None:
    now = billed(conn, at("2028-03-10"))

    assert "usage_hourly_202601" in forget(conn, now)
    assert months(conn, "usage_hourly")[0] == "202602"


@pytest.mark.usefixtures("acme")
def test_an_open_period_keeps_its_events(conn: psycopg.Connection[Any]) -> None:
    billed(conn, NOW)
    second = an_account("second", subscription_start=START)
    register_tenant(conn, second, START)
    record_usage(conn, second.tenant_id, [(at("2026-01-20"), "rpc_calls", Decimal(7))])

    assert forget(conn, NOW) == {"usage_event_202512": 1}
    assert months(conn, "usage_event")[0] == "202601"
    billed(conn, NOW)
    assert forget(conn, NOW) == {"usage_event_202601": 1}


@pytest.mark.usefixtures("acme")
def test_a_period_that_an_open_one_may_correct_keeps_its_events(
    conn: psycopg.Connection[Any],
) -> None:
    billed(conn, at("2027-03-10"))

    # January begins in the evening of December 31st.
    assert forget(conn, NOW) == {}
    billed(conn, NOW)
    assert len(forget(conn, NOW)) == 2


@pytest.mark.usefixtures("acme")
def test_books_are_as_before_and_prove_true(conn: psycopg.Connection[Any]) -> None:
    billed(conn, NOW)
    before = [invoice(conn, "acme", f"2026-{month:02}", NOW) for month in (1, 2)]

    forget(conn, NOW)

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
    conn: psycopg.Connection[Any], migrated: str, tmp_path: Path
) -> None:
    archive(conn, tmp_path, billed(conn, NOW))
    before = whole_content(conn)
    with psycopg.connect(migrated) as reader:
        reader.execute("SELECT count(*) FROM usage_event")
        with pytest.raises(Retryable):
            prune(conn, NOW)

    assert whole_content(conn) == before
    assert len(prune(conn, NOW)) == 2


@pytest.mark.usefixtures("acme")
def test_two_at_once_drop_each_month_once(
    conn: psycopg.Connection[Any], migrated: str, tmp_path: Path
) -> None:
    archive(conn, tmp_path, billed(conn, NOW))
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


@pytest.mark.usefixtures("acme")
def test_a_month_goes_only_after_a_file_has_it(
    conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    billed(conn, NOW)
    rows = conn.execute(JANUARY).fetchall()

    assert prune(conn, NOW) == {}
    written = archive(conn, tmp_path, NOW)
    assert archive(conn, tmp_path, NOW) == []
    assert prune(conn, NOW) == {"usage_event_202512": 1, "usage_event_202601": 1}

    name = "usage_event_202601.csv.gz"
    assert [(one.file, one.rows) for one in written] == [
        ("usage_event_202512.csv.gz", 0),
        (name, 1),
    ]
    subprocess.run(
        ["sha256sum", "--check", "--strict", *(f"{one.file}.sha256" for one in written)],
        cwd=tmp_path,
        check=True,
    )
    assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == written[1].sha256
    said = conn.execute(
        "SELECT actor, object, payload FROM audit_log WHERE action = 'archive' ORDER BY seq"
    ).fetchall()
    assert said[1] == ("ana", "usage_event_202601", {"rows": 1, "sha256": written[1].sha256})
    conn.execute("SELECT ensure_partitions('2026-01-01', '2026-02-01')")
    with conn.cursor().copy("COPY usage_event FROM STDIN (FORMAT csv, HEADER)") as back:
        back.write(gzip.decompress((tmp_path / name).read_bytes()))
    assert conn.execute(JANUARY).fetchall() == rows


JANUARY = """
SELECT * FROM usage_event WHERE occurred_at >= '2026-01-01Z' AND occurred_at < '2026-02-01Z'
"""


@pytest.mark.usefixtures("acme")
def test_what_comes_after_the_file_is_in_the_next_one(
    conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    archive(conn, tmp_path, billed(conn, NOW))
    second = an_account("second", subscription_start=START)
    register_tenant(conn, second, START)
    record_usage(conn, second.tenant_id, [(at("2026-01-20"), "rpc_calls", Decimal(7))])
    billed(conn, NOW)

    assert prune(conn, NOW) == {"usage_event_202512": 1}
    assert [(one.file, one.rows) for one in archive(conn, tmp_path, NOW)] == [
        ("usage_event_202601.csv.gz", 2)
    ]
    assert prune(conn, NOW) == {"usage_event_202601": 1}


def test_intervals_go_after_ten_years_and_what_still_runs_does_not(
    conn: psycopg.Connection[Any], acme: TenantAccount, tmp_path: Path
) -> None:
    runs = [
        Run(start=at(start), end=None if end is None else at(end), bot_id=uuid4())
        for start, end in [
            ("2026-01-05", "2026-01-31T23:59:59Z"),
            ("2026-01-31", "2026-02-01"),
            ("2026-01-07", "2026-09-01"),
            ("2026-01-08", None),
        ]
    ]
    record_runs(conn, acme.tenant_id, runs)
    now = billed(conn, at("2036-02-01"))
    before = [invoice(conn, "acme", f"2026-{month:02}", now) for month in (1, 2)]

    written = [one for one in archive(conn, tmp_path, now) if one.file.startswith("runtime")]
    gone = prune(conn, now)

    assert [(one.file, one.rows) for one in written] == [("runtime_interval_202601.csv.gz", 1)]
    assert gone["runtime_interval_202601"] == 1
    left = conn.execute("SELECT started_at FROM runtime_interval ORDER BY 1").fetchall()
    assert left == [(run.start,) for run in sorted(runs[1:], key=lambda run: run.start)]
    assert [invoice(conn, "acme", f"2026-{month:02}", now) for month in (1, 2)] == before
    assert {one.check for one in reconcile(conn, START, now)} <= {"intervals = pods"}
    assert archive(conn, tmp_path, now) == []
    assert prune(conn, now) == {}


def test_interval_of_a_period_that_is_not_billed_stays(
    conn: psycopg.Connection[Any], acme: TenantAccount, tmp_path: Path
) -> None:
    run = Run(start=at("2026-01-05"), end=at("2026-03-06"), bot_id=uuid4())
    record_runs(conn, acme.tenant_id, [run])
    conn.execute("SELECT ensure_periods('2036-04-01')")
    conn.execute("UPDATE billing_period SET state = 'closed' WHERE starts_at >= '2026-02-28'")

    written = [one.file for one in archive(conn, tmp_path, at("2036-04-01"))]
    gone = prune(conn, at("2036-04-01"))

    assert "runtime_interval_202603" not in {*gone, *(name[:23] for name in written)}
    assert conn.execute("SELECT count(*) FROM runtime_interval").fetchone() == (1,)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("nth_statement", range(2, 20))
def test_archive_that_breaks_off_anywhere_is_whole_after_the_next(
    conn: psycopg.Connection[Any], migrated: str, tmp_path: Path, nth_statement: int
) -> None:
    billed(conn, NOW)
    with (
        CutConnection(migrated, nth_statement, every_statement=True) as wire,
        psycopg.connect(wire.url, autocommit=True) as broken,
    ):
        pid = broken.info.backend_pid
        with pytest.raises(Retryable):
            archive(broken, tmp_path, NOW)

    # The server holds the lock of a writer until it hears that the connection is gone.
    gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    wait_until(lambda: conn.execute(gone, [pid]).fetchone() == (0,), what="it is noticed")
    archive(conn, tmp_path, NOW)

    noted = conn.execute("SELECT part, sha256 FROM archived_usage ORDER BY 1").fetchall()
    found = [
        (name, hashlib.sha256((tmp_path / f"{name}.csv.gz").read_bytes()).hexdigest())
        for name in ("usage_event_202512", "usage_event_202601")
    ]
    assert noted == found
    assert len(prune(conn, NOW)) == 2


@pytest.mark.usefixtures("acme")
def test_archive_that_cannot_be_written_lets_nothing_go(
    conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    billed(conn, NOW)
    (tmp_path / "usage_event_202512.csv.gz.part").mkdir()

    with pytest.raises(Rejected, match="cannot be written: Is a directory"):
        archive(conn, tmp_path, NOW)

    assert prune(conn, NOW) == {}


@pytest.mark.usefixtures("acme")
def test_second_archive_at_once_is_told_to_wait(
    conn: psycopg.Connection[Any], migrated: str, tmp_path: Path
) -> None:
    billed(conn, NOW)
    with psycopg.connect(migrated) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('archive', 0))")
        with pytest.raises(Retryable, match="Another"):
            archive(conn, tmp_path, NOW)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("acme")
def test_archive_that_goes_on_after_a_month_has_gone_leaves_its_file_alone(
    conn: psycopg.Connection[Any], migrated: str, tmp_path: Path
) -> None:
    billed(conn, NOW)
    slow = archive_usage(conn, tmp_path, "ana", NOW)
    next(slow)
    with psycopg.connect(migrated, autocommit=True) as other:
        written = archive(other, tmp_path, NOW)
        assert prune(other, NOW)

    assert list(slow) == []

    [last] = written
    assert hashlib.sha256((tmp_path / last.file).read_bytes()).hexdigest() == last.sha256


@pytest.mark.usefixtures("acme")
async def test_month_that_goes_while_it_is_looked_at_is_not_archived_as_empty(
    conn: psycopg.Connection[Any], migrated: str, tmp_path: Path
) -> None:
    billed(conn, NOW)
    slow = archive_usage(conn, tmp_path, "ana", NOW)
    next(slow)

    def go_on() -> None:
        with suppress(Retryable):
            list(slow)

    going_on = threading.Thread(target=go_on)
    with (
        psycopg.connect(migrated, autocommit=True) as other,
        psycopg.connect(migrated, autocommit=True) as third,
    ):
        *_, last = archive(other, tmp_path, NOW)
        with other.transaction():
            other.execute("LOCK archived_usage")  # which says what files have
            going_on.start()
            await until(lambda: waits_for_a_lock(third), seconds=20)
            with suppress(Retryable):
                prune(other, NOW)
        going_on.join()

    assert hashlib.sha256((tmp_path / last.file).read_bytes()).hexdigest() == last.sha256


@pytest.mark.usefixtures("acme")
def test_archive_has_the_rights_of_billing(conn: psycopg.Connection[Any], tmp_path: Path) -> None:
    billed(conn, NOW)
    become(conn, Role.BILLING)

    assert len(archive(conn, tmp_path, NOW)) == 2
