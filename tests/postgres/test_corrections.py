"""What arrives late is on the next invoice, once, at the prices of its own time; and notes."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

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
from botplane.billing.invoices import Line
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import prepare, publish_plan
from botplane.errors import Rejected
from botplane.tenants.store import register_tenant
from tests.support.billing import (
    Run,
    a_plan,
    an_account,
    at,
    complete_until,
    per_hour,
    record_runs,
    record_usage,
    record_won_and_lost,
    waits_for_a_lock,
    whole_content,
)
from tests.support.until import until

NOV, DEC, JAN = at("2026-11-02"), at("2026-12-02"), at("2027-01-02")
LATE = at("2026-10-20T12:00:00Z")
GRADUATED = {
    "meter": "rpc_calls",
    "model": "Graduated",
    "included": "100000",
    "tiers": [
        {"upTo": "500000", "unitPrice": "0.00002"},
        {"upTo": "1000000", "unitPrice": "0.000015"},
        {"unitPrice": "0.00001"},
    ],
}


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> UUID:
    """A tenant that made 1,234,567 calls in October, billed in November."""
    plan = a_plan(
        prices=[GRADUATED, per_hour("0.06")],
        commission={"rate": "0.10"},
    )
    publish_plan(conn, plan, at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    calls(conn, account.tenant_id, LATE, 1_234_567)
    bill(conn, NOV)
    return account.tenant_id


def calls(conn: psycopg.Connection[Any], tenant_id: UUID, moment: datetime, number: int) -> None:
    record_usage(conn, tenant_id, [(moment, "rpc_calls", Decimal(number))])


def bill(conn: psycopg.Connection[Any], moment: datetime) -> None:
    complete_until(conn, moment)
    billing_run(conn, moment)


def corrections(conn: psycopg.Connection[Any], period: str) -> list[Line]:
    lines = invoice(conn, "acme", period, JAN).lines
    return [line for line in lines if line.kind == "correction"]


def test_late_usage_is_rated_with_the_whole_old_period_and_charged_once(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    first = invoice(conn, "acme", "2026-10", NOV)
    assert first.total_minor == 1885
    calls(conn, acme, LATE, 50_000)
    calls(conn, acme, at("2026-11-20"), 100_000)

    bill(conn, DEC)
    bill(conn, JAN)

    [line] = corrections(conn, "2026-11")
    assert (line.amount_minor, str(line.exact.normalize()), line.meter) == (50, "0.5", "rpc_calls")
    assert line.detail == {
        "number": first.number,
        "period": "2026-10",
        "wasMinor": 1885,
        "nowMinor": 1935,
    }
    assert invoice(conn, "acme", "2026-11", DEC).total_minor == 50
    assert corrections(conn, "2026-12") == []
    assert invoice(conn, "acme", "2026-10", DEC).content_hash == first.content_hash


def test_second_late_usage_adds_to_the_first(conn: psycopg.Connection[Any], acme: UUID) -> None:
    calls(conn, acme, LATE, 50_000)
    bill(conn, DEC)
    calls(conn, acme, LATE, 50_400)

    bill(conn, JAN)

    # 18.84567 -> 19.34567 -> 19.84967: each amount is that of the sum, less what was billed.
    [line] = corrections(conn, "2026-12")
    assert line.amount_minor == 1985 - 1935


def test_mark_without_a_difference_makes_no_line(conn: psycopg.Connection[Any], acme: UUID) -> None:
    calls(conn, acme, LATE, 50_000)
    calls(conn, acme, LATE, -50_000)
    assert conn.execute("SELECT period FROM late_usage").fetchall() == [("2026-10",)]

    bill(conn, DEC)

    assert corrections(conn, "2026-11") == []
    assert conn.execute("SELECT period FROM late_usage").fetchall() == []


def test_usage_that_is_taken_back_becomes_a_credit_for_the_next_invoice(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    calls(conn, acme, LATE, -1_234_567)
    calls(conn, acme, at("2026-12-20"), 600_000)

    bill(conn, DEC)
    bill(conn, JAN)

    lower = invoice(conn, "acme", "2026-11", JAN)
    assert (lower.total_minor, lower.refunded_minor, lower.due_minor) == (-1885, 1885, 0)
    assert lower.status == "paid"
    assert invoice(conn, "acme", "2026-12", JAN).credit_minor == 1000
    left = conn.execute("SELECT kind, left_minor FROM credit_left").fetchall()
    assert left == [("credit_note", 885)]


@pytest.mark.parametrize(
    ("start", "ends", "corrected"),
    [
        (at("2026-11-29"), (None, at("2026-11-30")), {"2026-11": (-24, -144)}),
        (at("2026-11-29"), (at("2026-11-30T20:00:00Z"), at("2026-12-02")), {"2026-11": (4, 24)}),
        (
            at("2026-10-29"),
            (None, at("2026-10-30")),
            {"2026-10": (-48, -288), "2026-11": (-720, -4320)},
        ),
    ],
    ids=["earlier", "later", "earlier by a period"],
)
def test_interval_whose_end_was_billed_wrong_is_corrected_in_every_period(
    conn: psycopg.Connection[Any],
    acme: UUID,
    start: datetime,
    ends: tuple[datetime | None, datetime],
    corrected: dict[str, tuple[int, int]],
) -> None:
    billed, right = ends
    record_runs(conn, acme, [Run(start=start, end=billed)])
    bill(conn, DEC)

    conn.execute(
        "UPDATE runtime_interval SET ended_at = %s,"
        " close_reason = 'node_lost', close_quality = 'bounded'",
        [right],
    )
    bill(conn, JAN)

    lines = corrections(conn, "2026-12")
    found = {
        line.detail["period"]: (int(line.quantity) // 3600, line.amount_minor) for line in lines
    }
    assert found == corrected


def test_interval_that_ends_after_the_billed_period_marks_nothing(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    record_runs(conn, acme, [Run(start=at("2026-11-29"), end=None)])
    bill(conn, DEC)
    conn.execute("UPDATE runtime_interval SET last_seen_at = '2026-12-01T09:00:00Z'")
    conn.execute(
        "UPDATE runtime_interval SET ended_at = '2026-12-01T10:00:00Z',"
        " close_reason = 'terminated', close_quality = 'exact'"
    )

    assert conn.execute("SELECT period FROM late_usage").fetchall() == []


def test_late_trade_is_corrected(conn: psycopg.Connection[Any], acme: UUID) -> None:
    record_won_and_lost(conn, acme, [(LATE, Decimal(100), Decimal(1))])

    bill(conn, DEC)

    [line] = corrections(conn, "2026-11")
    assert (line.charge_kind, line.amount_minor) == ("commission", 1000)
    revenue = conn.execute(
        "SELECT sum(amount_minor)::bigint FROM ledger_entry WHERE account = 'revenue_commission'"
    ).fetchone()
    assert revenue == (-1000,)


def test_old_prices_count_for_late_usage(conn: psycopg.Connection[Any], acme: UUID) -> None:
    publish_plan(conn, a_plan(prices=[GRADUATED | {"included": "0"}]), at("2026-11-10"))
    calls(conn, acme, LATE, 50_000)

    bill(conn, DEC)

    [line] = corrections(conn, "2026-11")
    assert line.amount_minor == 50


def test_usage_of_more_than_thirteen_months_ago_is_left_alone(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    bill(conn, at("2028-01-05"))
    calls(conn, acme, LATE, 50_000)

    bill(conn, at("2028-02-05"))

    rows = conn.execute("SELECT count(*) FROM invoice_line WHERE kind = 'correction'").fetchone()
    assert rows == (0,)
    assert conn.execute("SELECT period FROM late_usage").fetchall() == [("2026-10",)]


async def test_usage_that_is_written_while_its_period_is_billed_is_not_lost(
    conn: psycopg.Connection[Any], migrated: str, acme: UUID
) -> None:
    complete_until(conn, DEC)
    with psycopg.connect(migrated) as writer:
        calls(writer, acme, at("2026-11-30T23:30:00Z"), 200_000)
        billing = threading.Thread(target=lambda: _invoice_alone(migrated))
        billing.start()
        await until(lambda: waits_for_a_lock(conn), seconds=20)
        writer.commit()
        billing.join()

    assert invoice(conn, "acme", "2026-11", DEC).total_minor == 200


def _invoice_alone(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as mine:
        invoice(mine, "acme", "2026-11", DEC)


async def test_late_usage_that_is_written_while_earlier_is_corrected_is_not_lost(
    conn: psycopg.Connection[Any], migrated: str, acme: UUID
) -> None:
    calls(conn, acme, LATE, 50_000)
    complete_until(conn, DEC)
    with psycopg.connect(migrated) as writer:
        calls(writer, acme, LATE, 50_400)
        billing = threading.Thread(target=lambda: _invoice_alone(migrated))
        billing.start()
        await until(lambda: waits_for_a_lock(conn) or not billing.is_alive(), seconds=20)
        writer.commit()
        billing.join()

    bill(conn, JAN)

    charged = [line.amount_minor for line in corrections(conn, "2026-11")]
    assert charged + [line.amount_minor for line in corrections(conn, "2026-12")] == [50, 50]


def test_usage_that_is_written_while_its_period_ends_and_is_billed_is_not_lost(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    # Years ahead, so that the clock of Postgres is in the period that still runs.
    end, later = at("2090-11-01"), at("2090-12-01T01:00:00Z")
    publish_plan(conn, a_plan(prices=[GRADUATED]), at("2090-10-01"))
    account = an_account(subscription_start=at("2090-10-01"))
    register_tenant(conn, account, at("2090-10-01"))
    prepare(conn, end)
    complete_until(conn, end - timedelta(seconds=5))

    with psycopg.connect(migrated) as writer:
        calls(writer, account.tenant_id, end - timedelta(seconds=10), 200_000)
        bill(conn, end + timedelta(minutes=1))
        writer.commit()
    bill(conn, end + timedelta(hours=1))
    bill(conn, later)

    totals = conn.execute("SELECT sum(total_minor)::bigint FROM invoice").fetchone()
    assert totals == (200,)


def a_note(**more: str) -> NoteTerms:
    terms = {
        "invoice_number": "INV-2026-000001",
        "reference": "T-1",
        "amount": "8.85",
        "reason": "Outage",
    }
    return NoteTerms(**terms | more)


def _balance(conn: psycopg.Connection[Any], account: str) -> int:
    row = conn.execute(
        "SELECT COALESCE(sum(amount_minor), 0)::bigint FROM ledger_entry WHERE account = %s",
        [account],
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.usefixtures("acme")
def test_credit_note_lowers_what_is_owed_and_is_issued_once(
    conn: psycopg.Connection[Any],
) -> None:
    assert issue_credit_note(conn, a_note(), "ana", NOV) == "CN-2026-000001"
    before = whole_content(conn)
    assert issue_credit_note(conn, a_note(), "ana", NOV) == "CN-2026-000001"

    with pytest.raises(Rejected, match="T-1 is another credit note already"):
        issue_credit_note(conn, a_note(amount="5.00"), "ana", NOV)
    assert whole_content(conn) == before
    assert _balance(conn, "receivable") == 1000
    assert issue_credit_note(conn, a_note(reference="T-2", amount="10.00"), "ana", NOV)
    assert _balance(conn, "receivable") == 0
    assert invoice(conn, "acme", "2026-10", NOV).status == "paid"


def test_credit_note_takes_tax_back_in_proportion_and_pays_coming_invoices(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    order = Order(tenant="acme", actor="ana", now=at("2026-10-01"))
    set_tax(conn, order, TaxTerms(name="VAT", rate="0.19"))
    grant_coupon(conn, order, CouponTerms(code="c", percent="10"))
    grant_credit(conn, order, CreditTerms(credit_id="bought", amount="100.00", kind="purchased"))
    calls(conn, acme, at("2026-11-20"), 600_000)
    bill(conn, DEC)
    paid = invoice(conn, "acme", "2026-11", DEC)
    assert (paid.total_minor, paid.due_minor) == (1071, 0)

    issue_credit_note(conn, a_note(invoice_number=str(paid.number), amount="5.00"), "ana", DEC)

    note = conn.execute("SELECT amount_minor, tax_minor, settled_by FROM credit_note").fetchall()
    assert note == [(500, 80, "credit")]
    assert ("note/CN-2026-000001", 500) in conn.execute(
        "SELECT credit_id, left_minor FROM credit_left"
    ).fetchall()
    assert _balance(conn, "customer_credit") == -10000 + 1071 - 500


def test_notes_over_a_whole_invoice_leave_nothing_of_its_tax(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    order = Order(tenant="acme", actor="ana", now=at("2026-10-01"))
    set_tax(conn, order, TaxTerms(name="VAT", rate="0.50"))
    calls(conn, acme, at("2026-11-20"), 101_000)
    complete_until(conn, DEC)
    taxed = invoice(conn, "acme", "2026-11", DEC)
    assert (taxed.total_minor, taxed.tax_minor) == (3, 1)

    for n in range(3):
        terms = a_note(invoice_number=str(taxed.number), reference=f"T-{n}", amount="0.01")
        issue_credit_note(conn, terms, "ana", DEC)

    taxes = conn.execute("SELECT tax_minor FROM credit_note ORDER BY number").fetchall()
    assert taxes == [(0,), (1,), (0,)]
    assert _balance(conn, "tax_payable") == 0


async def test_notes_that_are_issued_at_once_share_the_tax_as_one_after_the_other(
    conn: psycopg.Connection[Any], migrated: str, acme: UUID
) -> None:
    order = Order(tenant="acme", actor="ana", now=at("2026-10-01"))
    set_tax(conn, order, TaxTerms(name="VAT", rate="0.50"))
    calls(conn, acme, at("2026-11-20"), 101_000)
    complete_until(conn, DEC)
    number = str(invoice(conn, "acme", "2026-11", DEC).number)

    def note(writer: psycopg.Connection[Any], reference: str) -> None:
        terms = a_note(invoice_number=number, reference=reference, amount="0.01")
        issue_credit_note(writer, terms, "ana", DEC)

    with psycopg.connect(migrated) as first, psycopg.connect(migrated, autocommit=True) as second:
        waiting = threading.Thread(target=note, args=(second, "T-2"))
        with first.transaction():
            note(first, "T-1")
            waiting.start()
            await until(lambda: waits_for_a_lock(conn), seconds=20)
        waiting.join()

    taxes = conn.execute("SELECT tax_minor FROM credit_note ORDER BY number").fetchall()
    assert taxes == [(0,), (1,)]


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (a_note(amount="18.86"), "NotCreditable"),
        (a_note(amount="0"), "NotCreditable"),
        (a_note(invoice_number="INV-1"), "InvoiceNotFound"),
    ],
)
def test_impossible_credit_note_is_refused(
    conn: psycopg.Connection[Any], terms: NoteTerms, reason: str
) -> None:
    with pytest.raises(Rejected) as refused:
        issue_credit_note(conn, terms, "ana", NOV)

    assert refused.value.reason == reason


@pytest.mark.usefixtures("acme")
def test_database_refuses_to_credit_more_than_the_invoice(conn: psycopg.Connection[Any]) -> None:
    issue_credit_note(conn, a_note(), "ana", NOV)

    with pytest.raises(errors.CheckViolation):
        conn.execute(
            "INSERT INTO credit_note SELECT tenant_id, 'x', invoice_id, 'x', reason, 1001, 0,"
            " settled_by, issued_at FROM credit_note"
        )
    with pytest.raises(errors.RestrictViolation):
        conn.execute("DELETE FROM credit_note")
