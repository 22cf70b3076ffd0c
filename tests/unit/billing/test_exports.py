"""Invoices as CSV, FOCUS columns and PDF."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from decimal import Decimal
from uuid import UUID

from botplane.billing.exports import FOCUS_COLUMNS, focus_csv, lines_csv
from botplane.billing.invoices import Invoice, finalize
from botplane.billing.pdf import LINES_PER_PAGE, render_pdf
from botplane.billing.settlement import Account, settle
from tests.support.billing import at
from tests.unit.billing.test_documents import BILLED, CALLS, HALF, RUNTIME, SETUP, a_line
from tests.unit.billing.test_settlement import a_credit, a_tax, percent

CORRECTION = replace(
    a_line("correction/INV-1/usage/rpc_calls", "-2.00"),
    corrects_invoice=UUID(int=1),
    corrects_key="usage/rpc_calls/2026-08-31T22:00:00Z",
    meter="rpc_calls",
    detail={"number": "INV-1", "wasMinor": 300, "nowMinor": 100},
)


def an_invoice() -> Invoice:
    account = Account(
        coupons=(percent("20", target="usage"),),
        taxes=(a_tax("0.19"),),
        credits=(a_credit("gift", 5000),),
        carried_minor=30,
    )
    settled = settle(BILLED, [RUNTIME, CALLS, HALF, CORRECTION], account)
    return finalize(BILLED, settled, "INV-2026-000007", at("2026-11-01T06:00:00Z"))


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_lines_are_a_table_of_exact_numbers() -> None:
    rows = read(lines_csv(an_invoice()))

    assert [row["kind"] for row in rows] == ["subscription", "usage", "usage", "correction"]
    assert rows[1] == {
        "invoice": "INV-2026-000007",
        "tenant": "acme",
        "period": "2026-10",
        "key": "usage/bot_seconds/2026-09-30T22:00:00Z",
        "kind": "usage",
        "meter": "bot_seconds",
        "start": "2026-09-30T22:00:00Z",
        "end": "2026-10-31T23:00:00Z",
        "quantity": "81763200",
        "exact": "1234.26",
        "amount": "1234.26",
        "discount": "246.46",
        "net": "987.80",
        "currency": "USD",
    }


def test_focus_rows_add_up_to_what_is_due() -> None:
    issued = an_invoice()

    rows = read(focus_csv(issued))

    assert tuple(rows[0]) == FOCUS_COLUMNS
    assert sum(Decimal(row["BilledCost"]) for row in rows) * 100 == issued.due_minor
    assert [(row["ChargeCategory"], row["ChargeClass"]) for row in rows] == [
        ("Purchase", ""),
        ("Usage", ""),
        ("Usage", ""),
        ("Usage", "Correction"),
        ("Tax", ""),
        ("Credit", ""),
        ("Adjustment", ""),
    ]
    assert (rows[1]["ConsumedQuantity"], rows[1]["ConsumedUnit"]) == ("81763200", "s")
    assert (rows[1]["ListCost"], rows[1]["BilledCost"]) == ("1234.26", "987.80")


def test_focus_rows_have_the_quantities_that_focus_requires_of_their_category() -> None:
    terms = {"plan": "pro", "version": 2}
    commission = a_line("commission", "121.97", quantity=Decimal(3), detail=terms)
    settled = settle(BILLED, [HALF, RUNTIME, commission, SETUP], Account(taxes=(a_tax("0.19"),)))

    rows = read(focus_csv(finalize(BILLED, settled, "INV-1", BILLED.ends_at)))

    names = ("ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit")
    assert {row["SkuPriceId"]: [row[name] for name in names] for row in rows} == {
        "pro/subscription": ["", "", "1", "unit"],
        "bot_seconds": ["81763200", "s", "81763200", "s"],
        "pro/2/commission": ["3", "trade", "3", "trade"],
        "one_off": ["", "", "1", "unit"],
        "": ["", "", "", ""],
    }


def test_focus_row_of_a_one_off_charge_says_what_it_is_for() -> None:
    issued = finalize(BILLED, settle(BILLED, [SETUP], Account()), "INV-1", BILLED.ends_at)

    [row] = read(focus_csv(issued))

    assert (row["ChargeCategory"], row["ChargeFrequency"]) == ("Purchase", "One-Time")
    assert (row["ChargeDescription"], row["SkuId"]) == ("'=Help with the first bots", "one_off")
    assert row["BilledCost"] == "250.00"


def test_name_of_a_tenant_is_no_formula() -> None:
    issued = an_invoice()
    cunning = replace(issued, billed=replace(issued.billed, organization="=HYPERLINK(1)"))

    assert read(focus_csv(cunning))[0]["BillingAccountName"] == "'=HYPERLINK(1)"
    assert read(focus_csv(cunning))[5]["BilledCost"] == "-50.00"


def test_pdf_is_well_formed_and_says_the_text() -> None:
    text = "\n".join(f"line {n} (Größe) \\" for n in range(LINES_PER_PAGE + 1))

    data = render_pdf(text, "Łódź (1)")

    start = int(re.findall(rb"startxref\n(\d+)\n%%EOF\n$", data)[0])
    table = data[start:].split(b"trailer")[0].split(b"\n")[3:-1]
    for number, entry in enumerate(table, start=1):
        assert data[int(entry[:10]) :].startswith(f"{number} 0 obj\n".encode())
    for length, stream in re.findall(
        rb"/Length (\d+) >>\nstream\n(.*?)\nendstream", data, re.DOTALL
    ):
        assert len(stream) == int(length)
    assert b"/Count 2" in data
    assert r"(line 64 \(Größe\) \\) Tj".encode("cp1252") in data
    assert r"/Title (?ód? \(1\))".encode("cp1252") in data
    assert render_pdf(text, "Łódź (1)") == data
