"""What the database itself refuses, whoever asks."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import errors

from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.tenants.store import register_tenant
from tests.support.billing import (
    Run,
    a_plan,
    an_account,
    at,
    complete_until,
    per_hour,
    record_runs,
    whole_content,
)

FORBIDDEN = [
    "UPDATE invoice SET total_minor = 0, subtotal_minor = 0, due_minor = 0",
    "UPDATE invoice SET number = 'INV-2026-000009'",
    "UPDATE invoice SET snapshot = '{}'",
    "UPDATE invoice SET status = 'draft'",
    "DELETE FROM invoice",
    "TRUNCATE invoice CASCADE",
    "UPDATE invoice_line SET amount_minor = 0",
    "DELETE FROM invoice_line",
    "TRUNCATE invoice_line",
    """
    INSERT INTO invoice_line SELECT tenant_id, invoice_id, 'more', kind, meter, starts_at,
        ends_at, quantity, exact, amount_minor, detail FROM invoice_line LIMIT 1
    """,
    "UPDATE ledger_entry SET amount_minor = amount_minor + 1",
    "DELETE FROM ledger_entry",
    "TRUNCATE ledger_entry",
    "DELETE FROM ledger_txn",
    "UPDATE billing_period SET state = 'open'",
    "UPDATE billing_period SET ends_at = ends_at + interval '1 day'",
    "DELETE FROM billing_period",
    "UPDATE invoice_counter SET last = 0",
    "DELETE FROM invoice_counter",
    "UPDATE price SET included = 1",
    "UPDATE price_tier SET unit_price = 0",
    "DELETE FROM price_tier",
    "TRUNCATE price_tier",
    "INSERT INTO price VALUES ('basic', 1, 'rpc_calls', 'per_unit', 0, 1)",
    "INSERT INTO price_tier VALUES ('basic', 1, 'bot_seconds', 5, NULL, 0, 0)",
    "UPDATE plan_version SET fee_minor = 0",
    "UPDATE plan_version SET effective = tstzrange('2026-01-01', NULL)",
    "DELETE FROM plan_version",
    "UPDATE plan SET currency = 'EUR'",
    "UPDATE tenant SET time_zone = 'Asia/Tokyo'",
    "UPDATE tenant SET currency = 'EUR'",
    "DELETE FROM tenant",
]

BALANCED = "(VALUES ('receivable', 5), ('revenue_usage', -5)) AS e (account, minor)"
A_DRAFT = """
    INSERT INTO invoice SELECT tenant_id, gen_random_uuid(), {period}, 'draft', 'other', {currency},
        subtotal_minor, discount_minor, tax_minor, total_minor, credit_minor, carried_minor,
        due_minor, issued_at, snapshot, content_hash FROM invoice
"""
A_LINE = """
    INSERT INTO invoice_line SELECT tenant_id, {invoice}, 'more', 'usage', {meter}, starts_at,
        ends_at, quantity, exact, amount_minor, detail FROM invoice_line LIMIT 1
"""
AN_ENTRY = f"""
    INSERT INTO ledger_entry SELECT tenant_id, {{txn}}, e.account, {{currency}}, e.minor
    FROM ledger_txn, {BALANCED} LIMIT 2
