"""The golden cases: usage in, an invoice to the last digit out; the standing said so before."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import yaml

from botplane.billing.adjustments.store import (
    CouponTerms,
    CreditTerms,
    NoteTerms,
    OneOffTerms,
    Order,
    TaxTerms,
    charge_one_off,
    grant_coupon,
    grant_credit,
    issue_credit_note,
    set_tax,
)
from botplane.billing.invoices import Invoice, Line, Status, amount_text
from botplane.billing.money import plain
from botplane.billing.run import invoice
from botplane.billing.settlement import ChargeLimits
from botplane.billing.store import publish_plan
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.store import register_tenant
from botplane.usage.store import standing_of, standings, totals_that_differ
from tests.support.billing import (
    GIB,
    LATER,
    Run,
    a_plan,
    a_volume,
    an_account,
    at,
    complete_until,
    record_runs,
    record_usage,
    record_won_and_lost,
)

SUMS = {"subtotal", "discount", "tax", "credit", "carried_in", "carried_out", "refunded", "due"}
CASES = yaml.load(
    (Path(__file__).parent / "golden.yaml").read_text(),
    yaml.BaseLoader,  # noqa: S506 - every scalar stays text, so that no decimal becomes a float
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_invoice_is_right_to_the_last_digit(
    conn: psycopg.Connection[Any], case: dict[str, Any]
) -> None:
    account = _a_tenant(conn, case)
    for period in case["invoices"]:
        standings(conn, at(f"{period}-28"))  # whose totals are kept from here on
    _use(conn, account.tenant_id, case)
    _adjust(conn, case, account.subscription_start)
    minimums = case.get("minimum_charges", {})
    limits = {k: ChargeLimits(minimum_minor=int(v)) for k, v in minimums.items()}
    now = account.subscription_start + LATER
    complete_until(conn, now)

    for period, expected in case["invoices"].items():
        issued = invoice(conn, "acme", period, now, limits)

        charged = [
            _summary(line, issued)
            for line in issued.lines
            if line.detail.get("feeMinor") or line.kind != "subscription"
        ]
        assert charged == expected["lines"]
        assert amount_text(issued.total_minor, issued.billed.currency) == expected["total"]
        assert _so_far(conn, issued) == _charged(issued)
        assert issued.status is (Status.FINALIZED if issued.due_minor else Status.PAID)
        for sum_name in SUMS & expected.keys():
            minor = getattr(issued, f"{sum_name}_minor")
            assert (sum_name, _text(minor, issued)) == (sum_name, expected[sum_name])
        if "ledger" in expected:
            assert _ledger(conn, issued) == expected["ledger"]
        assert issued.billed.starts_at == at(expected.get("start", str(issued.billed.starts_at)))
        assert issued.billed.ends_at == at(expected.get("end", str(issued.billed.ends_at)))
        then = expected.get("then", {})
        _use(conn, account.tenant_id, then)
        for number, amount in enumerate(then.get("credit_notes", [])):
            note = NoteTerms(
                invoice_number=str(issued.number),
                reference=f"{period}-{number}",
                amount=amount,
                reason="as agreed",
            )
            issue_credit_note(conn, note, "finance", now)
    assert totals_that_differ(conn) == []


def _a_tenant(conn: psycopg.Connection[Any], case: dict[str, Any]) -> TenantAccount:
    phases = case.get("subscribed", [["2026-10-01T00:00:00Z", "basic"]])
    start = at(phases[0][0])
    for name, prices in case["prices"].items():
        publish_plan(conn, a_plan(name, **prices), start)
    account = an_account(
        currency=case.get("currency", "USD"),
        time_zone=case.get("time_zone", "UTC"),
        anchor_day=int(case.get("anchor_day", 1)),
        subscription_start=start,
    )
    for since, plan in phases:
        register_tenant(conn, an_account(**vars(account) | {"plan": plan}), at(since))
    for since, revised in case.get("revised", []):
        for name, prices in revised.items():
            publish_plan(conn, a_plan(name, **prices), at(since))
    return account


def _use(conn: psycopg.Connection[Any], tenant_id: UUID, used: dict[str, Any]) -> None:
    record_runs(conn, tenant_id, [_run(run) for run in used.get("runs", [])])
    record_usage(
        conn,
        tenant_id,
        [
            (at(moment), meter, Decimal(quantity))
            for moment, meter, quantity in used.get("usage", [])
        ],
    )
    record_won_and_lost(
        conn,
        tenant_id,
        [
            (at(moment), Decimal(pnl), Decimal(volume))
            for moment, pnl, volume in used.get("trades", [])
        ],
    )


def _adjust(conn: psycopg.Connection[Any], case: dict[str, Any], since: datetime) -> None:
    order = Order(tenant="acme", actor="finance", now=since)
    for terms in case.get("coupons", []):
        grant_coupon(conn, order, CouponTerms(**_values(terms)))
    for terms in case.get("taxes", []):
        set_tax(conn, order, TaxTerms(**_values(terms)))
    for number, terms in enumerate(case.get("credits", [])):
        grant_credit(conn, order, CreditTerms(credit_id=f"credit-{number}", **_values(terms)))
    for number, amount in enumerate(case.get("one_offs", [])):
        charge_one_off(
            conn, order, OneOffTerms(reference=f"{number}", amount=amount, description="x")
        )


def _values(terms: dict[str, str]) -> dict[str, Any]:
    """Return terms with their moments and numbers of uses; amounts and rates stay text."""
    kinds: dict[str, Any] = {"starts_at": at, "ends_at": at, "expires_at": at, "uses": int}
    return {name: kinds.get(name, str)(text) for name, text in terms.items()}


def _so_far(conn: psycopg.Connection[Any], issued: Invoice) -> dict[str, Decimal]:
    """Return where the tenant stood in the last second of the period."""
    stand = standing_of(conn, "acme", issued.billed.ends_at - timedelta(seconds=1))
    amounts = {meter.meter: meter.cost for meter in stand.meters} | {"subscription": stand.fee}
    return {name: amount for name, amount in amounts.items() if amount}


def _charged(issued: Invoice) -> dict[str, Decimal]:
    amounts = defaultdict[str, Decimal](Decimal)
    for line in issued.lines:
        if line.exact and line.kind in {"subscription", "usage"}:
            amounts[line.meter or line.kind] += line.exact
    return amounts


def _text(minor: int, issued: Invoice) -> str:
    return amount_text(minor, issued.billed.currency)


def _ledger(conn: psycopg.Connection[Any], issued: Invoice) -> dict[str, dict[str, str]]:
    rows = conn.execute(
        "SELECT split_part(txn_key, '/', 1), account, amount_minor FROM ledger_entry"
        " JOIN invoice i ON txn_key IN ('invoice/' || i.invoice_id, 'credit/' || i.invoice_id,"
        " 'carried/' || i.invoice_id) WHERE i.number = %s",
        [issued.number],
    ).fetchall()
    found: dict[str, dict[str, str]] = {}
    for kind, account, minor in rows:
        found.setdefault(kind, {})[account] = _text(minor, issued)
    return found


def _run(run: dict[str, str]) -> Run:
    if "storage_bytes" in run:
        return a_volume(int(run["storage_bytes"]), at(run["start"]), at(run["end"]))
    cpu_milli = int(run.get("cpu_milli", "1000"))
    mem_bytes = int(run.get("mem_bytes", GIB))
    return Run(start=at(run["start"]), end=at(run["end"]), cpu_milli=cpu_milli, mem_bytes=mem_bytes)


def _summary(line: Line, issued: Invoice) -> list[str]:
    amount = amount_text(line.amount_minor, issued.billed.currency)
    return [line.meter or line.kind, plain(line.quantity), plain(line.exact), amount]
