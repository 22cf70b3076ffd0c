"""A change of money, prices, limits or keys leaves one entry, or there was no change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from botplane.api import labels
from botplane.billing.adjustments import store as adjustments
from botplane.billing.adjustments.store import Order
from botplane.billing.payments.store import record_transfer, set_payment_method
from botplane.billing.proof.store import verify_audit
from botplane.billing.records.store import erase_tenant
from botplane.billing.refunds.run import refund
from botplane.billing.refunds.store import RefundTerms
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.billing.voids.store import VoidTerms, void_invoice
from botplane.errors import Rejected, Retryable
from botplane.metering.events.store import (
    IngestKey,
    create_tenant_key,
    register_keys,
    revoke_tenant_key,
    secret_hash,
)
from botplane.metering.evidence import read_pod
from botplane.metering.policy import Fate, Sight
from botplane.metering.store import Look, MeteringStore
from botplane.store.pool import Role, become
from botplane.tenants.store import close_tenant, register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until, record_usage
from tests.support.cut_connection import CutConnection

OCT, NOV, DEC = at("2026-10-01"), at("2026-11-02"), at("2026-12-02")
FIRST = "INV-2026-000001"
ACME = an_account()
CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}
ORDER = Order(tenant="acme", actor="ana", now=NOV)

Conn = psycopg.Connection[Any]
Act = Callable[[Conn], object]


@dataclass(frozen=True)
class Case:
    """One change, how it is prepared, and how often it is seen to have happened."""

    action: str
    subject: str
    act: Act
    happened: str
    prepare: Act = lambda _: None
    actor: str = "ana"
    chain: str = f"tenant/{ACME.tenant_id}"


def billed(conn: Conn) -> None:
    complete_until(conn, NOV)
    billing_run(conn, NOV)


def paid(conn: Conn) -> None:
    billed(conn)
    record_transfer(conn, FIRST, "bank-1", "bea", NOV)


def late(conn: Conn) -> None:
    billed(conn)
    record_usage(conn, ACME.tenant_id, [(at("2026-10-05"), "rpc_calls", Decimal(7))])
    complete_until(conn, DEC)


def closed(conn: Conn) -> None:
    close_tenant(conn, ACME.tenant_id, NOV)
    complete_until(conn, DEC)
    billing_run(conn, DEC)


def a_key(conn: Conn) -> None:
    register_keys(conn, [KEY], NOV, "bea")


KEY = IngestKey(
    key_id="k1", tenant_id=ACME.tenant_id, bot_id=None, secret_hash=secret_hash("secret")
)
COUPON = adjustments.CouponTerms(code="half", percent="50")
CREDIT = adjustments.CreditTerms(credit_id="gift", amount="1.00")
NOTE = adjustments.NoteTerms(invoice_number=FIRST, reference="r", amount="1.00", reason="x")
BACK = RefundTerms(invoice_number=FIRST, reference="r", amount="1.00", reason="x")
POD_UID = UUID(int=7)


class OneConnection:
    """A pool of one connection, which may break."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn

    @contextmanager
    def connection(self) -> Iterator[Conn]:
        yield self._conn


def force(conn: Conn) -> None:
    """Settle a pod that is deleted and annotated, as metering does."""
    pod = read_pod(
        {
            "metadata": {
                "uid": str(POD_UID),
                "name": "bot-1",
                "namespace": "tenant-acme",
                "creationTimestamp": "2026-11-01T00:00:00Z",
                "deletionTimestamp": "2026-11-01T00:10:00Z",
                "annotations": {"botplane.io/force-settle": "true"},
                "labels": {
                    labels.TENANT: "acme",
                    labels.TENANT_UID: str(ACME.tenant_id),
                    labels.BOT: "bot",
                    labels.BOT_UID: str(UUID(int=8)),
                },
                "finalizers": [labels.METERING_FINALIZER],
            },
            "spec": {"containers": [{"name": "bot"}]},
            "status": {},
        }
    )
    assert pod.account is not None
    look = Look(pod=pod, account=pod.account, sight=Sight(at=NOV, fate=Fate.PRESENT))
    become(conn, Role.METERING)
    MeteringStore(cast("Any", OneConnection(conn))).settle([look], NOV)
    conn.execute("RESET ROLE")


