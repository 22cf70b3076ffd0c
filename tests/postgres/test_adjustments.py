"""Coupons, taxes and credits: granted once, with a trace, and used up exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from botplane.billing import store
from botplane.billing.adjustments.store import (
    CouponTerms,
    CreditTerms,
    Order,
    TaxTerms,
    accounts,
    end_coupon,
    grant_coupon,
    grant_credit,
    set_tax,
)
from botplane.billing.invoices import Invoice, finalize
from botplane.billing.rows import read_inputs
from botplane.billing.run import billing_run, invoice
from botplane.billing.settlement import settle
from botplane.billing.store import publish_plan
from botplane.errors import Rejected
from botplane.tenants.store import register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until, whole_content

NOW = at("2027-01-02")
ORDER = Order(tenant="acme", actor="ana", now=at("2026-10-01"))


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> UUID:
    """A tenant with a fee of 10.00 a month, for three months."""
    publish_plan(conn, a_plan(fee="10.00"), at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    complete_until(conn, at("2027-01-01"))
    return account.tenant_id


def test_one_run_over_several_months_uses_a_credit_once(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    grant_credit(conn, ORDER, CreditTerms(credit_id="gift", amount="25.00"))
    grant_coupon(conn, ORDER, CouponTerms(code="half", percent="50", uses=2))

    billing_run(conn, NOW)

    issued = [invoice(conn, "acme", f"2026-{month}", NOW) for month in (10, 11, 12)]
    assert [one.discount_minor for one in issued] == [500, 500, 0]
    assert [one.credit_minor for one in issued] == [500, 500, 1000]
    assert accounts(conn, [acme])[acme].credits[0].left_minor == 500


@pytest.mark.usefixtures("acme")
def test_invoice_is_rebuilt_byte_for_byte_from_its_stored_inputs(
    conn: psycopg.Connection[Any],
) -> None:
    grant_credit(conn, ORDER, CreditTerms(credit_id="gift", amount="2.00"))
    grant_coupon(conn, ORDER, CouponTerms(code="half", percent="33.3333"))
    set_tax(conn, ORDER, TaxTerms(name="VAT", rate="0.19"))
    issued = invoice(conn, "acme", "2026-10", NOW)
    grant_credit(conn, ORDER, CreditTerms(credit_id="later", amount="1.00"))

    [snapshot] = conn.execute("SELECT snapshot FROM invoice").fetchall()[0]
    rebuilt = _rebuilt(issued, snapshot)

    assert rebuilt.content_hash == issued.content_hash
    assert issued.due_minor == 594


def _rebuilt(issued: Invoice, snapshot: dict[str, Any]) -> Invoice:
    assert issued.number is not None
    assert issued.issued_at is not None
    charges = [replace(line, discount_minor=0) for line in issued.lines]
    settled = settle(issued.billed, charges, read_inputs(snapshot["inputs"]))
    return finalize(issued.billed, settled, issued.number, issued.issued_at)


@pytest.mark.parametrize(
    ("grant", "terms", "reason"),
    [
        (grant_coupon, CouponTerms(code="x"), "TermsInvalid"),
        (grant_coupon, CouponTerms(code="x", percent="120"), "TermsInvalid"),
        (grant_coupon, CouponTerms(code="x", percent="5", target="rent"), "TermsInvalid"),
        (grant_coupon, CouponTerms(code="x", amount="1.001"), "AmountTooPrecise"),
        (grant_coupon, CouponTerms(code="x", percent="5", target="usage/rpc"), "MeterUnknown"),
        (grant_coupon, CouponTerms(code="x", percent="33.33333"), "AmountTooPrecise"),
        (grant_coupon, CouponTerms(code="x", percent="Infinity"), "NumberInvalid"),
        (grant_coupon, CouponTerms(code="x", amount="15,00"), "NumberInvalid"),
        (grant_coupon, CouponTerms(code="known", percent="5"), "AlreadyGranted"),
        (grant_credit, CreditTerms(credit_id="x", amount="0"), "TermsInvalid"),
        (grant_credit, CreditTerms(credit_id="x", amount="1", kind="credit_note"), "TermsInvalid"),
        (grant_credit, CreditTerms(credit_id="known", amount="1"), "AlreadyGranted"),
        (grant_credit, CreditTerms(credit_id="note/CN-2026-000001", amount="1"), "TermsInvalid"),
        (set_tax, TaxTerms(name="VAT", rate="19%"), "NumberInvalid"),
        (set_tax, TaxTerms(name="VAT", rate="0.1234567"), "AmountTooPrecise"),
        (set_tax, TaxTerms(name="VAT", rate="1.5"), "TermsInvalid"),
        (set_tax, TaxTerms(name="VAT", rate="0"), "TermsInvalid"),
    ],
)
@pytest.mark.usefixtures("acme")
def test_impossible_terms_are_refused_and_leave_nothing(
    conn: psycopg.Connection[Any], grant: Any, terms: Any, reason: str
) -> None:
    grant_coupon(conn, ORDER, CouponTerms(code="known", percent="5"))
    grant_credit(conn, ORDER, CreditTerms(credit_id="known", amount="5"))
    before = whole_content(conn)

    with pytest.raises(Rejected) as refused:
        grant(conn, ORDER, terms)

    assert refused.value.reason == reason
    assert whole_content(conn) == before


def test_unknown_tenant_is_said_in_words(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(Rejected, match="nobody") as refused:
        set_tax(conn, replace(ORDER, tenant="nobody"), TaxTerms(name="VAT", rate="0.2"))

    assert refused.value.reason == "TenantNotFound"


@pytest.mark.usefixtures("acme")
def test_changed_tax_counts_from_its_day_and_an_equal_one_changes_nothing(
    conn: psycopg.Connection[Any],
) -> None:
    set_tax(conn, ORDER, TaxTerms(name="VAT", rate="0.19"))
    before = whole_content(conn)
    set_tax(conn, replace(ORDER, now=at("2026-10-05")), TaxTerms(name="VAT", rate="0.19"))
    assert whole_content(conn) == before

    set_tax(conn, ORDER, TaxTerms(name="VAT", rate="0.21", starts_at=at("2026-11-30T12:00:00Z")))

    assert invoice(conn, "acme", "2026-10", NOW).tax_minor == 190
    assert invoice(conn, "acme", "2026-11", NOW).tax_minor == 210
    with pytest.raises(Rejected) as refused:
        set_tax(conn, ORDER, TaxTerms(name="VAT", rate="0.25"))
    assert refused.value.reason == "TaxFixed"


@pytest.mark.usefixtures("acme")
def test_ended_coupon_counts_no_more(conn: psycopg.Connection[Any]) -> None:
    grant_coupon(conn, ORDER, CouponTerms(code="always", percent="10", uses=None))
    end_coupon(conn, replace(ORDER, now=at("2026-11-15")), "always")

    issued = [invoice(conn, "acme", f"2026-{month}", NOW) for month in (10, 11, 12)]

    assert [one.discount_minor for one in issued] == [100, 100, 0]


def test_expired_credit_leaves_the_ledger_when_its_last_period_is_billed(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    terms = CreditTerms(credit_id="gift", amount="25.00", expires_at=at("2026-11-20"))
    grant_credit(conn, ORDER, terms)
    assert _balance(conn, "customer_credit") == -2500

    billing_run(conn, NOW)
    billing_run(conn, NOW)

    assert _balance(conn, "customer_credit") == 0
    assert _balance(conn, "credit_given") == 1000
    assert conn.execute("SELECT left_minor FROM credit_left").fetchall() == [(1500,)]
    assert acme


def _balance(conn: psycopg.Connection[Any], account: str) -> int:
    row = conn.execute(
        "SELECT COALESCE(sum(amount_minor), 0)::bigint FROM ledger_entry WHERE account = %s",
        [account],
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_database_refuses_to_use_a_credit_or_coupon_twice(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    grant_credit(conn, ORDER, CreditTerms(credit_id="gift", amount="10.00"))
    grant_coupon(conn, ORDER, CouponTerms(code="once", amount="1.00"))
    invoice(conn, "acme", "2026-10", NOW)
    draft_sql = (
        "INSERT INTO invoice SELECT tenant_id, gen_random_uuid(), '2026-11', 'draft', 'other',"
        " currency, 0, 0, 0, 0, 0, 0, 0, issued_at, snapshot, content_hash FROM invoice"
        " RETURNING invoice_id"
    )
    [invoice_id] = conn.execute(draft_sql).fetchall()[0]

    with pytest.raises(errors.CheckViolation, match="left"):
        conn.execute(
            "INSERT INTO invoice_credit VALUES (%s, %s, 'gift', 0, 200)", [acme, invoice_id]
        )
    with pytest.raises(errors.CheckViolation, match="used up"):
        conn.execute(
            "INSERT INTO invoice_discount VALUES (%s, %s, 'once', 0, 'invoice', NULL, 1)",
            [acme, invoice_id],
        )


@pytest.mark.usefixtures("acme")
def test_void_invoice_gives_its_credits_and_coupons_back(conn: psycopg.Connection[Any]) -> None:
    grant_credit(conn, ORDER, CreditTerms(credit_id="gift", amount="3.00"))
    grant_coupon(conn, ORDER, CouponTerms(code="once", amount="1.00"))
    invoice(conn, "acme", "2026-10", NOW)

    conn.execute("UPDATE invoice SET status = 'void'")

    assert conn.execute("SELECT left_minor FROM credit_left").fetchall() == [(300,)]
    assert conn.execute("SELECT uses_left FROM coupon_left").fetchall() == [(1,)]


@pytest.mark.usefixtures("acme")
def test_every_grant_is_in_the_audit_chain_of_its_tenant(conn: psycopg.Connection[Any]) -> None:
    grant_coupon(conn, ORDER, CouponTerms(code="once", amount="1.00"))
    grant_credit(conn, ORDER, CreditTerms(credit_id="gift", amount="3.00"))
    set_tax(conn, ORDER, TaxTerms(name="VAT", rate="0.19"))
    end_coupon(conn, ORDER, "once")

    rows = conn.execute(
        "SELECT seq, actor, action, object, payload->>'amount' FROM audit_log"
        " WHERE actor = 'ana' ORDER BY seq"
    ).fetchall()

    assert rows == [
        (1, "ana", "coupon.grant", "once", "1.00"),
        (2, "ana", "credit.grant", "gift", "3.00"),
        (3, "ana", "tax.set", "VAT", None),
        (4, "ana", "coupon.end", "once", None),
    ]


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE credit_grant SET amount_minor = 1",
        "UPDATE coupon_grant SET percent = 1, amount_minor = NULL",
        "UPDATE tenant_tax SET rate = 0.1",
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "DELETE FROM tenant_tax",
        "UPDATE invoice_credit SET amount_minor = 1",
        "DELETE FROM invoice_discount",
        "UPDATE invoice_tax SET amount_minor = 0",
        "TRUNCATE audit_log",
    ],
)
def test_granted_and_used_rows_never_change(conn: psycopg.Connection[Any], statement: Any) -> None:
    grant_coupon(conn, ORDER, CouponTerms(code="once", amount="1.00"))
    grant_credit(conn, ORDER, CreditTerms(credit_id="gift", amount="3.00"))
    set_tax(conn, ORDER, TaxTerms(name="VAT", rate="0.19"))
    invoice(conn, "acme", "2026-10", NOW)
    before = whole_content(conn)

    with pytest.raises(errors.RestrictViolation):
        conn.execute(statement)

    assert whole_content(conn) == before
    assert store.stored_invoice(conn, invoice(conn, "acme", "2026-10", NOW).billed) is not None
