"""The proofs find every difference that is put into the books, and none where there is none."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from typer.testing import CliRunner

from botplane.billing.adjustments.store import (
    CouponTerms,
    CreditTerms,
    NoteTerms,
    Order,
    TaxTerms,
    grant_coupon,
    grant_credit,
    issue_credit_note,
    set_tax,
)
from botplane.billing.payments.fake import FakeProcessor
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import set_payment_method
from botplane.billing.proof.store import (
    CHECKS,
    Head,
    audit_heads,
    compare_processor,
    reconcile,
    verify_audit,
)
from botplane.billing.refunds.run import refund
from botplane.billing.refunds.store import RefundTerms
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.billing.voids.store import VoidTerms, void_invoice
from botplane.cli import app
from botplane.tenants.store import close_tenant, register_tenant
from tests.support.billing import (
    Run,
    a_plan,
    an_account,
    at,
    complete_until,
    record_runs,
    record_usage,
)

SINCE, NOW = at("2026-10-01"), at("2027-01-02")
POD = uuid4()


@pytest.fixture
def books(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Three months of a tenant with everything in its books."""
    calls = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}
    publish_plan(conn, a_plan(fee="0.40", prices=[calls]), SINCE)
    account = an_account()
    register_tenant(conn, account, SINCE)
    order = Order(tenant="acme", actor="ana", now=SINCE)
    grant_coupon(conn, order, CouponTerms(code="half", percent="33.3333", target="usage"))
    grant_credit(conn, order, CreditTerms(credit_id="bought", amount="3.00", kind="purchased"))
    gift = CreditTerms(credit_id="gift", amount="9.00", expires_at=at("2026-11-15"))
    grant_credit(conn, order, gift)
    set_tax(conn, order, TaxTerms(name="VAT", rate="0.19"))
    set_payment_method(conn, order, "cus_1", "pm_1")
    record_usage(conn, account.tenant_id, _usage("2026-10-05", "2026-11-05"))
    run = Run(start=at("2026-10-03"), end=at("2026-10-04"), pod_uid=POD)
    record_runs(conn, account.tenant_id, [run])
    conn.execute(
        "INSERT INTO pod SELECT tenant_id, pod_uid, bot_id, 'n', 'p', 'node', started_at,"
        " ended_at, ended_at FROM runtime_interval"
    )
    for month in (11, 12, 13):
        moment = at("2026-11-02") + timedelta(days=30.5 * (month - 11))
        complete_until(conn, moment)
        billing_run(conn, moment)
        record_usage(conn, account.tenant_id, _usage("2026-10-06"))
    wrong = VoidTerms(invoice_number="INV-2027-000001", reason="x")
    void_invoice(conn, wrong, "ana", NOW)
    billing_run(conn, NOW)
    record_usage(conn, account.tenant_id, _usage("2026-10-06"))
    _pay_and_take_back(conn)
    billing_run(conn, NOW)
    return conn


def _pay_and_take_back(conn: psycopg.Connection[Any]) -> None:
    processor = FakeProcessor()
    collect(conn, processor, NOW)
    note = NoteTerms(invoice_number="INV-2026-000001", reference="r", amount="1.00", reason="x")
    issue_credit_note(conn, note, "ana", NOW)
    back = RefundTerms(invoice_number="INV-2027-000002", reference="r", amount="0.10", reason="x")
    refund(conn, back, processor, ("ana", NOW))


def _usage(*days: str) -> list[Any]:
    return [(at(f"{day}T12:30:00Z"), "rpc_calls", Decimal(555)) for day in days]


def test_true_books_have_no_difference(books: psycopg.Connection[Any]) -> None:
    assert reconcile(books, SINCE, NOW) == []
    counts = books.execute(
        "SELECT (SELECT count(*) FROM invoice_discount), (SELECT count(*) FROM invoice_credit),"
        " (SELECT count(*) FROM payment_attempt WHERE status = 'succeeded'),"
        " (SELECT count(*) FROM invoice_line WHERE kind = 'correction'),"
        " (SELECT count(*) FROM ledger_txn WHERE txn_key LIKE 'expired/%'),"
        " (SELECT count(*) FROM ledger_txn WHERE txn_key LIKE 'void/%'),"
        " (SELECT count(*) FROM refund WHERE status = 'succeeded')"
    ).fetchone()
    assert counts is not None
    assert all(counts), counts