CASES = [
    Case(
        "plan.publish",
        "basic",
        lambda conn: publish_plan(conn, a_plan(fee="11.00", prices=[CALLS]), NOV),
        "SELECT count(*) FROM plan_version WHERE plan = 'basic' AND version = 2",
        actor="plan-reconciler",
        chain="system",
    ),
    Case(
        "plan.change",
        "other",
        lambda conn: register_tenant(conn, replace(ACME, plan="other"), NOV),
        "SELECT count(*) FROM subscription_phase WHERE plan = 'other'",
        actor="tenant-reconciler",
    ),
    Case(
        "limit.change",
        "spend",
        lambda conn: register_tenant(conn, replace(ACME, spend_limit=Decimal(5)), NOV),
        "SELECT count(*) FROM tenant WHERE spend_limit = 5",
        actor="tenant-reconciler",
    ),
    Case(
        "credit.grant",
        "gift",
        lambda conn: adjustments.grant_credit(conn, ORDER, CREDIT),
        "SELECT count(*) FROM credit_grant",
    ),
    Case(
        "coupon.grant",
        "half",
        lambda conn: adjustments.grant_coupon(conn, ORDER, COUPON),
        "SELECT count(*) FROM coupon_grant",
    ),
    Case(
        "coupon.end",
        "half",
        lambda conn: adjustments.end_coupon(conn, ORDER, "half"),
        "SELECT count(*) FROM coupon_grant WHERE ends_at IS NOT NULL",
        lambda conn: adjustments.grant_coupon(conn, ORDER, COUPON),
    ),
    Case(
        "one_off.charge",
        "setup",
        lambda conn: adjustments.charge_one_off(
            conn,
            ORDER,
            adjustments.OneOffTerms(reference="setup", amount="5.00", description="Help"),
        ),
        "SELECT count(*) FROM one_off",
    ),
    Case(
        "tax.set",
        "VAT",
        lambda conn: adjustments.set_tax(
            conn, ORDER, adjustments.TaxTerms(name="VAT", rate="0.19")
        ),
        "SELECT count(*) FROM tenant_tax",
    ),
    Case(
        "payment_method.set",
        "method",
        lambda conn: set_payment_method(conn, ORDER, "cus_1", "pm_1"),
        "SELECT count(*) FROM tenant_payment",
    ),
    Case(
        "invoice.void",
        FIRST,
        lambda conn: void_invoice(conn, VoidTerms(invoice_number=FIRST, reason="x"), "ana", NOV),
        "SELECT count(*) FROM invoice WHERE status = 'void'",
        billed,
    ),
    Case(
        "invoice.correct",
        "INV-2026-000002",
        lambda conn: billing_run(conn, DEC),
        "SELECT count(*) FROM invoice_line WHERE kind = 'correction'",
        late,
        "billing-run",
    ),
    Case(
        "credit_note.issue",
        "CN-2026-000001",
        lambda conn: adjustments.issue_credit_note(conn, NOTE, "ana", NOV),
        "SELECT count(*) FROM credit_note",
        billed,
    ),
    Case(
        "payment.record",
        FIRST,
        lambda conn: record_transfer(conn, FIRST, "bank-1", "ana", NOV),
        "SELECT count(*) FROM payment_attempt",
        billed,
    ),
    Case(
        "payment.refund",
        "r",
        lambda conn: refund(conn, BACK, None, ("ana", NOV)),
        "SELECT count(*) FROM refund",
        paid,
    ),
    Case(
        "tenant.erase",
        "personal data",
        lambda conn: erase_tenant(conn, replace(ORDER, now=DEC)),
        "SELECT 1 - count(*) FROM tenant_profile",
        closed,
    ),
    Case(
        "key.create",
        "k1",
        lambda conn: register_keys(conn, [KEY], NOV, "ana"),
        "SELECT count(*) FROM ingest_key",
    ),
    Case(
        "key.revoke",
        "k1",
        lambda conn: revoke_tenant_key(conn, "acme", "k1", "ana", NOV),
        "SELECT count(*) FROM ingest_key WHERE revoked_at IS NOT NULL",
        a_key,
    ),
    Case(
        "pod.force_settle",
        "tenant-acme/bot-1",
        force,
        "SELECT count(*) FROM pod WHERE forced_at IS NOT NULL",
        actor="metering",
    ),
]


@pytest.fixture
def books(conn: Conn) -> Conn:
    """One tenant on one of two plans."""
    publish_plan(conn, a_plan(fee="10.00", prices=[CALLS]), OCT)
    publish_plan(conn, a_plan("other", fee="20.00"), OCT)
    register_tenant(conn, ACME, OCT)
    return conn


def count(conn: Conn, query: str) -> int:
    row = conn.execute(cast("Any", query)).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.action)