"""
ORPHANS = [
    A_DRAFT.format(period="'1999-01'", currency="currency"),
    A_DRAFT.format(period="period", currency="'XXX'"),
    A_LINE.format(invoice="gen_random_uuid()", meter="'bot_seconds'"),
    A_LINE.format(
        invoice="(SELECT invoice_id FROM invoice WHERE status = 'draft')", meter="'nothing'"
    ),
    AN_ENTRY.format(txn="'nothing'", currency="'USD'"),
    AN_ENTRY.format(txn="'new'", currency="'XXX'"),
    "DELETE FROM currency WHERE currency = 'USD'",
    "UPDATE currency SET currency = 'XXX' WHERE currency = 'USD'",
    "TRUNCATE currency",
    "DELETE FROM meter WHERE meter = 'bot_seconds'",
    "UPDATE meter SET meter = 'nothing' WHERE meter = 'bot_seconds'",
    "TRUNCATE meter",
]


@pytest.fixture
def billed(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A database with one issued invoice."""
    publish_plan(conn, a_plan(fee="10.00", prices=[per_hour("0.06")]), at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    run = Run(start=at("2026-10-03"), end=at("2026-10-04"))
    record_runs(conn, account.tenant_id, [run])
    complete_until(conn, at("2026-11-01"))
    assert billing_run(conn, at("2026-11-02")).billed == 1
    return conn


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_issued_and_published_rows_never_change(
    billed: psycopg.Connection[Any], statement: Any
) -> None:
    before = whole_content(billed)

    with pytest.raises(errors.RestrictViolation):
        billed.execute(statement)

    assert whole_content(billed) == before


@pytest.mark.parametrize("statement", ORPHANS)
def test_nothing_billed_belongs_to_nothing(billed: psycopg.Connection[Any], statement: Any) -> None:
    billed.execute("UPDATE invoice SET status = 'void'")
    if statement not in ORPHANS[:2]:
        billed.execute(A_DRAFT.format(period="period", currency="currency"))
    billed.execute("INSERT INTO ledger_txn SELECT tenant_id, 'new', now() FROM tenant")
    before = whole_content(billed)

    with pytest.raises((errors.IntegrityError, errors.FeatureNotSupported)):
        billed.execute(statement)

    assert whole_content(billed) == before


def test_invoice_is_paid_once_and_cannot_be_paid_after_void(
    billed: psycopg.Connection[Any],
) -> None:
    billed.execute("UPDATE invoice SET status = 'void'")

    with pytest.raises(errors.RestrictViolation):
        billed.execute("UPDATE invoice SET status = 'paid'")


def test_second_invoice_for_a_period_is_refused(billed: psycopg.Connection[Any]) -> None:
    with pytest.raises(errors.UniqueViolation):
        billed.execute(
            "INSERT INTO invoice SELECT tenant_id, gen_random_uuid(), period, 'draft', 'other',"
            " currency, subtotal_minor, discount_minor, tax_minor, total_minor, credit_minor,"
            " carried_minor, due_minor, issued_at, snapshot, content_hash FROM invoice"
        )


def test_ledger_transaction_that_does_not_balance_is_refused(
    billed: psycopg.Connection[Any],
) -> None:
    with pytest.raises(errors.CheckViolation):
        billed.execute(
            """
            WITH t AS (INSERT INTO ledger_txn SELECT tenant_id, 'odd', now() FROM tenant)
            INSERT INTO ledger_entry SELECT tenant_id, 'odd', 'receivable', 'USD', 5 FROM tenant
            """
        )


def test_invoice_whose_lines_do_not_sum_is_refused(billed: psycopg.Connection[Any]) -> None:
    billed.execute("UPDATE invoice SET status = 'void'")
    billed.execute(
        """
        INSERT INTO invoice SELECT tenant_id, gen_random_uuid(), period, 'draft', 'other',
            currency, 1, 0, 0, 1, 0, 0, 1, issued_at, snapshot, content_hash FROM invoice
        """
    )

    with pytest.raises(errors.CheckViolation):
        billed.execute("UPDATE invoice SET status = 'finalized' WHERE status = 'draft'")


@pytest.mark.parametrize(
    ("start", "end"),
    [("2026-10-03T05:00:00Z", "2026-10-03T06:00:00Z"), ("2026-10-03T23:59:59Z", None)],
)
def test_one_container_cannot_run_twice_at_once(
    billed: psycopg.Connection[Any], start: str, end: str | None
) -> None:
    tenant_id, pod_uid = billed.execute(
        "SELECT tenant_id, pod_uid FROM runtime_interval"
    ).fetchall()[0]
    ends_at = None if end is None else at(end)
    again = Run(start=at(start), end=ends_at, restart=1, pod_uid=pod_uid)

    with pytest.raises(errors.ExclusionViolation):
        record_runs(billed, tenant_id, [again])


def test_every_key_of_a_tenant_table_starts_with_the_tenant(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute("""
        SELECT i.indrelid::regclass::text, i.indexrelid::regclass::text, a.attname
        FROM pg_index i
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE (i.indisunique OR i.indisexclusion) AND i.indrelid IN (
            SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            JOIN pg_attribute t ON t.attrelid = c.oid AND t.attname = 'tenant_id'
            WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p'))
        """).fetchall()
    other = {index for _, index, first in rows if first != "tenant_id"}

    assert len(rows) > 20
    # Names are unique among open tenants only: this table is the directory, not a tenant's data.
    assert other == {"tenant_open_name", "tenant_open_namespace"}


def test_usage_tables_have_no_foreign_keys(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute(
        "SELECT conrelid::regclass::text FROM pg_constraint WHERE contype = 'f'"
    ).fetchall()

    hot = ("runtime_interval", "usage_", "pod", "bot", "meter_gap")
    assert [table for (table,) in rows if table.startswith(hot)] == []
