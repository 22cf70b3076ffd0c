"""Postgres commits and the answer is lost: the same call again changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from botplane.billing.adjustments.store import (
    NoteTerms,
    Order,
    TaxTerms,
    issue_credit_note,
    set_tax,
)
from botplane.billing.payments.fake import FakeProcessor
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import set_payment_method
from botplane.billing.proof.store import reconcile
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.errors import Retryable
from botplane.tenants.store import close_tenant, register_tenant
from tests.support.billing import (
    Run,
    a_plan,
    an_account,
    at,
    complete_until,
    per_hour,
    record_runs,
    record_usage,
    whole_content,
)
from tests.support.cut_connection import CutConnection

NOW = at("2026-12-10T09:00:00Z")
ACME = an_account()
BASIC = a_plan(fee="10.00", prices=[per_hour("0.06")])
DEARER = a_plan(fee="12.00", prices=[per_hour("0.07")])
OTHER = a_plan("other", fee="1.00")

BETA = an_account().tenant_id

Call = Callable[[psycopg.Connection[Any]], object]
CALLS: dict[str, Call] = {
    "publish a new plan": lambda conn: publish_plan(conn, OTHER, NOW),
    "publish changed prices": lambda conn: publish_plan(conn, DEARER, NOW),
    "register a tenant": lambda conn: register_tenant(
        conn, an_account("beta", tenant_id=BETA), NOW
    ),
    "close a tenant": lambda conn: close_tenant(conn, ACME.tenant_id, NOW),
    "bill everybody": lambda conn: billing_run(conn, NOW),
    "invoice one": lambda conn: invoice(conn, "acme", "2026-10", NOW),
}
COMMITS = {"bill everybody": 4, "invoice one": 5}
"""How many transactions a call has at least; the others have one."""


@pytest.fixture
def prepared(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """A database in which every call has something to do."""
    publish_plan(conn, BASIC, at("2026-10-01"))
    register_tenant(conn, ACME, at("2026-10-01"))
    record_runs(conn, ACME.tenant_id, [Run(start=at("2026-10-03"), end=at("2026-11-04"))])
    complete_until(conn, at("2026-12-01"))
    return conn


@pytest.mark.parametrize(
    ("name", "nth_commit"),
    [(name, nth) for name in CALLS for nth in range(1, COMMITS.get(name, 1) + 1)],
)
def test_call_is_repeated_after_its_answer_was_lost(
    prepared: psycopg.Connection[Any], migrated: str, name: str, nth_commit: int
) -> None:
    call = CALLS[name]
    with (
        CutConnection(migrated, nth_commit) as wire,
        psycopg.connect(wire.url, autocommit=True) as broken,
        pytest.raises(Retryable, match="Postgres did not answer"),
    ):
        call(broken)

    call(prepared)
    after_one_repetition = whole_content(prepared)
    call(prepared)

    assert whole_content(prepared) == after_one_repetition
    assert _owed(prepared) == _billed(prepared)
    assert prepared.execute("SELECT COALESCE(sum(last), 0) FROM invoice_counter").fetchone() == (
        prepared.execute("SELECT count(*) FROM invoice").fetchone()
    )


ORDER = Order(tenant="acme", actor="ana", now=NOW)
NOTE = NoteTerms(invoice_number="INV-2026-000001", reference="r", amount="1.00", reason="Outage")
MONEY: dict[str, Callable[[psycopg.Connection[Any], FakeProcessor], object]] = {
    "collect": lambda conn, fake: collect(conn, fake, NOW),
    "credit note": lambda conn, _: issue_credit_note(conn, NOTE, "ana", NOW),
}
MONEY_COMMITS = {"collect": 6, "credit note": 1}


@pytest.mark.parametrize(
    ("name", "nth_commit"),
    [(name, nth) for name in MONEY for nth in range(1, MONEY_COMMITS[name] + 1)],
)
def test_money_moves_once_although_the_answer_was_lost(
    prepared: psycopg.Connection[Any], migrated: str, name: str, nth_commit: int
) -> None:
    set_payment_method(prepared, ORDER, "cus_1", "pm_1")
    billing_run(prepared, NOW)
    call, fake = MONEY[name], FakeProcessor()
    with (
        CutConnection(migrated, nth_commit) as wire,
        psycopg.connect(wire.url, autocommit=True) as broken,
        pytest.raises(Retryable, match="Postgres did not answer"),
    ):
        call(broken, fake)

    call(prepared, fake)
    after_one_repetition = whole_content(prepared)
    call(prepared, fake)

    assert whole_content(prepared) == after_one_repetition
    collect(prepared, fake, NOW)
    captured = sum(charge.amount_minor for charge in fake.captured.values())
    assert prepared.execute(_BALANCE, ["cash"]).fetchone() == (captured,)
    assert prepared.execute(_BALANCE, ["receivable"]).fetchone() == (0,)


_BALANCE = "SELECT COALESCE(sum(amount_minor), 0)::bigint FROM ledger_entry WHERE account = %s"


def test_run_that_is_cut_after_any_statement_loses_and_doubles_nothing(
    prepared: psycopg.Connection[Any], migrated: str
) -> None:
    """Each month the run is cut one statement later, until it gets through."""
    set_payment_method(prepared, ORDER, "cus_1", "pm_1")
    set_tax(prepared, ORDER, TaxTerms(name="VAT", rate="0.19", starts_at=at("2026-10-01")))
    fake, cut, month = FakeProcessor(), 0, at("2026-10-01")
    is_through = False
    while not is_through:
        cut += 1
        month = (month + timedelta(days=40)).replace(day=1)
        complete_until(prepared, month)
        record_usage(
            prepared, ACME.tenant_id, [(month - timedelta(days=45), "rpc_calls", Decimal(1))]
        )
        with (
            CutConnection(migrated, cut, every_statement=True) as wire,
            psycopg.connect(wire.url, autocommit=True) as broken,
        ):
            is_through = _gets_through(broken, fake, month)
        billing_run(prepared, month)
        collect(prepared, fake, month)

    assert cut > 25
    assert prepared.execute("SELECT count(*) FROM invoice").fetchone() == (cut,)
    assert prepared.execute("SELECT sum(last) FROM invoice_counter").fetchone() == (cut,)
    paid = prepared.execute("SELECT count(*) FROM invoice WHERE status = 'paid'").fetchone()
    assert paid == (cut,)
    assert len(fake.captured) == cut
    # The run of this test has no pod.
    differences = reconcile(prepared, at("2026-10-01"), month)
    assert [one.check for one in differences] == ["intervals = pods"]


def _gets_through(broken: psycopg.Connection[Any], fake: FakeProcessor, now: datetime) -> bool:
    try:
        billing_run(broken, now)
        collect(broken, fake, now)
    except Retryable:
        return False
    return True


def test_session_that_the_server_ends_is_retryable(
    prepared: psycopg.Connection[Any], migrated: str
) -> None:
    with psycopg.connect(migrated, autocommit=True) as doomed:
        prepared.execute("SELECT pg_terminate_backend(%s)", [doomed.info.backend_pid])

        with pytest.raises(Retryable) as lost:
            billing_run(doomed, NOW)

    assert lost.value.reason == "DatabaseUnavailable"


def _owed(conn: psycopg.Connection[Any]) -> object:
    return conn.execute(
        "SELECT COALESCE(sum(amount_minor), 0) FROM ledger_entry WHERE account = 'receivable'"
    ).fetchone()


def _billed(conn: psycopg.Connection[Any]) -> object:
    return conn.execute("SELECT COALESCE(sum(total_minor), 0) FROM invoice").fetchone()