def test_change_and_its_entry_are_one_whatever_statement_is_the_last(
    books: Conn, migrated: str, case: Case
) -> None:
    """The change is tried again, cut one statement later, until it gets through."""
    case.prepare(books)
    mine = f"SELECT count(*) FROM audit_log WHERE action = '{case.action}'"
    before, is_through, cut = count(books, mine), False, 0
    assert count(books, case.happened) == 0
    while not is_through:
        cut += 1
        with (
            CutConnection(migrated, cut, every_statement=True) as wire,
            psycopg.connect(wire.url, autocommit=True) as broken,
            suppress(Retryable, Rejected, psycopg.OperationalError),
        ):
            case.act(broken)
        # A run may have found the rows still held by the one that was cut before it.
        is_through = count(books, case.happened) > 0
        assert count(books, mine) - before == count(books, case.happened)

    assert cut > 1
    [entry] = books.execute(
        "SELECT chain, actor, object FROM audit_log WHERE action = %s ORDER BY seq DESC LIMIT 1",
        [case.action],
    ).fetchall()
    assert entry == (case.chain, case.actor, case.subject)
    assert verify_audit(books, []) == []


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.action != "plan.publish"], ids=lambda case: case.action
)
def test_change_that_is_asked_for_again_is_no_second_entry(books: Conn, case: Case) -> None:
    case.prepare(books)
    for _ in range(2):
        with suppress(Rejected):
            case.act(books)

    entries = f"SELECT count(*) FROM audit_log WHERE action = '{case.action}' AND actor = %s"
    assert books.execute(cast("Any", entries), [case.actor]).fetchone() == (1,)


def test_writers_of_one_chain_wait_for_each_other_and_it_holds(books: Conn, migrated: str) -> None:
    start = threading.Barrier(4)

    def append(writer: int) -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            start.wait()
            for number in range(25):
                mine.execute(
                    "SELECT audit_append('tenant/new', 'ana', 'x', %s, '{}', now())",
                    [f"{writer}-{number}"],
                )

    writers = [threading.Thread(target=append, args=[writer]) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    entries = books.execute(
        "SELECT count(*), count(DISTINCT object), max(seq) FROM audit_log"
        " WHERE chain = 'tenant/new'"
    ).fetchone()
    assert entries == (100, 100, 100)
    assert verify_audit(books, []) == []


def test_one_transaction_may_append_to_many_chains_and_locks_none(books: Conn) -> None:
    with books.transaction():
        books.execute(
            "SELECT audit_append('tenant/' || n, 'run', 'x', 'y', '{}', now())"
            " FROM generate_series(1, 2000) AS n"
        )
        locks = books.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert locks.fetchone() == (0,)

    assert verify_audit(books, []) == []


def test_entry_says_what_changed(books: Conn) -> None:
    register_tenant(books, replace(ACME, spend_limit=Decimal(5), plan="other"), NOV)
    register_tenant(books, replace(ACME, spend_limit=None, plan="other"), DEC)
    bearer = create_tenant_key(books, "acme", ("usage:read",), "ana", DEC)

    said = books.execute(
        "SELECT action, payload FROM audit_log WHERE chain LIKE 'tenant/%' ORDER BY seq"
    ).fetchall()

    assert said == [
        ("limit.change", {"from": None, "to": "5"}),
        ("plan.change", {"from": "basic", "to": "other"}),
        ("limit.change", {"from": "5.0000", "to": None}),
        ("key.create", {"bot": None, "scopes": ["usage:read"]}),
    ]
    assert bearer.partition(".")[2] not in str(books.execute("SELECT * FROM audit_log").fetchall())


FLIPS = {
    "chain": "convert_from(set_byte(convert_to({0}, 'UTF8'), {1}, {2}), 'LATIN1')",
    "actor": "convert_from(set_byte(convert_to({0}, 'UTF8'), {1}, {2}), 'LATIN1')",
    "action": "convert_from(set_byte(convert_to({0}, 'UTF8'), {1}, {2}), 'LATIN1')",
    "object": "convert_from(set_byte(convert_to({0}, 'UTF8'), {1}, {2}), 'LATIN1')",
    "hash": "set_byte({0}, {1}, {2})",
}


@pytest.mark.parametrize("column", FLIPS)
def test_every_flipped_byte_is_found(books: Conn, column: str) -> None:
    adjustments.grant_credit(books, ORDER, CREDIT)
    adjustments.grant_coupon(books, ORDER, COUPON)
    name = sql.Identifier(column)
    size = count(
        books, f"SELECT min(length({column}::text)) / {2 if column == 'hash' else 1} FROM audit_log"
    )
    books.execute("SET session_replication_role = replica")

    for position in range(size - (column == "hash")):
        flipped = sql.SQL(
            FLIPS[column].replace("{1}", str(position)).replace("{2}", str(ord("~")))
        ).format(name)
        with books.transaction(force_rollback=True):
            books.execute(
                sql.SQL("UPDATE audit_log SET {} = {} WHERE seq = 1").format(name, flipped)
            )
            assert verify_audit(books, []) != [], position


@pytest.mark.parametrize(
    "change",
    [
        "at = at + interval '1 microsecond'",
        "seq = seq + 1000",
        "payload = payload || '{\"x\": 1}'",
        "payload = replace(payload::text, '1', '2')::jsonb",
    ],
)
def test_other_changes_of_an_entry_are_found(books: Conn, change: str) -> None:
    adjustments.grant_credit(books, ORDER, CREDIT)
    books.execute("SET session_replication_role = replica")

    books.execute(cast("Any", f"UPDATE audit_log SET {change} WHERE chain LIKE 'tenant/%'"))

    assert verify_audit(books, []) != []
