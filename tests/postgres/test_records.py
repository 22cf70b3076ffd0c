"""One tenant's data: all of it handed out, only the personal part erased."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from botplane.billing.adjustments.store import CreditTerms, Order, grant_credit
from botplane.billing.payments.store import set_payment_method
from botplane.billing.proof.store import reconcile
from botplane.billing.records.store import erase_tenant, export_tenant
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.cli import app
from botplane.errors import Rejected
from botplane.tenants.store import close_tenant, register_tenant
from tests.support.billing import (
    a_plan,
    an_account,
    at,
    complete_until,
    record_usage,
    waits_for_a_lock,
)
from tests.support.until import until

NOW = at("2026-12-02")
ACME, BETA = an_account(organization_name="Acme Söhne"), an_account("beta")


@pytest.fixture
def two(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """Two tenants with usage, bills, credits and payment methods."""
    calls = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}
    publish_plan(conn, a_plan(fee="10.00", prices=[calls]), at("2026-10-01"))
    for account in (ACME, BETA):
        register_tenant(conn, account, at("2026-10-01"))
        usage = [(at("2026-10-03"), "rpc_calls", Decimal(7))]
        record_usage(conn, account.tenant_id, usage)
        order = Order(tenant=account.name, actor="ana", now=at("2026-10-01"))
        grant_credit(conn, order, CreditTerms(credit_id="gift", amount="5.00"))
        set_payment_method(conn, order, f"cus_{account.name}", "pm_1")
    complete_until(conn, NOW)
    billing_run(conn, NOW)
    return conn


def exported(conn: psycopg.Connection[Any], tenant: str) -> dict[str, bytes]:
    target = io.BytesIO()
    export_tenant(conn, tenant, target, NOW)
    with zipfile.ZipFile(target) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_export_has_every_row_of_the_tenant_and_none_of_others(
    two: psycopg.Connection[Any],
) -> None:
    files = exported(two, "acme")

    manifest = json.loads(files.pop("manifest.json"))
    assert set(manifest) == set(files)
    for name, content in files.items():
        assert manifest[name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert str(BETA.tenant_id).encode() not in content
    assert manifest["usage_event.ndjson"]["rows"] == 1
    assert manifest["invoice.ndjson"]["rows"] == 2
    assert manifest["audit_log.ndjson"]["rows"] == 2
    assert json.loads(files["tenant_profile.ndjson"])["organization_name"] == "Acme Söhne"
    documents = [json.loads(files[name]) for name in sorted(files) if name.startswith("invoices/")]
    assert {document["tenant"] for document in documents} == {"acme"}
    tables = two.execute(
        "SELECT count(DISTINCT table_name) FROM information_schema.columns JOIN pg_class"
        " ON relname = table_name WHERE column_name = 'tenant_id' AND table_schema = 'public'"
        " AND relkind IN ('r', 'p') AND NOT relispartition"
    ).fetchone()
    assert tables == (sum(name.endswith(".ndjson") for name in files) - 1,)


def test_same_data_make_the_same_archive(two: psycopg.Connection[Any]) -> None:
    assert exported(two, "acme") == exported(two, "acme")


async def test_export_beside_a_billing_run_is_of_one_moment(
    two: psycopg.Connection[Any], migrated: str
) -> None:
    files: dict[str, bytes] = {}

    def export_alone() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            files.update(exported(mine, "acme"))

    exporting = threading.Thread(target=export_alone)
    with psycopg.connect(migrated, autocommit=True) as biller:
        complete_until(biller, at("2027-01-02"))
        with two.transaction():
            two.execute("LOCK ingest_key")  # which is read after the periods, before the invoices
            exporting.start()
            await until(lambda: waits_for_a_lock(biller), seconds=20)
            billing_run(biller, at("2027-01-02"))
        exporting.join()

    periods = [json.loads(line) for line in files["billing_period.ndjson"].splitlines()]
    invoices = [json.loads(line) for line in files["invoice.ndjson"].splitlines()]
    closed = {row["period"] for row in periods if row["state"] == "closed"}
    assert {row["period"] for row in invoices} == closed


def test_erasure_needs_a_tenant_that_is_closed_and_billed(two: psycopg.Connection[Any]) -> None:
    order = Order(tenant="acme", actor="ana", now=NOW)
    with pytest.raises(Rejected):
        erase_tenant(two, order)
    close_tenant(two, ACME.tenant_id, NOW)

    with pytest.raises(Rejected) as refused:
        erase_tenant(two, order)

    assert refused.value.reason == "TenantNotFinished"


def test_erasure_waits_for_the_invoice_of_a_tenant_that_nobody_has_billed_yet(
    conn: psycopg.Connection[Any],
) -> None:
    publish_plan(conn, a_plan(fee="10.00"), at("2026-10-01"))
    register_tenant(conn, ACME, at("2026-10-01"))
    close_tenant(conn, ACME.tenant_id, at("2026-10-02"))
    order = Order(tenant="acme", actor="ana", now=at("2026-10-03"))

    with pytest.raises(Rejected) as refused:
        erase_tenant(conn, order)

    assert refused.value.reason == "TenantNotFinished"


def test_erasure_takes_the_personal_data_and_leaves_the_books(
    two: psycopg.Connection[Any],
) -> None:
    close_tenant(two, ACME.tenant_id, NOW)
    complete_until(two, at("2027-01-02"))
    billing_run(two, at("2027-01-02"))
    order = Order(tenant="acme", actor="ana", now=at("2027-01-03"))

    assert erase_tenant(two, order)
    assert not erase_tenant(two, order)

    profiles = two.execute("SELECT organization_name FROM tenant_profile").fetchall()
    assert profiles == [("Beta Trading",)]
    assert two.execute("SELECT customer_ref FROM tenant_payment").fetchall() == [("cus_beta",)]
    actions = two.execute(
        "SELECT action FROM audit_log WHERE chain = %s ORDER BY seq DESC LIMIT 1",
        [f"tenant/{ACME.tenant_id}"],
    ).fetchone()
    assert actions == ("tenant.erase",)
    assert reconcile(two, at("2026-10-01"), at("2027-01-03")) == []


def test_commands_write_files(
    two: psycopg.Connection[Any],
    migrated: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DATABASE_URL", migrated)
    archive = tmp_path / "acme.zip"

    def typed(*words: str) -> bytes:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == 0, result.output
        return result.stdout_bytes

    nobody = CliRunner().invoke(app, ["tenant-export", "nobody", str(archive)])
    assert (nobody.exit_code, archive.exists()) == (1, False)
    typed("tenant-export", "acme", str(archive))
    again = CliRunner().invoke(app, ["tenant-export", "acme", str(archive)])
    assert (again.exit_code, again.output.split(":")[0]) == (1, "FileNotWritten")
    assert zipfile.ZipFile(archive).testzip() is None
    invoice = ("invoice", "acme", "--period", "2026-10", "-o")
    assert typed(*invoice, "csv").count(b"\r\n") == 3
    assert b"BilledCost" in typed(*invoice, "focus")
    assert typed(*invoice, "pdf").startswith(b"%PDF-1.4")
    assert two