FALSE = [
    ("rollup = events", "UPDATE usage_hourly SET quantity = quantity + 1"),
    ("rollup = events", "DELETE FROM usage_hourly WHERE hour < '2026-11-01'"),
    ("rollup = events", "DELETE FROM usage_event WHERE occurred_at < '2026-11-01'"),
    ("intervals = pods", "DELETE FROM pod"),
    (
        "intervals = pods",
        "UPDATE runtime_interval SET ended_at = NULL, close_reason = NULL, close_quality = NULL",
    ),
    ("invoices = usage", "UPDATE price_tier SET unit_price = unit_price + 1"),
    ("invoices = usage", "DELETE FROM price"),
    ("invoices = usage", "UPDATE plan_version SET fee_minor = fee_minor + 1"),
    ("invoices = usage", "UPDATE subscription_phase SET starts_at = '2026-12-02'"),
    (
        "invoices = usage",
        """
        WITH taken AS (DELETE FROM late_usage),
            events AS (UPDATE usage_event SET quantity = quantity + 1)
        UPDATE usage_hourly SET quantity = quantity + 1
        """,
    ),
    ("invoices = ledger", "DELETE FROM ledger_entry WHERE txn_key LIKE 'credit/%'"),
    (
        "invoices = ledger",
        """
        UPDATE ledger_entry SET account = 'revenue_one_off'
        WHERE txn_key LIKE 'invoice/%' AND account = 'revenue_subscription'
        """,
    ),
    ("credit notes = ledger", "UPDATE credit_note SET tax_minor = tax_minor + 1"),
    ("credit notes = ledger", "DELETE FROM credit_note WHERE settled_by <> 'refund'"),
    ("credit notes = ledger", "DELETE FROM ledger_entry WHERE txn_key LIKE 'note/%'"),
    (
        "invoices = ledger",
        "UPDATE ledger_entry SET amount_minor = amount_minor + 1 WHERE txn_key LIKE 'invoice/%'",
    ),
    ("ledger = payments", "DELETE FROM ledger_entry WHERE txn_key LIKE 'payment/%'"),
    ("ledger = payments", "UPDATE payment_attempt SET status = 'failed'"),
    ("invoices = ledger", "DELETE FROM ledger_entry WHERE txn_key LIKE 'void/%'"),
    ("ledger = refunds", "DELETE FROM ledger_entry WHERE txn_key LIKE 'refund/%'"),
    ("ledger = refunds", "UPDATE refund SET status = 'failed'"),
    (
        "receivable = unpaid",
        """
        UPDATE ledger_entry SET amount_minor = amount_minor - 1
        WHERE txn_key LIKE 'payment/%' AND account = 'receivable'
        """,
    ),
    ("customer credit = grants", "UPDATE credit_grant SET amount_minor = amount_minor + 1"),
    ("ledger sums to zero", "DELETE FROM ledger_entry WHERE account = 'tax_payable'"),
    ("late usage is corrected", "UPDATE billing_period SET state = 'closed'"),
    ("trades have rates", "UPDATE trade_commission SET fx_rate = NULL"),
    (
        "marks = trades",
        """
        WITH taken AS (DELETE FROM late_usage)
        INSERT INTO commission_mark SELECT tenant_id, '2026-10', 1, 1 FROM tenant
        """,
    ),
    ("invoices = their inputs", "UPDATE invoice_line SET amount_minor = amount_minor + 1"),
    (
        "invoices = their inputs",
        "UPDATE invoice_line SET amount_minor = amount_minor + 1 WHERE kind = 'subscription'",
    ),
    ("invoices = their inputs", "UPDATE invoice_tax SET amount_minor = amount_minor + 1"),
    ("invoices = their inputs", "DELETE FROM invoice_discount"),
    (
        "invoices = their inputs",
        """
        UPDATE invoice SET subtotal_minor = subtotal_minor + 1, tax_minor = tax_minor - 1
        WHERE tax_minor > 0
        """,
    ),
    ("invoices = their inputs", "UPDATE invoice SET snapshot = snapshot - 'inputs'"),
    ("invoices = their inputs", "UPDATE invoice_line SET quantity = quantity + 1"),
    ("invoices = their inputs", "UPDATE invoice SET issued_at = issued_at + interval '1 s'"),
    (
        "invoices = their inputs",
        "UPDATE invoice SET snapshot = jsonb_set(snapshot, '{organization}', '\"Other\"')",
    ),
    (
        "invoices = their inputs",
        "UPDATE invoice SET snapshot = jsonb_set(snapshot, '{inputs,taxes,0,rate}', '\"0.2\"')",
    ),
]


