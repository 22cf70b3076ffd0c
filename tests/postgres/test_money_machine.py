"""Any order of bills, payments, voids, refunds and late usage, with lost answers: the books hold.

Each sequence runs on a database of its own. What a step does may lose an answer of the processor,
or be cut off from Postgres at one of its commits; then it is done again, as a person or a job does.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

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
from botplane.billing.payments.fake import FakeProcessor, Fault
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import record_transfer, set_payment_method, store_event
from botplane.billing.proof.store import compare_processor, reconcile, verify_audit
from botplane.billing.refunds.run import refund, settle_refunds
from botplane.billing.refunds.store import RefundTerms
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.billing.voids.store import VoidTerms, void_invoice
from botplane.errors import Rejected, Retryable
from botplane.tenants.store import register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until, record_usage
from tests.support.controlplane.postgres import Postgres
from tests.support.cut_connection import CutConnection

EXAMPLES = int(os.environ.get("BOTPLANE_SEQUENCES", "8"))
"""How many sequences; more of them on demand."""
START = at("2026-10-01")
FEE_MINOR, CALL_MINOR = 1000, 1
CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}

Conn = psycopg.Connection[Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]
STEPS = [
    *["a_month_passes_and_is_billed", "what_is_due_is_billed"] * 2,
    *["days_pass_and_payments_are_collected", "a_payment_goes_back"] * 4,
    *["a_bill_is_void", "calls_of_earlier_months_arrive"] * 3,
    *["the_card_changes_its_mind", "something_is_granted", "a_credit_note_is_issued"] * 2,
    *["calls_are_made", "open_refunds_are_settled", "a_transfer_arrives"],
    *["a_declined_payment_turns_out_well"] * 2,
]
"""What may happen next; what stands here more often happens more often."""
which = st.integers(0, 2)
calls = st.integers(1, 2000)
cuts = st.sampled_from([0, 0, 0, 1, 2, 3, 5])
"""At which commit a step is cut off; 0: at none."""
losses = st.lists(st.sampled_from([None, *Fault]), max_size=4)
amounts = st.sampled_from(["0.01", "1.00", "4.05", "9.99", "25.00"])


class Books(RuleBasedStateMachine):
    """One tenant: 10.00 a month and a cent for a call, with tax."""

    postgres: Postgres
    template: str

    def __init__(self) -> None:
        super().__init__()
        self.name = f"test_{uuid.uuid4().hex[:12]}"
        self.url = self.postgres.create_database(self.name, template=self.template)
        self.conn = psycopg.connect(self.url, autocommit=True, options="-c timezone=UTC")
        self.account = an_account()
        self.processor = FakeProcessor()
        self.now = START + timedelta(hours=1)
        self.calls: Counter[str] = Counter()
        self.serial = 0
        publish_plan(self.conn, a_plan(fee="10.00", prices=[CALLS]), START)
        register_tenant(self.conn, self.account, START)
        set_tax(self.conn, self.order, TaxTerms(name="VAT", rate="0.19", starts_at=START))
        set_payment_method(self.conn, self.order, "cus_1", "card")
        self.processor.declines = {"card": "insufficient_funds"}
        for month in range(2):
            self.use(self.now, 700 * month + 100)
            self.bill_the_month(0)

    @property
    def order(self) -> Order:
        return Order(tenant="acme", actor="ana", now=self.now)

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.conn.close()
            self.postgres.drop_database(self.name)

    def do(self, cut: int, act: Callable[[Conn], object]) -> None:
        """Do something that may lose its connection, and then do it again."""
        if cut:
            with (
                CutConnection(self.url, cut) as wire,
                psycopg.connect(wire.url, autocommit=True) as broken,
                suppress(Retryable, Rejected),
            ):
                act(broken)
        with suppress(Rejected):
            act(self.conn)

    def reference(self) -> str:
        self.serial += 1
        return f"r-{self.serial}"

    def number(self, nth: int, status: str) -> str:
        """Return the nth newest invoice of a status; of any, where none has it."""
        rows = self.conn.execute(
            "SELECT number FROM invoice ORDER BY status = %s DESC, issued_at DESC, number DESC",
            [status],
        ).fetchall()
        return str(rows[nth % len(rows)][0])

    def use(self, moment: datetime, calls: int) -> None:
        record_usage(self.conn, self.account.tenant_id, [(moment, "rpc_calls", Decimal(calls))])
        self.calls[f"{moment:%Y-%m}"] += calls

    @rule(step=st.sampled_from(STEPS), data=st.data())
    def something_happens(self, step: str, data: st.DataObject) -> None:
        """Choose by one rule: were each step a rule, most would be left out of most sequences."""
        getattr(self, step)(data.draw)

    def calls_are_made(self, draw: Draw) -> None:
        self.use(self.now - timedelta(minutes=30), draw(calls))

    def calls_of_earlier_months_arrive(self, draw: Draw) -> None:
        months = draw(st.integers(1, 3))
        self.use(max(self.now - timedelta(days=30 * months), START), draw(calls))

    def a_month_passes_and_is_billed(self, draw: Draw) -> None:
        self.bill_the_month(draw(cuts))

    def bill_the_month(self, cut: int) -> None:
        following = (self.now.replace(day=1) + timedelta(days=32)).replace(day=1)
        self.now = following.replace(hour=9)
        complete_until(self.conn, self.now)
        self.do(cut, lambda conn: billing_run(conn, self.now))

    def days_pass_and_payments_are_collected(self, draw: Draw) -> None:
        end_of_month = (self.now.replace(day=1) + timedelta(days=32)).replace(day=1)
        later = self.now + timedelta(days=draw(st.integers(0, 8)))
        self.now = min(later, end_of_month - timedelta(hours=1))
        self.processor.faults = draw(losses)
        self.do(draw(cuts), lambda conn: collect(conn, self.processor, self.now))

    def the_card_changes_its_mind(self, draw: Draw) -> None:
        code = draw(st.sampled_from([None, "insufficient_funds", "stolen_card", "requires_action"]))
        self.processor.declines = {} if code is None else {"card": code}
        if code is None:
            customer = f"cus_{self.reference()}"
            set_payment_method(self.conn, self.order, customer, "card")

    def a_bill_is_void(self, draw: Draw) -> None:
        terms = VoidTerms(invoice_number=self.number(draw(which), "finalized"), reason="wrong")
        self.do(draw(cuts), lambda conn: void_invoice(conn, terms, "ana", self.now))

    def what_is_due_is_billed(self, draw: Draw) -> None:
        self.do(draw(cuts), lambda conn: billing_run(conn, self.now))

    def a_payment_goes_back(self, draw: Draw) -> None:
        terms = RefundTerms(
            invoice_number=self.number(draw(which), "paid"),
            reference=self.reference(),
            reason="outage",
            amount=draw(st.one_of(st.none(), amounts)),
        )
        self.processor.faults = draw(losses)
        self.do(draw(cuts), lambda conn: refund(conn, terms, self.processor, ("ana", self.now)))

    def open_refunds_are_settled(self, draw: Draw) -> None:
        self.processor.faults = draw(losses)
        self.do(draw(cuts), lambda conn: settle_refunds(conn, self.processor, self.now))

    def a_credit_note_is_issued(self, draw: Draw) -> None:
        terms = NoteTerms(
            invoice_number=self.number(draw(which), "finalized"),
            reference=self.reference(),
            amount=draw(amounts),
            reason="outage",
        )
        self.do(draw(cuts), lambda conn: issue_credit_note(conn, terms, "ana", self.now))

    def a_transfer_arrives(self, draw: Draw) -> None:
        number, reference = self.number(draw(which), "uncollectible"), self.reference()
        self.do(draw(cuts), lambda conn: record_transfer(conn, number, reference, "ana", self.now))

    def a_declined_payment_turns_out_well(self, _: Draw) -> None:
        rows = self.conn.execute(
            "SELECT a.invoice_id FROM payment_attempt a"
            " JOIN invoice i ON i.tenant_id = a.tenant_id AND i.invoice_id = a.invoice_id"
            " WHERE a.processor = 'fake' AND a.attempt_no = (SELECT max(b.attempt_no)"
            " FROM payment_attempt b WHERE b.invoice_id = a.invoice_id)"
            " AND a.status = 'failed' AND a.processor_ref IS NOT NULL AND i.status <> 'paid'"
            " ORDER BY i.status = 'void' DESC, i.issued_at LIMIT 1"
        ).fetchall()
        for (invoice_id,) in rows:
            self.processor.faults = []
            self.processor.confirm(invoice_id)
            about = {"object": {"metadata": {"invoice_id": str(invoice_id)}}}
            store_event(self.conn, "fake", {"id": self.reference(), "data": about}, self.now)
            collect(self.conn, self.processor, self.now)

    def something_is_granted(self, draw: Draw) -> None:
        kind, amount = draw(st.sampled_from(["coupon", "promotional", "purchased"])), draw(amounts)
        if kind == "coupon":
            coupon = CouponTerms(code=self.reference(), percent="33.3333", uses=2)
            grant_coupon(self.conn, self.order, coupon)
            return
        expiry = self.now + timedelta(days=40) if kind == "promotional" else None
        terms = CreditTerms(credit_id=self.reference(), amount=amount, kind=kind, expires_at=expiry)
        grant_credit(self.conn, self.order, terms)

    def finish(self) -> None:
        """Prove the books as they are; then let all open ends come in, and prove them again."""
        self.prove()
        self.processor.faults, self.processor.declines = [], {}
        for _ in range(2):
            self.bill_the_month(0)
        collect(self.conn, self.processor, self.now)
        assert settle_refunds(self.conn, self.processor, self.now) == 0
        self.prove()
        assert compare_processor(self.conn, self.processor, START) == []
        self.prove_that_each_call_is_billed_once()
        self.prove_that_cash_is_what_moved()

    def prove(self) -> None:
        assert reconcile(self.conn, START, self.now) == []
        assert verify_audit(self.conn, []) == []
        assert self.conn.execute(
            "SELECT count(*) FROM invoice_open WHERE open_minor < 0 AND status <> 'paid'"
        ).fetchone() == (0,)
        for series, last, numbers in self.conn.execute(
            "SELECT c.series, c.last, ARRAY(SELECT number FROM invoice WHERE number LIKE c.series"
            " || '-%' UNION SELECT number FROM credit_note WHERE number LIKE c.series || '-%')"
            " FROM invoice_counter c"
        ):
            assert {*numbers} == {f"{series}-{n:06d}" for n in range(1, last + 1)}

    def prove_that_each_call_is_billed_once(self) -> None:
        """The bill of a month and all that corrects it are its fee and its calls."""
        billed = self.conn.execute(
            "SELECT i.period, sum(l.amount_minor)::bigint FROM invoice_line l"
            " JOIN invoice o ON o.tenant_id = l.tenant_id AND o.invoice_id = l.invoice_id"
            " JOIN invoice i ON i.tenant_id = l.tenant_id"
            " AND i.invoice_id = COALESCE(l.corrects_invoice, l.invoice_id)"
            " WHERE o.status <> 'void' GROUP BY i.period"
        ).fetchall()
        assert billed
        assert dict(billed) == {
            period: FEE_MINOR + CALL_MINOR * self.calls[period] for period, _ in billed
        }

    def prove_that_cash_is_what_moved(self) -> None:
        captured = Counter[uuid.UUID]()
        for charge in self.processor.captured.values():
            assert charge.invoice_id not in captured, "collected twice"
            captured[charge.invoice_id] += charge.amount_minor
        back = Counter[uuid.UUID]()
        for made in self.processor.refunded.values():
            back[made.invoice_id] += made.amount_minor
        assert all(back[invoice_id] <= captured[invoice_id] for invoice_id in back)
        by_hand = self.conn.execute(
            "SELECT (SELECT COALESCE(sum(amount_minor), 0) FROM payment_attempt"
            "   WHERE processor = 'none' AND status = 'succeeded')"
            " - (SELECT COALESCE(sum(amount_minor), 0) FROM refund"
            "   WHERE processor = 'none' AND status = 'succeeded')"
            " + (SELECT COALESCE(sum(amount_minor), 0) FROM credit_grant WHERE kind = 'purchased')"
        ).fetchone()
        cash = self.conn.execute(
            "SELECT COALESCE(sum(amount_minor), 0) FROM ledger_entry WHERE account = 'cash'"
        ).fetchone()
        assert by_hand is not None
        assert cash == (by_hand[0] + captured.total() - back.total(),)


def test_books_hold_after_any_sequence(postgres: Postgres, template: str) -> None:
    machine = type("Machine", (Books,), {"postgres": postgres, "template": template})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
