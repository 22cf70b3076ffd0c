"""Invoices as people and programs read them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from botplane.billing.documents import render_json, render_table
from botplane.billing.invoices import (
    BilledPeriod,
    Invoice,
    Line,
    Settled,
    Status,
    draft,
    finalize,
    ledger_entries,
)
from tests.support.billing import at

BILLED = BilledPeriod(
    tenant_id=UUID("0b9c5f0e-6d0c-4a3e-9a53-1f1f3c6c1111"),
    tenant="acme",
    organization="Acme Trading SL",
    currency="USD",
    time_zone="Europe/Madrid",
    period="2026-10",
    starts_at=at("2026-09-30T22:00:00Z"),
    ends_at=at("2026-10-31T23:00:00Z"),
)


def a_line(key: str, amount: str, **more: Any) -> Line:
    """Return a line over the whole period."""
    kind, _, rest = key.partition("/")
    return Line(
        **{
            "key": f"{key}/2026-09-30T22:00:00Z",
            "kind": kind,
            "meter": rest or None,
            "starts_at": BILLED.starts_at,
            "ends_at": BILLED.ends_at,
            "quantity": Decimal(1),
            "exact": Decimal(amount),
            "amount_minor": int(Decimal(amount) * 100),
            "detail": {},
            **more,
        }
    )


HALF = a_line(
    "subscription",
    "49.50",
    ends_at=at("2026-10-16T10:30:00Z"),
    detail={"plan": "pro", "feeMinor": 9900, "seconds": "1341000", "periodSeconds": "2682000"},
)
RUNTIME = a_line(
    "usage/bot_seconds",
    "1234.26",
    quantity=Decimal(81763200),
    detail={
        "included": "5184000",
        "unitSize": "3600",
        "tiers": [{"quantity": "76579200", "unitPrice": "0.06", "flatFeeMinor": 0}],
    },
)
CALLS = a_line(
    "usage/rpc_calls",
    "18.85",
    quantity=Decimal(1134567),
    detail={
        "included": "0",
        "unitSize": "1",
        "tiers": [
            {"quantity": "500000", "unitPrice": "0.00002", "flatFeeMinor": 100},
            {"quantity": "634567", "unitPrice": "0.000015", "flatFeeMinor": 0},
        ],
    },
)


def final(*lines: Line) -> Invoice:
    """Return an issued invoice."""
    return finalize(BILLED, Settled(lines=lines), "INV-2026-000007", at("2026-11-01T06:00:00Z"))


def test_table_is_readable() -> None:
    issued = final(CALLS, RUNTIME, HALF)

    digest = issued.content_hash
    assert digest is not None
    assert (
        render_table(issued)
        == f"""\
INVOICE INV-2026-000007                                                                    FINALIZED

Tenant        acme (0b9c5f0e-6d0c-4a3e-9a53-1f1f3c6c1111)
Organization  Acme Trading SL
Period        2026-10 (Europe/Madrid)
              2026-09-30 22:00 to 2026-10-31 23:00 UTC
Issued        2026-11-01 06:00 UTC

Description                                   Quantity                      Unit price    Amount USD
----------------------------------------------------------------------------------------------------
Plan pro                                      0.500000                           99.00         49.50
  1,341,000 s of 2,682,000 s of the period
  2026-09-30 22:00:00 to 2026-10-16 10:30:00 UTC
Bot runtime                                   22,712 h                        0.06 / h      1,234.26
  81,763,200 s, 1,440 h included
RPC calls                                    1,134,567                                         18.85
                                               500,000      0.00002 / call + 1.00 flat
                                               634,567                 0.000015 / call
----------------------------------------------------------------------------------------------------
Total due                                                                                   1,302.61

Content hash sha256:{digest.hex()}
"""
    )


SETUP = a_line(
    "one_off/setup-7", "250.00", meter=None, detail={"description": "=Help with the first bots"}
)


def test_table_says_what_a_one_off_charge_is_for() -> None:
    rows = render_table(final(HALF, SETUP)).splitlines()

    at_charge = rows.index(f"{'One-off charge':<86}{'250.00':>14}")
    assert rows[at_charge + 1] == "  =Help with the first bots"


def test_table_says_what_a_price_counted_before_and_what_commission_is_net_of() -> None:
    runtime = replace(RUNTIME, detail={**RUNTIME.detail, "usedBefore": "3600000"})
    terms = {"rate": "0.1", "discount": "0", "capPerTradeMinor": None, "capPerPeriodMinor": None}
    reached = {"net": "-300.5", "cumulative": "1299.5", "markBefore": "1600", "profit": "0"}
    commission = a_line(
        "commission", "0.00", quantity=Decimal(7), detail=terms | reached | {"mark": "1600"}
    )

    table = render_table(draft(BILLED, Settled(lines=(runtime, commission)), "It runs."))

    assert "1,440 h included, 1,000 h used before" in table
    assert "7 traded" in table
    assert "wins less losses -300.5, in all 1,299.5, highest before 1,600, profit 0" in table


def test_table_says_what_was_earned_of_a_cap_before() -> None:
    terms = {"rate": "0.1", "discount": "0", "capPerTradeMinor": None, "capPerPeriodMinor": 10000}
    detail = terms | {"profit": "300", "earnedBefore": "90"}
    commission = a_line("commission", "10.00", detail=detail)

    table = render_table(draft(BILLED, Settled(lines=(commission,)), "It runs."))

    assert "profit 300, at most 100.00 a period, of which 90 before" in table


def test_draft_says_why_it_is_one() -> None:
    text = render_table(
        draft(BILLED, Settled(lines=(HALF,)), "The period runs until 2026-10-31 23:00 UTC.")
    )

    assert "DRAFT" in text.splitlines()[0]
    assert "Provisional   The period runs until 2026-10-31 23:00 UTC." in text
    assert "Content hash" not in text


def test_content_hash_can_be_checked_from_the_json_alone() -> None:
    told = json.loads(render_json(final(CALLS, HALF)))

    claimed = told.pop("contentHash")
    del told["status"], told["draftReason"]
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert claimed == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def test_json_writes_every_decimal_as_text() -> None:
    told = json.loads(render_json(final(RUNTIME)), parse_float=_refuse)

    assert (told["total"], told["lines"][0]["quantity"]) == ("1234.26", "81763200")


def test_content_hash_knows_every_change() -> None:
    line = a_line("usage/rpc_calls", "18.85")
    same = final(line).content_hash

    assert final(a_line("usage/rpc_calls", "18.85")).content_hash == same
    for changed in (
        a_line("usage/rpc_calls", "18.86"),
        a_line("usage/rpc_calls", "18.85", quantity=Decimal(2)),
        a_line("usage/rpc_calls", "18.85", exact=Decimal("18.8501")),
        a_line("usage/rpc_calls", "18.85", detail={"plan": "pro"}),
        a_line("usage/ai_units", "18.85"),
    ):
        assert final(changed).content_hash != same


def test_ledger_entries_sum_to_zero() -> None:
    entries = ledger_entries(final(HALF, RUNTIME, CALLS))

    assert entries == {
        "invoice": {
            "receivable": 130261,
            "revenue_subscription": -4950,
            "revenue_usage": -125311,
        }
    }


def test_invoice_over_nothing_is_paid() -> None:
    assert final(a_line("usage/rpc_calls", "0.00")).status is Status.PAID


def _refuse(text: str) -> None:
    raise AssertionError(text)
