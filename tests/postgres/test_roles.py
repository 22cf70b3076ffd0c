"""Who may read and write what: rows by tenant, tables by process, the past by nobody."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

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
from botplane.billing.dunning.store import take_untold
from botplane.billing.payments.fake import FakeProcessor
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import set_payment_method
from botplane.billing.proof.store import reconcile, verify_audit
from botplane.billing.refunds.run import refund
from botplane.billing.refunds.store import RefundTerms
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.billing.voids.store import VoidTerms, void_invoice
from botplane.metering.events.store import IngestKey, register_keys, revoke_keys, secret_hash
from botplane.store.migrate import migrate
from botplane.tenants.store import close_tenant, register_tenant
from botplane.usage.store import enforce_limits, standings
from tests.support.billing import (
    Run,
    a_plan,
    an_account,
    at,
    complete_until,
    per_hour,
    record_runs,
    record_won_and_lost,
)
from tests.support.controlplane.postgres import Postgres

NOW = at("2026-11-02")
ACME, BETA = an_account(), an_account("beta")
KEY = IngestKey(
    key_id="k1", tenant_id=ACME.tenant_id, bot_id=None, secret_hash=secret_hash("secret")
)
PROCESSES = (
    "botplane_operator",
    "botplane_metering",
    "botplane_billing",
    "botplane_web",
    "botplane_gateway",
)


@contextmanager
def as_role(conn: psycopg.Connection[Any], role: str) -> Iterator[None]:
    conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    try:
        yield
    finally:
        conn.execute("RESET ROLE")


@contextmanager
def a_world(postgres: Postgres) -> Iterator[psycopg.Connection[Any]]:
    """Serve two tenants from registration to payment, each step by its own role."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    url = postgres.create_database(name)
    migrate(url)
    with psycopg.connect(url, autocommit=True, options="-c timezone=UTC") as conn:
        _serve(conn)
        yield conn
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def shared_world(postgres: Postgres) -> Iterator[psycopg.Connection[Any]]:
    with a_world(postgres) as conn:
        yield conn


