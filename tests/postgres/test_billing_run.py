"""The billing run: when it bills, what it leaves alone, and that it does so once."""

from __future__ import annotations

import threading
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from botplane.billing.invoices import Status, content_hash
from botplane.billing.run import RunReport, billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.errors import Rejected
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.store import close_tenant, register_tenant
from tests.support.billing import (
    Run,
    a_plan,
    an_account,
    at,
    complete_until,
    per_hour,
    record_runs,
    record_usage,
    whole_content,
)

NOW = at("2026-12-10T09:00:00Z")


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> TenantAccount:
    """A tenant that ran one bot for ten hours in November."""
    publish_plan(conn, a_plan(fee="10.00", prices=[per_hour("0.06")]), at("2026-10-01"))
    account = an_account(subscription_start=at("2026-11-01"))
    register_tenant(conn, account, at("2026-11-01"))
    ten_hours = Run(start=at("2026-11-03T00:00:00Z"), end=at("2026-11-03T10:00:00Z"))
    record_runs(conn, account.tenant_id, [ten_hours])
    return account


@pytest.mark.usefixtures("acme")
def test_ended_period_is_billed_when_its_usage_is_complete(conn: psycopg.Connection[Any]) -> None:
    complete_until(conn, at("2026-12-01"))

    report = billing_run(conn, NOW)

    assert (report.billed, report.waiting, report.parked) == (1, 0, ())
    issued = invoice(conn, "acme", "2026-11", NOW)
    assert (issued.number, issued.total_minor) == ("INV-2026-000001", 1060)
    assert issued.status is Status.FINALIZED


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("complete", [None, "2026-11-30T23:59:59Z"])
def test_period_waits_while_usage_may_be_missing(
    conn: psycopg.Connection[Any], complete: str | None
) -> None:
    if complete is not None:
        complete_until(conn, at(complete))

    report = billing_run(conn, NOW)

    assert (report.billed, report.waiting) == (0, 1)
    provisional = invoice(conn, "acme", "2026-11", NOW)
    assert (provisional.status, provisional.number) == (Status.DRAFT, None)
    assert "etering" in str(provisional.draft_reason) or "complete" in str(provisional.draft_reason)
    assert conn.execute("SELECT count(*) FROM invoice").fetchone() == (0,)


@pytest.mark.usefixtures("acme")
def test_period_waits_for_the_slowest_source(conn: psycopg.Connection[Any]) -> None:
    complete_until(conn, at("2026-12-05"))
    complete_until(conn, at("2026-11-20"), source="gateway")

    assert billing_run(conn, NOW).waiting == 1

    complete_until(conn, at("2026-12-01"), source="gateway")
    assert billing_run(conn, NOW).billed == 1


@pytest.mark.usefixtures("acme")
def test_other_sources_do_not_speak_for_metering(conn: psycopg.Connection[Any]) -> None:
    complete_until(conn, at("2026-12-05"), source="gateway")

    report = billing_run(conn, NOW)

    assert (report.billed, report.waiting, report.complete_until) == (0, 1, None)


def test_open_interval_counts_up_to_now_in_a_draft(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    record_runs(conn, acme.tenant_id, [Run(start=at("2026-12-09T09:00:00Z"), end=None)])

    provisional = invoice(conn, "acme", None, NOW)

    assert [line.quantity for line in provisional.lines] == [1, 24 * 3600]
    assert provisional.draft_reason == "The period runs until 2027-01-01 00:00 UTC."


def test_open_interval_counts_up_to_the_end_of_the_period(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    record_runs(conn, acme.tenant_id, [Run(start=at("2026-11-30T00:00:00Z"), end=None)])
    complete_until(conn, NOW)

    issued = invoice(conn, "acme", "2026-11", NOW)

    assert [line.quantity for line in issued.lines] == [1, 34 * 3600]


def test_second_run_changes_nothing(conn: psycopg.Connection[Any], acme: TenantAccount) -> None:
    record_usage(conn, acme.tenant_id, [(at("2026-11-05T10:30:00Z"), "rpc_calls", Decimal(7))])
    complete_until(conn, at("2026-12-01"))
    billing_run(conn, NOW)
    before = whole_content(conn)

    billing_run(conn, NOW)
    invoice(conn, "acme", "2026-11", NOW + timedelta(hours=1))
    invoice(conn, "acme", None, NOW)

    assert whole_content(conn) == before


@pytest.mark.usefixtures("acme")
def test_two_runs_at_once_bill_each_period_once(
    migrated: str, conn: psycopg.Connection[Any]
) -> None:
    for number in range(40):
        register_tenant(conn, an_account(f"t{number}"), at("2026-10-01"))
    complete_until(conn, at("2026-12-01"))
    start = threading.Barrier(3)
    reports: list[RunReport] = []

    def work() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            start.wait()
            reports.append(billing_run(mine, NOW))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert sum(report.billed for report in reports) == 81
    assert [report.parked for report in reports] == [(), (), ()]
    numbers = conn.execute("SELECT number FROM invoice ORDER BY number").fetchall()
    assert [number for (number,) in numbers] == [f"INV-2026-{n:06}" for n in range(1, 82)]


@pytest.mark.usefixtures("acme")
def test_tenant_that_cannot_be_billed_is_parked_and_the_others_are_billed(
    conn: psycopg.Connection[Any],
) -> None:
    register_tenant(conn, an_account("other"), at("2026-11-01"))
    publish_plan(conn, a_plan("huge", prices=[_expensive()]), at("2026-10-01"))
    unbillable = an_account("broken", plan="huge", subscription_start=at("2026-11-01"))
    register_tenant(conn, unbillable, at("2026-11-01"))
    record_usage(conn, unbillable.tenant_id, [(at("2026-11-05"), "rpc_calls", Decimal("9e24"))])
    complete_until(conn, at("2026-12-01"))

    report = billing_run(conn, NOW)

    assert [parked.billed.tenant for parked in report.parked] == ["broken"]
    assert report.billed == 3
    conn.execute("DELETE FROM usage_hourly WHERE tenant_id = %s", [unbillable.tenant_id])
    assert billing_run(conn, NOW).billed == 1
    numbers = conn.execute("SELECT number FROM invoice ORDER BY number").fetchall()
    assert [number for (number,) in numbers] == [f"INV-2026-{n:06}" for n in range(1, 5)]


def _expensive() -> dict[str, Any]:
    return {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "999999999"}]}


