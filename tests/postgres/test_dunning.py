"""Every step of dunning leaves one notice, whoever asks and whatever answers are lost."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors
from typer.testing import CliRunner

from botplane.billing.adjustments.store import Order
from botplane.billing.dunning.policy import Notice
from botplane.billing.dunning.store import notices_of, take_untold
from botplane.billing.payments.fake import FakeProcessor, Fault
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import overdue_tenants, record_transfer, set_payment_method
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.cli import app
from botplane.errors import Retryable
from botplane.tenants.store import register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until, whole_content
from tests.support.cut_connection import CutConnection

NOW = at("2026-11-02T09:00:00Z")
DAY = timedelta(days=1)
ORDER = Order(tenant="acme", actor="ana", now=at("2026-10-01"))
FIRST = "INV-2026-000001"


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> UUID:
    """A tenant that owes 284.38 and has no payment method."""
    publish_plan(conn, a_plan(fee="284.38"), at("2026-10-01"))
    account = an_account()
    register_tenant(conn, account, at("2026-10-01"))
    complete_until(conn, NOW)
    assert billing_run(conn, NOW).billed == 1
    return account.tenant_id


def a_card(conn: psycopg.Connection[Any], decline: str) -> FakeProcessor:
    set_payment_method(conn, ORDER, "cus_1", "card")
    return FakeProcessor(declines={"card": decline})


def told(conn: psycopg.Connection[Any], tenant_id: UUID) -> list[tuple[int, str, str]]:
    """Return (day, step, kind) in the order in which they were told."""
    return [
        ((notice.noticed_at - NOW).days, notice.step, notice.kind.value)
        for notice in reversed(notices_of(conn, tenant_id))
    ]


def live(conn: psycopg.Connection[Any], processor: FakeProcessor | None, until_day: int) -> None:
    """Let the payment run come twice a day."""
    for half_day in range(2 * until_day + 1):
        collect(conn, processor, NOW + half_day * DAY / 2)


def test_soft_declines_are_told_on_days_0_3_8_and_15(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    live(conn, a_card(conn, "insufficient_funds"), 20)

    assert told(conn, acme) == [
        (0, "attempt-1", "declined"),
        (3, "attempt-2", "declined"),
        (8, "attempt-3", "declined"),
        (15, "attempt-4", "method_needed"),
        (15, "given-up", "given_up"),
    ]
    [*_, third, _, first] = notices_of(conn, acme)
    assert first.next_at == NOW + 3 * DAY
    assert third.next_at == NOW + 15 * DAY
    assert {n.amount_minor for n in notices_of(conn, acme)} == {28438}
    assert overdue_tenants(conn) == {acme}


@pytest.mark.parametrize(
    ("decline", "kind"),
    [("stolen_card", "method_needed"), ("requires_action", "confirmation_needed")],
)
def test_what_trying_again_does_not_help_asks_the_tenant_and_reminds_it(
    conn: psycopg.Connection[Any], acme: UUID, decline: str, kind: str
) -> None:
    processor = a_card(conn, decline)
    live(conn, processor, 20)

    assert told(conn, acme) == [
        (0, "attempt-1", kind),
        (3, "day-3", kind),
        (8, "day-8", kind),
        (15, "given-up", "given_up"),
    ]
    assert conn.execute("SELECT count(*) FROM payment_attempt").fetchone() == (1,)


@pytest.mark.parametrize("processor", [None, FakeProcessor()])
def test_tenant_without_a_method_is_reminded_until_the_end(
    conn: psycopg.Connection[Any], acme: UUID, processor: FakeProcessor | None
) -> None:
    live(conn, processor, 20)

    assert told(conn, acme) == [
        (0, "day-0", "due"),
        (3, "day-3", "due"),
        (8, "day-8", "due"),
        (15, "given-up", "given_up"),
    ]


def test_run_that_was_away_gives_the_latest_reminder_only(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    collect(conn, None, NOW + 9 * DAY)

    assert told(conn, acme) == [(9, "day-8", "due")]


def test_who_pays_hears_nothing_more(conn: psycopg.Connection[Any], acme: UUID) -> None:
    collect(conn, None, NOW)
    record_transfer(conn, FIRST, "bank-1", "ana", NOW + DAY)
    before = whole_content(conn)

    live(conn, None, 20)

    assert whole_content(conn) == before
    assert told(conn, acme) == [(0, "day-0", "due")]


def test_open_outcome_is_no_notice(conn: psycopg.Connection[Any], acme: UUID) -> None:
    processor = a_card(conn, "insufficient_funds")
    processor.faults = [Fault.LOST_ANSWER]

    collect(conn, processor, NOW)
    assert told(conn, acme) == []
    collect(conn, processor, NOW + DAY / 24)

    assert [step for _, step, _ in told(conn, acme)] == ["attempt-1"]


def test_run_that_is_cut_anywhere_tells_each_step_once(
    conn: psycopg.Connection[Any], migrated: str, acme: UUID
) -> None:
    processor = a_card(conn, "insufficient_funds")
    for cut in range(1, 40):
        with (
            CutConnection(migrated, cut, every_statement=True) as wire,
            psycopg.connect(wire.url, autocommit=True) as broken,
        ):
            _collect_or_break(broken, processor, NOW + 16 * DAY * cut / 39)
    for day in range(1, 9):
        collect(conn, processor, NOW + (16 + day) * DAY)

    steps = [step for _, step, _ in told(conn, acme)]
    assert len(steps) == len(set(steps))
    assert steps[-1] == "given-up"
    tried = conn.execute("SELECT 'attempt-' || attempt_no FROM payment_attempt").fetchall()
    assert {step for step in steps if step.startswith("attempt")} <= {name for (name,) in tried}


def _collect_or_break(
    broken: psycopg.Connection[Any], processor: FakeProcessor, now: datetime
) -> None:
    try:
        collect(broken, processor, now)
    except Retryable:
        return


@pytest.mark.usefixtures("acme")
def test_each_notice_is_posted_by_one_operator(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    live(conn, None, 9)
    start, taken = threading.Barrier(3), list[Notice]()

    def work() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            start.wait()
            taken.extend(take_untold(mine, NOW))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert sorted(notice.step for notice in taken) == ["day-0", "day-3", "day-8"]
    assert take_untold(conn, NOW) == []


@pytest.mark.usefixtures("acme")
def test_given_notice_never_changes(conn: psycopg.Connection[Any]) -> None:
    collect(conn, None, NOW)
    take_untold(conn, NOW)

    for statement in (
        "UPDATE dunning_notice SET told_at = NULL",
        "UPDATE dunning_notice SET amount_minor = 1",
        "DELETE FROM dunning_notice",
    ):
        with pytest.raises(errors.RestrictViolation):
            conn.execute(statement)


@pytest.mark.usefixtures("acme")
def test_command_shows_what_a_tenant_was_told(
    conn: psycopg.Connection[Any], migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(conn, None, 4)
    monkeypatch.setenv("DATABASE_URL", migrated)

    shown = CliRunner().invoke(app, ["payment", "notices", "acme"])
    unknown = CliRunner().invoke(app, ["payment", "notices", "nobody"])

    assert shown.output.splitlines() == [
        f"2026-11-0{day} 09:00  Invoice {FIRST} over 284.38 USD: it has to be paid, by transfer or "
        "with a payment method"
        for day in (5, 2)
    ]
    assert (unknown.exit_code, unknown.output[:14]) == (1, "TenantNotFound")
