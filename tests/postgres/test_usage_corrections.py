"""A person corrects usage: once, on the next invoice where it is billed, never below nothing."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from botplane.billing.proof.store import reconcile, verify_audit
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.errors import Rejected, Retryable
from botplane.metering.events.policy import CORRECTION, CorrectionTerms, Refusal, read_event
from botplane.metering.events.store import correct_usage, prune
from botplane.tenants.store import close_tenant, register_tenant
from botplane.usage.forecast.store import outlook
from botplane.usage.store import standing_of, totals_that_differ, usage_by_bot
from tests.support.billing import (
    a_plan,
    an_account,
    at,
    complete_until,
    record_usage,
    waits_for_a_lock,
    whole_content,
)
from tests.support.cut_connection import CutConnection
from tests.support.until import until

OCT, NOV, DEC = at("2026-10-01"), at("2026-11-02"), at("2026-12-02")
CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "0.01"}]}
TWICE = CorrectionTerms(
    reference="inc-7",
    meter="rpc_calls",
    quantity="-1000.5",
    at=at("2026-10-20T12:30:00Z"),
    reason="The gateway counted retries, «twice»",
)


@pytest.fixture
def acme(conn: psycopg.Connection[Any]) -> UUID:
    """A tenant that pays 10.00 a month and made 5000 calls in October."""
    publish_plan(conn, a_plan(fee="10.00", prices=[CALLS]), OCT)
    account = an_account()
    register_tenant(conn, account, OCT)
    calls = [(at(f"2026-10-{day}"), "rpc_calls", Decimal(2500)) for day in ("05", "25")]
    record_usage(conn, account.tenant_id, calls)
    return account.tenant_id


def correct(conn: psycopg.Connection[Any], now: datetime, **terms: Any) -> str:
    return correct_usage(conn, "acme", replace(TWICE, **terms), "ana", now)


def bill(conn: psycopg.Connection[Any], moment: datetime) -> None:
    complete_until(conn, moment)
    assert billing_run(conn, moment).parked == ()


def lines(conn: psycopg.Connection[Any], period: str, now: datetime) -> list[tuple[str, int]]:
    return [(line.kind, line.amount_minor) for line in invoice(conn, "acme", period, now).lines]


@pytest.mark.usefixtures("acme")
def test_correction_before_the_invoice_is_part_of_the_usage(
    conn: psycopg.Connection[Any],
) -> None:
    now = at("2026-10-28")
    before = standing_of(conn, "acme", now)

    told = {correct(conn, now), correct(conn, now)}

    assert told == {"2026-10"}
    stand = standing_of(conn, "acme", now)
    assert before.cost - stand.cost == Decimal("10.005")
    assert stand.quantity("rpc_calls") == Decimal("3999.5")
    assert sum(bot.cost for bot in usage_by_bot(conn, "acme", None, now)) == Decimal("39.995")
    assert totals_that_differ(conn) == []
    bill(conn, NOV)
    assert lines(conn, "2026-10", NOV) == [("subscription", 1000), ("usage", 4000)]
    assert reconcile(conn, OCT, NOV) == []


@pytest.mark.usefixtures("acme")
def test_correction_after_the_invoice_is_a_line_of_the_next_one(
    conn: psycopg.Connection[Any],
) -> None:
    bill(conn, NOV)

    assert correct(conn, NOV) == "2026-10"
    assert correct(conn, NOV, reference="inc-8", quantity="100", reason="Lost") == "2026-10"
    bill(conn, DEC)
    assert correct(conn, DEC) == "2026-10"
    bill(conn, at("2027-01-02"))

    assert lines(conn, "2026-10", DEC) == [("subscription", 1000), ("usage", 5000)]
    # 4099.5 calls are 40.995, which is 41.00 to even.
    assert lines(conn, "2026-11", DEC) == [("subscription", 1000), ("correction", -900)]
    assert lines(conn, "2026-12", at("2027-01-02")) == [("subscription", 1000)]
    assert reconcile(conn, OCT, at("2027-01-02")) == []


@pytest.mark.usefixtures("acme")
def test_correction_is_in_the_audit_chain_of_its_tenant_once(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    for _ in range(2):
        correct(conn, NOV)

    said = conn.execute(
        "SELECT chain, actor, object, payload FROM audit_log WHERE action = 'usage.correct'"
    ).fetchall()
    payload = {
        "meter": "rpc_calls",
        "quantity": "-1000.5",
        "at": "2026-10-20T12:30:00Z",
        "reason": "The gateway counted retries, «twice»",
        "period": "2026-10",
    }
    assert said == [(f"tenant/{acme}", "ana", "inc-7", payload)]
    assert verify_audit(conn, []) == []


@pytest.mark.usefixtures("acme")
def test_reference_stays_taken_when_the_keys_of_its_time_are_forgotten(
    conn: psycopg.Connection[Any],
) -> None:
    correct(conn, NOV)
    for moment in (at("2027-06-01"), at("2027-06-02")):
        prune(conn, moment)

    correct(conn, at("2027-06-02"))

    stored = conn.execute("SELECT count(*), sum(quantity) FROM usage_event WHERE quantity < 0")
    assert stored.fetchone() == (1, Decimal("-1000.5"))
    with pytest.raises(Rejected) as refused:
        correct(conn, at("2027-06-02"), quantity="-1")
    assert refused.value.reason == "ReferenceUsed"


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"quantity": "-5000.000000000001"}, "TermsInvalid"),
        ({"quantity": "0.0"}, "TermsInvalid"),
        ({"quantity": "-0"}, "TermsInvalid"),
        ({"quantity": "1e9"}, "TermsInvalid"),
        ({"quantity": "NaN"}, "TermsInvalid"),
        ({"quantity": "9" * 19}, "TermsInvalid"),
        ({"quantity": "0." + "1" * 13}, "TermsInvalid"),
        ({"meter": "bot_seconds"}, "MeterUnknown"),
        ({"meter": "trades"}, "MeterUnknown"),
        ({"meter": "ai_units"}, "TermsInvalid"),
        ({"at": at("2026-11-03")}, "TermsInvalid"),
        ({"at": at("2026-09-30T21:00:00Z")}, "NoPeriod"),
        ({"reference": ""}, "TermsInvalid"),
        ({"reference": "x" * 129}, "TermsInvalid"),
        ({"reason": ""}, "TermsInvalid"),
        ({"reason": "nul \0"}, "TermsInvalid"),
        ({"reason": "lone \ud800"}, "TermsInvalid"),
    ],
)
def test_impossible_correction_is_refused(
    conn: psycopg.Connection[Any], terms: dict[str, Any], reason: str
) -> None:
    before = whole_content(conn)

    with pytest.raises(Rejected) as refused:
        correct(conn, NOV, **terms)

    assert refused.value.reason == reason
    changed = {name for name, rows in whole_content(conn).items() if rows != before[name]}
    assert changed == set()


@pytest.mark.usefixtures("acme")
def test_all_of_what_was_used_can_be_taken_away_but_only_once(
    conn: psycopg.Connection[Any],
) -> None:
    correct(conn, NOV, quantity="-5000")

    with pytest.raises(Rejected, match="0 rpc_calls were used"):
        correct(conn, NOV, reference="more", quantity="-0.1")

    bill(conn, NOV)
    assert lines(conn, "2026-10", NOV) == [("subscription", 1000)]


def test_usage_of_a_tenant_without_an_invoice_to_come_is_not_corrected(
    conn: psycopg.Connection[Any], acme: UUID
) -> None:
    close_tenant(conn, acme, at("2026-10-28"))
    correct(conn, NOV, reference="in time", quantity="-1")
    bill(conn, NOV)

    with pytest.raises(Rejected, match="issue a credit note") as refused:
        correct(conn, NOV)

    assert refused.value.reason == "NoPeriod"
    assert correct(conn, NOV, reference="in time", quantity="-1") == "2026-10"
    with pytest.raises(Rejected, match="nobody"):
        correct_usage(conn, "nobody", TWICE, "ana", NOV)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("nth_commit", [1, 2])
def test_correction_whose_answer_was_lost_is_asked_for_again(
    conn: psycopg.Connection[Any], migrated: str, nth_commit: int
) -> None:
    def correct_twice(connection: psycopg.Connection[Any]) -> None:
        for number in range(2):
            correct(connection, NOV, reference=f"c-{number}", quantity="-10")

    with (
        CutConnection(migrated, nth_commit) as wire,
        psycopg.connect(wire.url, autocommit=True) as broken,
        pytest.raises(Retryable),
    ):
        correct_twice(broken)

    correct_twice(conn)

    bill(conn, NOV)
    assert lines(conn, "2026-10", NOV)[1:] == [("usage", 4980)]
    assert conn.execute(
        "SELECT count(*) FROM audit_log WHERE action = 'usage.correct'"
    ).fetchone() == (2,)


@pytest.mark.usefixtures("acme")
async def test_two_at_once_do_not_take_away_more_than_was_used(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    refused: list[str] = []

    def take_too() -> None:
        with (
            psycopg.connect(migrated, autocommit=True) as mine,
            pytest.raises(Rejected) as error,
        ):
            correct(mine, NOV, reference="second", quantity="-3000")
        refused.append(error.value.reason)

    correct(conn, NOV, quantity="-1")  # November has begun: no one waits for that
    taking = threading.Thread(target=take_too)
    with psycopg.connect(migrated) as first, first.transaction():
        correct(first, NOV, reference="first", quantity="-3000")
        taking.start()
        await until(lambda: waits_for_a_lock(conn), seconds=20)
    taking.join()

    assert refused == ["TermsInvalid"]
    left = conn.execute("SELECT sum(quantity) FROM usage_hourly").fetchone()
    assert left == (Decimal(1999),)


async def test_correction_beside_the_last_invoice_is_on_it_or_refused(
    conn: psycopg.Connection[Any], migrated: str, acme: UUID
) -> None:
    bill(conn, NOV)
    close_tenant(conn, acme, at("2026-11-20"))
    complete_until(conn, DEC)
    refused: list[str] = []

    def correct_alone() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            try:
                correct(mine, DEC)
            except Rejected as error:
                refused.append(error.reason)

    correcting = threading.Thread(target=correct_alone)
    with psycopg.connect(migrated) as biller, biller.transaction():
        billing_run(biller, DEC)
        correcting.start()
        await until(lambda: waits_for_a_lock(conn) or not correcting.is_alive(), seconds=20)
    correcting.join()

    assert refused == ["NoPeriod"]


@pytest.mark.usefixtures("acme")
def test_forecast_does_not_foresee_corrections(conn: psycopg.Connection[Any]) -> None:
    now = at("2026-10-28")
    correct(conn, now, quantity="-4900", at=at("2026-10-21T12:00:00Z"))

    seen = outlook(conn, "acme", now)

    assert seen is not None
    assert seen[1] is not None
    assert seen[1].amount >= seen[0].cost == Decimal("11.00")


def test_nobody_reports_usage_as_a_correction() -> None:
    event = {
        "specversion": "1.0",
        "id": "inc-7",
        "source": CORRECTION,
        "type": "rpc_calls",
        "time": "2026-10-20T12:30:00Z",
        "data": {"value": "1"},
    }

    assert read_event(event, OCT) == Refusal(event_id="inc-7", code="SourceInvalid")