@pytest.mark.usefixtures("acme")
def test_content_hash_is_that_of_the_stored_document(conn: psycopg.Connection[Any]) -> None:
    complete_until(conn, at("2026-12-01"))

    issued = invoice(conn, "acme", "2026-11", NOW)

    assert issued.content_hash == content_hash(issued)


def test_invoice_keeps_the_name_that_it_was_issued_to(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    complete_until(conn, at("2026-12-01"))
    invoice(conn, "acme", "2026-11", NOW)
    register_tenant(conn, an_account(**vars(acme) | {"organization_name": "Other SL"}), NOW)

    issued = invoice(conn, "acme", "2026-11", NOW)

    assert issued.billed.organization == "Acme Trading"
    assert issued.content_hash == content_hash(issued)


@pytest.mark.usefixtures("acme")
def test_ledger_balances_and_owes_what_the_invoices_say(conn: psycopg.Connection[Any]) -> None:
    complete_until(conn, at("2026-12-01"))
    billing_run(conn, NOW)

    entries = conn.execute("SELECT account, amount_minor FROM ledger_entry ORDER BY 1").fetchall()

    assert entries == [
        ("receivable", 1060),
        ("revenue_subscription", -1000),
        ("revenue_usage", -60),
    ]


def test_invoice_over_nothing_is_paid_and_leaves_the_ledger_alone(
    conn: psycopg.Connection[Any],
) -> None:
    publish_plan(conn, a_plan(), at("2026-10-01"))
    register_tenant(conn, an_account(), at("2026-10-01"))
    complete_until(conn, at("2026-12-01"))

    issued = invoice(conn, "acme", "2026-10", NOW)

    assert (issued.total_minor, issued.status) == (0, Status.PAID)
    assert conn.execute("SELECT count(*) FROM ledger_txn").fetchone() == (0,)


def test_closed_tenant_is_billed_until_it_closed(
    conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    close_tenant(conn, acme.tenant_id, at("2026-11-16"))
    complete_until(conn, at("2027-03-01"))

    assert billing_run(conn, at("2027-03-01")).billed == 1
    assert invoice(conn, "acme", "2026-11", NOW).total_minor == 560


def test_tenant_from_another_system_is_billed_for_the_past(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(fee="10.00"), NOW)
    register_tenant(conn, an_account(subscription_start=at("2026-09-16")), NOW)
    complete_until(conn, at("2026-12-01"))

    assert billing_run(conn, NOW).billed == 3
    totals = [invoice(conn, "acme", f"2026-{m:02}", NOW).total_minor for m in (9, 10, 11)]
    assert totals == [500, 1000, 1000]


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("tenant", "period", "reason"),
    [
        ("nobody", None, "TenantNotFound"),
        ("acme", "2026-10", "PeriodNotFound"),
        ("acme", "2027-01", "PeriodNotFound"),
        ("acme", "october", "PeriodNotFound"),
    ],
)
def test_unknown_tenant_or_period_is_said_in_words(
    conn: psycopg.Connection[Any],
    tenant: str,
    period: str | None,
    reason: str,
) -> None:
    with pytest.raises(Rejected) as refused:
        invoice(conn, tenant, period, NOW)

    assert refused.value.reason == reason
    assert tenant in refused.value.message
