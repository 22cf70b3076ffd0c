"""What finance people type, and what it does to the next invoice."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from typer.testing import CliRunner

from botplane.billing.run import invoice
from botplane.billing.store import publish_plan
from botplane.billing.trades.store import Trade, record_trades
from botplane.cli import app
from botplane.tenants.store import register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until


@pytest.fixture
def acme(
    conn: psycopg.Connection[Any], migrated: str, monkeypatch: pytest.MonkeyPatch
) -> psycopg.Connection[Any]:
    publish_plan(conn, a_plan(fee="100.00"), at("2026-10-01"))
    register_tenant(conn, an_account(), at("2026-10-01"))
    complete_until(conn, at("2100-01-01"))
    monkeypatch.setenv("DATABASE_URL", migrated)
    return conn


def typed(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    return f"{result.exit_code} {result.output}".strip()


def test_coupon_credit_and_tax_are_on_the_next_invoice(acme: psycopg.Connection[Any]) -> None:
    far = "2100-01-01"
    assert typed("coupon", "grant", "acme", "welcome", "--percent", "20", "--until", far) == "0"
    assert typed("credit", "grant", "acme", "gift", "30.00", "--expires", far) == "0"
    assert typed("tenant-tax", "acme", "VAT", "0.19", "--since", "2026-10-01") == "0"

    coming = invoice(acme, "acme", "2026-10", at("2026-10-02"))

    assert (coming.tax_minor, coming.credit_minor) == (1900, 3000)
    granted_later = acme.execute("SELECT code, percent FROM coupon_grant").fetchall()
    assert [(code, str(percent)) for code, percent in granted_later] == [("welcome", "20.0000")]
    actors = acme.execute("SELECT DISTINCT actor <> '' FROM audit_log").fetchall()
    assert actors == [(True,)]


def test_one_off_charge_is_on_the_next_invoice_once(acme: psycopg.Connection[Any]) -> None:
    words = ("one-off", "acme", "setup-7", "250.00", "Help with the first bots")

    said = {typed(*words), typed(*words)}

    assert said == {"0 Charge setup-7 is on the invoice of 2026-10."}
    assert invoice(acme, "acme", "2026-10", at("2026-10-02")).total_minor == 35000


def test_rate_lets_the_trades_of_its_day_earn_commission(acme: psycopg.Connection[Any]) -> None:
    publish_plan(acme, a_plan("pro", commission={"rate": "0.10"}), at("2026-10-01"))
    register_tenant(acme, replace(an_account(), tenant_id=_id(acme), plan="pro"), at("2026-10-01"))
    closed = {"a": "2026-10-05T00:00:00Z", "b": "2026-10-05T23:59:59Z", "c": "2026-10-06T00:00:00Z"}
    trades = [
        Trade(
            tenant_id=_id(acme),
            trade_id=trade_id,
            bot_id=None,
            closed_at=at(moment),
            pnl=Decimal(100),
            volume=Decimal(1),
            currency="EUR",
        )
        for trade_id, moment in closed.items()
    ]
    record_trades(acme, trades, at("2026-10-07"))
    assert "3 trades wait for `botplane exchange-rate`" in typed("billing", "run")
    words = ("exchange-rate", "acme", "EUR", "1.25", "--day", "2026-10-05", "--source", "ECB")

    said = [typed(*words), typed(*words), typed("exchange-rate", "acme", "EUR", "-1", *words[4:])]

    assert said[0] == "0 2 trades that waited for it count now."
    assert said[1] == "0 0 trades that waited for it count now."
    assert said[2].startswith("2 ")
    later = invoice(acme, "acme", "2026-11", at("2026-12-02"))
    # 10 % of twice 100 EUR, for October, which was billed without them.
    assert [line.amount_minor for line in later.lines if line.kind == "correction"] == [2500]
    assert typed("reconcile").endswith("trade c: a rate expected, none for EUR of 2026-10-06 found")


def _id(conn: psycopg.Connection[Any]) -> UUID:
    [[tenant_id]] = conn.execute("SELECT tenant_id FROM tenant").fetchall()
    assert isinstance(tenant_id, UUID)
    return tenant_id


def test_correction_of_usage_counts_once(acme: psycopg.Connection[Any]) -> None:
    words = ("usage-correction", "acme", "inc-7", "--meter", "rpc_calls", "--quantity")
    more = ("--at", "2026-10-02T10:00:00", "--reason", "Lost in the spool")

    said = [typed(*words, quantity, *more) for quantity in ("20", "20", "-21")]

    assert said[:2] == ["0 Correction inc-7 counts in period 2026-10."] * 2
    assert said[2] == "1 ReferenceUsed: inc-7 is another correction of acme."
    stored = acme.execute("SELECT quantity, occurred_at FROM usage_event").fetchall()
    assert stored == [(20, at("2026-10-02T10:00:00Z"))]


def test_archive_says_what_it_has_written(acme: psycopg.Connection[Any], tmp_path: Path) -> None:
    acme.execute("SELECT ensure_partitions('2019-01-01', '2019-02-01')")

    said = typed("usage-archive", str(tmp_path)).splitlines()

    assert said[0].startswith("0 usage_event_201901.csv.gz: 0 rows, SHA-256 ")
    assert {file.name.partition(".")[0] for file in tmp_path.iterdir()} == {
        "usage_event_201901",
        "usage_hourly_201901",
    }


@pytest.mark.usefixtures("acme")
def test_refusal_is_one_line() -> None:
    said = typed("coupon", "grant", "nobody", "welcome", "--percent", "20")

    assert said == "1 TenantNotFound: No tenant nobody was ever registered for billing."


@pytest.mark.usefixtures("acme")
def test_coupon_can_be_ended_once() -> None:
    typed("coupon", "grant", "acme", "always", "--amount", "1.00", "--uses", "0")

    assert typed("coupon", "end", "acme", "always") == "0"
    assert typed("coupon", "end", "acme", "never").startswith("1 CouponNotFound")


@pytest.mark.usefixtures("acme")
def test_billing_run_collects_with_the_processor_that_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed("payment", "method", "acme", "cus_1", "pm_1")
    monkeypatch.setenv("BOTPLANE_PAYMENT_PROCESSOR", "stripe")
    assert typed("billing", "run").startswith("1 SettingMissing")
    monkeypatch.setenv("BOTPLANE_PAYMENT_PROCESSOR", "fake")

    said = typed("billing", "run").splitlines()

    assert said[0].startswith("0 ")
    assert said[1].startswith(f"{said[0].split()[1]} invoices charged, 0 unanswered")


def test_transfer_is_recorded_once(acme: psycopg.Connection[Any]) -> None:
    invoice(acme, "acme", "2026-10", at("2026-11-05"))

    assert typed("payment", "record", "INV-2026-000001", "bank-1") == "0"
    assert typed("payment", "record", "INV-2026-000001", "bank-2").startswith("1 NotPayable")
