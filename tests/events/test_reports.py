"""What a tenant reads of itself: usage and invoices over HTTP, usage on the command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from botplane.billing.adjustments.store import OneOffTerms, Order, charge_one_off
from botplane.billing.payments.run import collect
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.store import register_tenant
from tests.events.server import BOTPLANE, Web, a_key, an_event, web_process
from tests.support.billing import Run, a_plan, an_account, complete_until, per_hour, record_runs

READ = ("usage:read",)
UNITS = {
    "meter": "ai_units",
    "model": "PerUnit",
    "included": "100",
    "tiers": [{"unitPrice": "0.50"}],
}


@pytest.fixture
def web(migrated: str) -> Iterator[Web]:
    with web_process(migrated) as process:
        yield process


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> TenantAccount:
    """A tenant since two months ago whose bot runs since an hour."""
    now = datetime.now(UTC).replace(microsecond=0)
    publish_plan(conn, a_plan(fee="30.00", prices=[per_hour("0.06"), UNITS]), now)
    since = now - timedelta(days=62)
    account = an_account(subscription_start=since, spend_limit=Decimal(80))
    register_tenant(conn, account, since)
    run = Run(start=now - timedelta(hours=1), end=None, bot_id=uuid4())
    record_runs(conn, account.tenant_id, [run])
    return account


def read(web: Web, path: str, key: str) -> tuple[int, Any]:
    status, answer, _ = web.ask("GET", path, authorization=f"Bearer {key}")
    return status, answer


def meter(usage: Any, name: str) -> Any:
    return next(entry for entry in usage["meters"] if entry["meter"] == name)


def test_event_shows_in_the_usage_at_once(
    web: Web, conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    reader, writer = a_key(conn, acme.tenant_id, scopes=READ), a_key(conn, acme.tenant_id)
    status, before = read(web, "/v1/usage", reader)
    assert status == 200

    web.post(writer, [an_event(1, data={"value": "120.5"})])
    _, after = read(web, "/v1/usage", reader)

    assert meter(after, "ai_units") == {
        "meter": "ai_units",
        "quantity": "120.5",
        "included": "100",
        "includedPercent": 120,
        "limitState": None,
        "cost": "10.25",
    }
    assert Decimal(after["cost"]) >= Decimal(before["cost"]) + Decimal("10.25")
    assert (after["tenant"], after["currency"], after["fee"]) == ("acme", "USD", "30")
    assert after["spendLimit"] == {"amount": "80", "percent": 50, "state": "Clear"}
    assert int(meter(after, "bot_seconds")["quantity"]) >= 1


def test_usage_comes_with_an_estimate_of_the_whole_period(
    web: Web, conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    _, usage = read(web, "/v1/usage", a_key(conn, acme.tenant_id, scopes=READ))

    estimate = usage["forecast"]
    if estimate is None:  # on the first day of a month
        assert datetime.now(UTC) - datetime.fromisoformat(usage["periodStart"]) < timedelta(days=1)
        return
    amounts = [Decimal(estimate[name]) for name in ("low", "amount", "high")]
    assert amounts == sorted(amounts)
    assert amounts[1] >= Decimal(usage["cost"]).quantize(Decimal("0.01"))
    assert estimate["quality"] == "estimated"
    assert estimate["asOf"] == usage["asOf"]


def test_one_off_charge_is_in_the_cost_so_far_and_has_its_own_name(
    web: Web, conn: psycopg.Connection[Any], migrated: str
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    publish_plan(conn, a_plan(fee="0.00"), now)
    account = an_account(subscription_start=now)
    register_tenant(conn, account, now)
    order = Order(tenant="acme", actor="ana", now=now)
    charge_one_off(conn, order, OneOffTerms(reference="r", amount="250.05", description="Help"))

    _, usage = read(web, "/v1/usage", a_key(conn, account.tenant_id, scopes=READ))
    shown = subprocess.run(
        [BOTPLANE, "usage", "acme"],
        env=os.environ | {"DATABASE_URL": migrated},
        capture_output=True,
        text=True,
        check=True,
    )

    assert (usage["cost"], usage["oneOffs"]) == ("250.05", "250.05")
    assert f"period {usage['period']} so far: 250.05 USD (one-off charges 250.05)." in shown.stdout


def test_trades_of_bots_become_trades_of_the_bill(
    web: Web, conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    bot_id = uuid4()
    dims = {"trade_id": "t-1", "pnl": "12.50", "volume": "1000", "currency": "USD"}
    event = an_event(1, type="trades", data={"dims": dims})
    key = a_key(conn, acme.tenant_id, bot_id)

    assert web.post(key, [event])[1]["accepted"] == 1
    assert web.post(key, [event])[1]["duplicate"] == 1

    rows = conn.execute(
        "SELECT tenant_id, trade_id, bot_id, pnl, volume, fx_rate FROM trade_commission"
    ).fetchall()
    assert rows == [(acme.tenant_id, "t-1", bot_id, Decimal("12.5"), Decimal(1000), Decimal(1))]


def test_invoices_are_those_of_the_key_alone(
    web: Web, conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    now = datetime.now(UTC)
    other = an_account("other", subscription_start=acme.subscription_start)
    register_tenant(conn, other, acme.subscription_start)
    complete_until(conn, now)
    billing_run(conn, now)

    _, mine = read(web, "/v1/invoices", a_key(conn, acme.tenant_id, scopes=READ))
    _, theirs = read(web, "/v1/invoices", a_key(conn, other.tenant_id, scopes=READ))
    _, nobody = read(web, "/v1/invoices", a_key(conn, uuid4(), scopes=READ))

    numbers = [{invoice["number"] for invoice in answer["invoices"]} for answer in (mine, theirs)]
    assert len(numbers[0]) == len(numbers[1]) >= 2
    assert numbers[0] & numbers[1] == set()
    assert {invoice["total"] for invoice in mine["invoices"]} >= {"30.00"}
    assert nobody == {"invoices": []}


def test_notices_are_those_of_the_key_alone(
    web: Web, conn: psycopg.Connection[Any], acme: TenantAccount
) -> None:
    now = datetime.now(UTC)
    other = an_account("other", subscription_start=acme.subscription_start)
    register_tenant(conn, other, acme.subscription_start)
    complete_until(conn, now)
    billing_run(conn, now)
    collect(conn, None, now)

    _, mine = read(web, "/v1/notices", a_key(conn, acme.tenant_id, scopes=READ))
    _, invoices = read(web, "/v1/invoices", a_key(conn, acme.tenant_id, scopes=READ))

    owed = {invoice["number"] for invoice in invoices["invoices"]}
    assert {notice["invoice"] for notice in mine["notices"]} == owed
    assert {notice["kind"] for notice in mine["notices"]} == {"due"}
    assert all(notice["invoice"] in notice["message"] for notice in mine["notices"])


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/invoices", "/v1/notices"])
def test_key_without_the_scope_reads_nothing(
    web: Web, conn: psycopg.Connection[Any], acme: TenantAccount, path: str
) -> None:
    assert read(web, path, a_key(conn, acme.tenant_id))[0] == 403
    assert read(web, path, "nobody.wrong")[0] == 401


def test_usage_of_a_tenant_that_is_not_billed_is_not_found(
    web: Web, conn: psycopg.Connection[Any]
) -> None:
    assert read(web, "/v1/usage", a_key(conn, scopes=READ))[0] == 404


@pytest.mark.usefixtures("acme")
def test_watched_usage_goes_on(migrated: str) -> None:
    environment = os.environ | {"DATABASE_URL": migrated}
    command = [BOTPLANE, "usage", "acme", "--watch"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None
        seconds = []
        for line in shown.stdout:
            if line.startswith("bot_seconds"):
                seconds.append(float(line.split()[1].replace(",", "")))
            if len(seconds) == 2:
                break
        shown.kill()

    assert seconds[1] >= seconds[0] + 1


def test_bad_tenant_ends_the_watch(migrated: str) -> None:
    done = subprocess.run(
        [BOTPLANE, "usage", "nobody", "--watch"],
        env=os.environ | {"DATABASE_URL": migrated},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("TenantNotFound")
    assert json.dumps(done.stdout) == '""'