@pytest.mark.parametrize(("check", "statement"), FALSE)
def test_difference_is_found(books: psycopg.Connection[Any], check: str, statement: Any) -> None:
    books.execute(
        "INSERT INTO trade_commission SELECT tenant_id, 't', NULL, '2027-01-01', 1, 1, 'USD', 1,"
        " NULL, NULL, now() FROM tenant"
    )
    # As somebody would who may do anything: with all guards off.
    books.execute("SET session_replication_role = replica")
    books.execute(statement)
    books.execute("SET session_replication_role = origin")

    found = {difference.check for difference in reconcile(books, SINCE, NOW)}

    assert check in found


def test_every_check_was_seen_to_fail() -> None:
    assert {check for check, _ in FALSE} == {*CHECKS, "invoices = their inputs"}


def test_late_usage_of_a_closed_tenant_is_named(
    books: psycopg.Connection[Any],
) -> None:
    [tenant_id] = books.execute("SELECT tenant_id FROM tenant").fetchall()[0]
    close_tenant(books, tenant_id, NOW)
    complete_until(books, at("2027-02-02"))
    billing_run(books, at("2027-02-02"))
    record_usage(books, tenant_id, _usage("2026-12-06"))

    [difference] = reconcile(books, SINCE, at("2027-02-02"))

    assert difference.subject == "late usage of 2026-12"


def test_payment_that_only_the_processor_knows_is_found(books: psycopg.Connection[Any]) -> None:
    silent = FakeProcessor()

    differences = compare_processor(books, silent, SINCE)

    found = {(difference.expected, difference.found) for difference in differences}
    assert found == {("0 payments", "1 recorded"), ("0 refunds", "1 recorded")}


CHANGES = [
    "UPDATE audit_log SET actor = 'eve' WHERE seq = 2",
    "UPDATE audit_log SET payload = '{}' WHERE seq = 2",
    "UPDATE audit_log SET at = at + interval '1 microsecond' WHERE seq = 2",
    "UPDATE audit_log SET hash = sha256('x') WHERE seq = 2",
    "DELETE FROM audit_log WHERE seq = 2",
    "UPDATE audit_log SET seq = 99 WHERE seq = 3",
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_audit_entry_is_found(books: psycopg.Connection[Any], change: Any) -> None:
    assert verify_audit(books, audit_heads(books)) == []

    books.execute("SET session_replication_role = replica")
    books.execute(change)

    assert verify_audit(books, []) != []


def test_entries_cut_off_at_the_end_are_found_by_a_kept_head(
    books: psycopg.Connection[Any],
) -> None:
    heads = audit_heads(books)
    books.execute("SET session_replication_role = replica")
    books.execute(
        "DELETE FROM audit_log l WHERE seq = (SELECT max(seq) FROM audit_log m"
        " WHERE m.chain = l.chain)"
    )

    assert verify_audit(books, []) == []
    assert {d.found for d in verify_audit(books, heads)} == {"no entry"}


def test_commands_tell_the_proof_and_the_difference(
    books: psycopg.Connection[Any],
    migrated: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DATABASE_URL", migrated)

    def typed(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(words))
        return result.exit_code, result.output.strip()

    assert typed("reconcile") == (0, "All records agree.")
    kept = tmp_path / "heads.json"
    kept.write_text(typed("audit", "heads")[1])
    assert {Head(**head).chain[:6] for head in json.loads(kept.read_text())} == {"system", "tenant"}
    intact = (0, "The audit chains are intact.")
    assert typed("audit", "verify", "--heads", str(kept)) == intact
    other = tmp_path / "other.json"
    other.write_text("not it")
    code, said = typed("audit", "verify", "--heads", str(other))
    assert (code, said.split(":")[0]) == (1, "FileInvalid")
    assert typed("reconcile", "--days", "-1")[0] == 2
    books.execute("SET session_replication_role = replica")
    books.execute("DELETE FROM audit_log WHERE chain = 'system'")
    books.execute("DELETE FROM ledger_entry WHERE account = 'cash'")
    assert typed("audit", "verify") == intact
    code, said = typed("audit", "verify", "--heads", str(kept))
    assert (code, said.split(":")[0]) == (1, "audit chain")
    code, said = typed("reconcile")
    assert (code, "ledger = payments" in said) == (1, True)