@pytest.fixture
def world(shared_world: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A world in which a test is refused everything that it tries."""
    shared_world.execute("RESET ROLE")
    shared_world.execute("RESET botplane.tenant")
    return shared_world


def _serve(conn: psycopg.Connection[Any]) -> None:
    with as_role(conn, "botplane_operator"):
        terms = {"rate": "0.10", "netting": "HighWaterMark"}
        publish_plan(
            conn, a_plan(fee="10.00", prices=[per_hour("0.06")], commission=terms), at("2026-10-01")
        )
        publish_plan(
            conn, a_plan(fee="11.00", prices=[per_hour("0.06")], commission=terms), at("2026-10-09")
        )
        for account in (ACME, BETA):
            register_tenant(conn, account, at("2026-10-01"))
    with as_role(conn, "botplane_metering"):
        for account in (ACME, BETA):
            run = Run(start=at("2026-10-03"), end=at("2026-10-04"))
            record_runs(conn, account.tenant_id, [run])
        complete_until(conn, NOW)
    with as_role(conn, "botplane_web"):
        record_won_and_lost(conn, ACME.tenant_id, [(at("2026-10-05"), Decimal(100), Decimal(1))])
    with as_role(conn, "botplane_billing"):
        order = Order(tenant="acme", actor="ana", now=at("2026-10-01"))
        grant_coupon(conn, order, CouponTerms(code="c", percent="10"))
        grant_credit(conn, order, CreditTerms(credit_id="g", amount="1.00"))
        set_tax(conn, order, TaxTerms(name="VAT", rate="0.19"))
        set_payment_method(conn, order, "cus", "pm")
        assert billing_run(conn, NOW).billed == 2
        collect(conn, FakeProcessor(), NOW)
        number = str(invoice(conn, "acme", "2026-10", NOW).number)
        note = NoteTerms(invoice_number=number, reference="r", amount="1.00", reason="x")
        issue_credit_note(conn, note, "ana", NOW)


def test_each_process_can_do_its_work_with_its_role(postgres: Postgres) -> None:
    with a_world(postgres) as world:
        _go_on(world)


def _go_on(world: psycopg.Connection[Any]) -> None:
    with as_role(world, "botplane_metering"):
        record_runs(world, ACME.tenant_id, [Run(start=at("2026-10-05"), end=at("2026-10-06"))])
    with as_role(world, "botplane_billing"):
        complete_until_next = "UPDATE source_watermark SET complete_until = '2026-12-02'"
        with pytest.raises(errors.InsufficientPrivilege):
            world.execute(complete_until_next)
    complete_until(world, at("2026-12-02"))
    with as_role(world, "botplane_billing"):
        assert billing_run(world, at("2026-12-02")).billed == 2
        assert [line.kind for line in invoice(world, "acme", "2026-11", NOW).lines][-1] == (
            "correction"
        )
        found = {one.check for one in reconcile(world, at("2026-10-01"), at("2026-12-02"))}
        assert found == {"intervals = pods"}
        assert verify_audit(world, []) == []
        _take_back(world)
    with as_role(world, "botplane_operator"):
        register_tenant(world, replace(ACME, spend_limit=Decimal(9)), at("2026-12-03"))
        register_keys(world, [KEY], at("2026-12-03"))
        revoke_keys(world, [(KEY.tenant_id, KEY.key_id)], at("2026-12-03"))
        stands, _ = standings(world, at("2026-12-03"))
        enforce_limits(world, stands.values(), at("2026-12-03"))
        told = {notice.kind.value for notice in take_untold(world, at("2026-12-03"))}
        assert told == {"due", "given_up"}
        close_tenant(world, ACME.tenant_id, at("2026-12-05"))
    assert verify_audit(world, []) == []


def _take_back(world: psycopg.Connection[Any]) -> None:
    """Let billing make an invoice void, bill it again, pay back a payment and remind who owes."""
    now, fake = at("2026-12-02"), FakeProcessor()
    number = str(invoice(world, "beta", "2026-11", now).number)
    void_invoice(world, VoidTerms(invoice_number=number, reason="x"), "ana", now)
    assert billing_run(world, now).billed == 1
    collect(world, fake, now)
    paid = RefundTerms(invoice_number=_paid(world), reference="r", amount="1.00", reason="x")
    assert refund(world, paid, fake, ("ana", now)).status == "succeeded"


def _paid(world: psycopg.Connection[Any]) -> str:
    row = world.execute(
        "SELECT i.number FROM invoice i JOIN payment_attempt a ON a.invoice_id = i.invoice_id"
        " WHERE a.status = 'succeeded' ORDER BY i.number DESC LIMIT 1"
    ).fetchone()
    assert row is not None
    return str(row[0])


def test_no_table_with_tenants_is_without_forced_row_security(
    conn: psycopg.Connection[Any],
) -> None:
    tables = conn.execute("""
        SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity,
            (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
            AND NOT c.relispartition
        """).fetchall()

    assert len(tables) > 20
    assert [name for name, is_forced, policies in tables if not is_forced or policies < 5] == []


def test_an_administrator_who_makes_the_roles_later_grants_all_of_it(
    conn: psycopg.Connection[Any],
) -> None:
    rights = """
        SELECT grantee, table_name, NULL, privilege_type FROM information_schema.table_privileges
        UNION SELECT grantee, table_name, column_name, privilege_type
        FROM information_schema.column_privileges ORDER BY 1, 2, 3, 4
    """
    before = conn.execute(rights).fetchall()
    conn.execute("DROP POLICY botplane_billing ON invoice")
    for role in ("botplane_billing", "botplane_gateway", "botplane_tenant"):
        conn.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}")

    conn.execute("SELECT secure_database()")

    assert conn.execute(rights).fetchall() == before
    assert conn.execute("SELECT FROM pg_policy WHERE polname = 'botplane_billing'").rowcount > 20


def test_partitions_are_reached_through_their_table_only(conn: psycopg.Connection[Any]) -> None:
    granted = conn.execute(
        "SELECT relname FROM pg_class WHERE relispartition AND relacl IS NOT NULL AND relkind = 'r'"
    ).fetchall()

    assert granted == []


def test_views_show_what_their_reader_may_see(conn: psycopg.Connection[Any]) -> None:
    views = conn.execute("""
        SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace
            AND NOT COALESCE(reloptions @> ARRAY['security_invoker=true'], false)
        """).fetchall()

    assert views == []


@pytest.mark.parametrize(
    "table",
    ["invoice", "invoice_line", "ledger_entry", "credit_left", "invoice_open", "runtime_interval"],
)
def test_tenant_sees_its_own_rows_only(world: psycopg.Connection[Any], table: str) -> None:
    query = sql.SQL("SELECT DISTINCT tenant_id FROM {}").format(sql.Identifier(table))
    with as_role(world, "botplane_tenant"):
        assert world.execute(query).fetchall() == []
        world.execute("SELECT set_config('botplane.tenant', %s, false)", [str(ACME.tenant_id)])
        assert world.execute(query).fetchall() == [(ACME.tenant_id,)]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM tenant_profile",
        "SELECT * FROM audit_log",
        "SELECT * FROM webhook_inbox",
        "SELECT * FROM tenant_payment",
        "UPDATE invoice SET status = 'paid'",
        "INSERT INTO credit_grant SELECT * FROM credit_grant",
        "DELETE FROM usage_hourly",
        "SELECT audit_append('tenant/x', 'x', 'x', 'x', '{}', now())",
        "SELECT mark_late(ARRAY[gen_random_uuid()], ARRAY[now()], ARRAY[now()])",
    ],
)
def test_tenant_reads_bills_and_writes_nothing(
    world: psycopg.Connection[Any], statement: Any
) -> None:
    world.execute("SELECT set_config('botplane.tenant', %s, false)", [str(ACME.tenant_id)])

    with as_role(world, "botplane_tenant"), pytest.raises(errors.InsufficientPrivilege):
        world.execute(statement)


def test_usage_of_a_session_without_role_is_refused_to_strangers(
    world: psycopg.Connection[Any],
) -> None:
    world.execute("DROP ROLE IF EXISTS botplane_stranger_of_a_test")
    world.execute("CREATE ROLE botplane_stranger_of_a_test")
    try:
        with (
            as_role(world, "botplane_stranger_of_a_test"),
            pytest.raises(errors.InsufficientPrivilege),
        ):
            world.execute("SELECT * FROM invoice")
    finally:
        world.execute("RESET ROLE")
        world.execute("DROP ROLE botplane_stranger_of_a_test")


@pytest.mark.parametrize("role", PROCESSES)
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM invoice",
        "DELETE FROM ledger_entry",
        "DELETE FROM audit_log",
        "UPDATE audit_log SET actor = 'x'",
        "INSERT INTO audit_log SELECT * FROM audit_log",
        "UPDATE ledger_entry SET amount_minor = 1",
        "UPDATE invoice_line SET amount_minor = 1",
        "DELETE FROM usage_event",
        "DELETE FROM runtime_interval",
        "TRUNCATE invoice CASCADE",
        "DROP TABLE invoice",
        "ALTER TABLE invoice DISABLE TRIGGER ALL",
        "ALTER TABLE invoice NO FORCE ROW LEVEL SECURITY",
        "SET session_replication_role = replica",
    ],
)
def test_no_process_can_change_the_past(
    world: psycopg.Connection[Any], role: str, statement: Any
) -> None:
    with as_role(world, role), pytest.raises(errors.InsufficientPrivilege):
        world.execute(statement)


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("botplane_metering", "UPDATE invoice SET status = 'paid'"),
        ("botplane_metering", "UPDATE plan_version SET fee_minor = 0"),
        ("botplane_web", "INSERT INTO credit_grant SELECT * FROM credit_grant"),
        ("botplane_web", "UPDATE runtime_interval SET ended_at = NULL"),
        ("botplane_gateway", "SELECT * FROM invoice"),
        ("botplane_gateway", "SELECT name FROM tenant"),
        ("botplane_gateway", "UPDATE ingest_key SET revoked_at = NULL"),
        ("botplane_gateway", "UPDATE spend_block SET cleared_at = now()"),
        ("botplane_gateway", "UPDATE usage_event SET quantity = 0"),
        ("botplane_operator", "UPDATE invoice SET status = 'paid'"),
        ("botplane_operator", "INSERT INTO ledger_txn SELECT * FROM ledger_txn"),
        ("botplane_billing", "UPDATE runtime_interval SET ended_at = NULL"),
        ("botplane_billing", "INSERT INTO usage_event SELECT * FROM usage_event"),
        ("botplane_billing", "INSERT INTO price SELECT * FROM price"),
    ],
)
def test_no_process_does_the_work_of_another(
    world: psycopg.Connection[Any], role: str, statement: Any
) -> None:
    with as_role(world, role), pytest.raises(errors.InsufficientPrivilege):
        world.execute(statement)


def test_what_runs_with_more_rights_does_not_run_what_its_caller_put_there(
    world: psycopg.Connection[Any],
) -> None:
    with world.transaction(force_rollback=True), as_role(world, "botplane_web"):
        world.execute(
            "CREATE TEMP TABLE audit_log (chain text, seq bigint, at timestamptz, actor text,"
            " action text, object text, payload jsonb, hash bytea)"
        )
        world.execute("DISCARD PLANS")
        world.execute(
            "CREATE FUNCTION pg_temp.become() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN RAISE EXCEPTION ''I am %'', current_user; END'"
        )
        world.execute(
            "CREATE TRIGGER become BEFORE INSERT ON pg_temp.audit_log"
            " FOR EACH ROW EXECUTE FUNCTION pg_temp.become()"
        )
        world.execute("GRANT ALL ON pg_temp.audit_log TO PUBLIC")

        world.execute("SELECT audit_append('system', 'web', 'try', 'x', '{}', now())")

        assert world.execute("SELECT * FROM pg_temp.audit_log").fetchall() == []


def test_a_guard_looks_at_the_ledger_and_not_at_a_temporary_table_of_its_name(
    world: psycopg.Connection[Any],
) -> None:
    with world.transaction(force_rollback=True), as_role(world, "botplane_billing"):
        world.execute("CREATE TEMP TABLE ledger_entry (LIKE public.ledger_entry)")
        world.execute("DISCARD PLANS")
        world.execute(
            "INSERT INTO ledger_txn (tenant_id, txn_key, at) VALUES (%s, 'odd', now())",
            [ACME.tenant_id],
        )

        with pytest.raises(errors.CheckViolation, match="does not balance"), world.transaction():
            world.execute(
                "INSERT INTO public.ledger_entry (tenant_id, txn_key, account, currency,"
                " amount_minor) VALUES (%s, 'odd', 'cash', 'USD', 7)",
                [ACME.tenant_id],
            )


@pytest.mark.parametrize("may", ["CREATEROLE", "NOCREATEROLE"])
def test_owner_of_the_database_needs_no_superuser(postgres: Postgres, may: str) -> None:
    suffix = uuid.uuid4().hex[:12]
    owner, name = f"owner_{suffix}", f"test_{suffix}"
    url = postgres.create_database(name)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(sql.SQL(f"CREATE ROLE {owner} LOGIN {may}"))
        admin.execute(sql.SQL(f"ALTER DATABASE {name} OWNER TO {owner}"))
        admin.execute(sql.SQL(f"ALTER SCHEMA public OWNER TO {owner}"))
    mine = url.replace("//postgres@", f"//{owner}@")

    migrate(mine)
    with psycopg.connect(mine, autocommit=True, options="-c timezone=UTC") as conn:
        publish_plan(conn, a_plan(fee="10.00"), at("2026-10-01"))
        register_tenant(conn, an_account(), at("2026-10-01"))
        complete_until(conn, NOW)
        assert billing_run(conn, NOW).billed == 1
        assert reconcile(conn, at("2026-10-01"), NOW) == []
    postgres.drop_database(name)
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(sql.SQL(f"DROP OWNED BY {owner}"))
        admin.execute(sql.SQL(f"DROP ROLE {owner}"))
