"""Collecting by Stripe, against a stand-in that keeps state and fails in Stripe's ways."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from botplane.billing.adjustments.store import Order
from botplane.billing.payments.run import collect, receive_webhook
from botplane.billing.payments.store import set_payment_method
from botplane.billing.payments.stripe import CHARGE_LIMITS, StripeProcessor
from botplane.billing.payments.webhooks import Signed, signature
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.tenants.store import register_tenant
from tests.support.billing import a_plan, an_account, at, complete_until
from tests.support.stripe_standin import API_KEY, StripeStandIn, stripe_standin

NOW = at("2026-11-02T09:00:00Z")
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SECRETS = ("whsec_new", "whsec_old")


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    with stripe_standin() as standin:
        yield standin


@pytest.fixture
def processor(stripe: StripeStandIn) -> StripeProcessor:
    return StripeProcessor(API_KEY, stripe.url, timeout=2)


def owe(conn: psycopg.Connection[Any], fee: str, currency: str = "USD") -> None:
    publish_plan(conn, a_plan(fee=fee, currency=currency), at("2026-10-01"))
    register_tenant(conn, an_account(currency=currency), at("2026-10-01"))
    order = Order(tenant="acme", actor="ana", now=at("2026-10-01"))
    set_payment_method(conn, order, "cus_1", "pm_1")
    complete_until(conn, NOW)
    assert billing_run(conn, NOW, CHARGE_LIMITS).billed == 1


def state(conn: psycopg.Connection[Any]) -> tuple[Any, list[Any], Any]:
    """Return the invoice's status, the attempts, and the cash of the ledger."""
    [status] = conn.execute("SELECT status FROM invoice").fetchall()[0]
    attempts = conn.execute(
        "SELECT status, decline_code FROM payment_attempt ORDER BY attempt_no"
    ).fetchall()
    cash = conn.execute(
        "SELECT COALESCE(sum(amount_minor), 0)::bigint FROM ledger_entry WHERE account = 'cash'"
    ).fetchone()
    return status, attempts, cash and cash[0]


PAID = ("paid", [("succeeded", None)], 28438)


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["timeout"],
        ["lost"],
        ["409"],
        ["429"],
        ["500"],
        ["timeout", "timeout"],
        ["timeout", "429", "500", "lost"],
        ["lost", "ok", "timeout", "500"],
        ["lost", "ok", "lost", "ok", "409"],
        ["foreign"],
        ["foreign", "foreign", "lost", "foreign"],
    ],
)
def test_invoice_is_paid_once_whatever_stripe_answers(
    conn: psycopg.Connection[Any],
    stripe: StripeStandIn,
    processor: StripeProcessor,
    faults: list[str],
) -> None:
    owe(conn, "284.38")
    stripe.faults = faults

    for hour in range(6):
        collect(conn, processor, NOW + hour * HOUR)

    assert state(conn) == PAID
    assert stripe.captured == [28438]


def test_payment_that_no_search_finds_yet_is_not_made_again(
    conn: psycopg.Connection[Any], stripe: StripeStandIn, processor: StripeProcessor
) -> None:
    owe(conn, "284.38")
    stripe.hide_new, stripe.faults = True, ["timeout"]

    collect(conn, processor, NOW)
    collect(conn, processor, NOW + HOUR)

    assert state(conn) == PAID
    assert stripe.captured == [28438]


def test_timed_out_payment_is_adopted_the_next_day_with_webhooks_twice_and_reversed(
    conn: psycopg.Connection[Any], stripe: StripeStandIn, processor: StripeProcessor
) -> None:
    owe(conn, "284.38")
    stripe.cards["pm_1"] = "insufficient_funds"
    collect(conn, processor, NOW)
    stripe.cards.clear()
    stripe.faults = ["timeout"]
    collect(conn, processor, NOW + 3 * DAY)
    stripe.answers.clear()
    later = NOW + 4 * DAY + HOUR
    for body in [*reversed(stripe.events), *stripe.events]:
        second = int(later.timestamp())
        header = f"t={second},v1={signature(body, second, SECRETS[1])}"
        receive_webhook(conn, "stripe", Signed(body=body, header=header, secrets=SECRETS), later)

    collect(conn, processor, later)

    assert state(conn) == (
        "paid",
        [("failed", "insufficient_funds"), ("succeeded", None)],
        28438,
    )
    assert stripe.captured == [28438]


def test_card_that_needs_its_holder_waits_and_pays_when_confirmed(
    conn: psycopg.Connection[Any], stripe: StripeStandIn, processor: StripeProcessor
) -> None:
    owe(conn, "284.38")
    stripe.cards["pm_1"] = "requires_action"
    collect(conn, processor, NOW)
    collect(conn, processor, NOW + DAY)
    assert state(conn) == ("finalized", [("requires_action", None)], 0)

    stripe.authenticate("pi_1")
    collect(conn, processor, NOW + 2 * DAY)

    assert state(conn) == PAID


def give_card(conn: psycopg.Connection[Any], method_ref: str) -> None:
    order = Order(tenant="acme", actor="ana", now=NOW + HOUR)
    set_payment_method(conn, order, "cus_1", method_ref)


REPLACED = ("paid", [("failed", "canceled"), ("succeeded", None)], 28438)


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["ok", "lost"],
        ["ok", "timeout"],
        ["ok", "500", "timeout", "ok", "429"],
        ["ok", "ok", "timeout"],
        ["ok", "timeout", "ok", "timeout", "lost"],
    ],
)
@pytest.mark.parametrize("searches_late", [False, True])
def test_new_card_replaces_a_payment_that_waits_for_its_holder(
    conn: psycopg.Connection[Any],
    stripe: StripeStandIn,
    processor: StripeProcessor,
    faults: list[str],
    *,
    searches_late: bool,
) -> None:
    owe(conn, "284.38")
    stripe.cards["pm_1"] = "requires_action"
    collect(conn, processor, NOW)
    give_card(conn, "pm_2")
    stripe.faults, stripe.searches_late = faults, searches_late

    for hour in range(1, 8):
        collect(conn, processor, NOW + hour * HOUR)
    stripe.authenticate("pi_1")
    for body in stripe.events:
        second = int((NOW + DAY).timestamp())
        header = f"t={second},v1={signature(body, second, SECRETS[0])}"
        receive_webhook(
            conn, "stripe", Signed(body=body, header=header, secrets=SECRETS), NOW + DAY
        )
    collect(conn, processor, NOW + DAY)

    assert state(conn) == REPLACED
    assert stripe.captured == [28438]


@pytest.mark.parametrize("is_found", [True, False])
def test_holder_who_confirms_before_the_cancelling_has_paid(
    conn: psycopg.Connection[Any],
    stripe: StripeStandIn,
    processor: StripeProcessor,
    *,
    is_found: bool,
) -> None:
    owe(conn, "284.38")
    stripe.cards["pm_1"] = "requires_action"
    collect(conn, processor, NOW)
    give_card(conn, "pm_2")
    if not is_found:
        stripe.found_as["pi_1"] = dict(stripe.intents["pi_1"])
    stripe.authenticate("pi_1")

    for hour in range(1, 4):
        collect(conn, processor, NOW + hour * HOUR)

    assert state(conn) == PAID
    assert stripe.captured == [28438]


def test_new_card_is_not_tried_while_the_old_one_may_have_paid_unseen(
    conn: psycopg.Connection[Any], stripe: StripeStandIn, processor: StripeProcessor
) -> None:
    owe(conn, "284.38")
    stripe.hide_new, stripe.faults = True, ["timeout"]
    collect(conn, processor, NOW)
    give_card(conn, "pm_2")

    assert collect(conn, processor, NOW + HOUR).unanswered == 1
    stripe.hidden.clear()
    collect(conn, processor, NOW + 2 * HOUR)

    assert state(conn) == PAID
    assert stripe.captured == [28438]


def test_payment_that_somebody_made_at_stripe_itself_is_no_attempt(
    conn: psycopg.Connection[Any], stripe: StripeStandIn, processor: StripeProcessor
) -> None:
    owe(conn, "284.38")
    [invoice_id] = conn.execute("SELECT invoice_id FROM invoice").fetchall()[0]
    by_hand = {"amount": "1", "currency": "usd", "payment_method": "pm_1"}
    stripe.create("", by_hand | {"metadata[invoice_id]": str(invoice_id)}, "by hand")
    stripe.faults = ["lost"]

    for hour in range(2):
        collect(conn, processor, NOW + hour * HOUR)

    assert state(conn) == PAID


def test_wrong_key_of_the_account_fails_no_attempt(
    conn: psycopg.Connection[Any], stripe: StripeStandIn, processor: StripeProcessor
) -> None:
    owe(conn, "284.38")
    wrong = StripeProcessor("sk_test_wrong", stripe.url, timeout=2)

    assert collect(conn, wrong, NOW).unanswered == 1
    collect(conn, processor, NOW + HOUR)

    assert state(conn) == PAID


def test_amount_of_three_decimals_ends_in_zero_and_the_rest_is_carried(
    conn: psycopg.Connection[Any], stripe: StripeStandIn, processor: StripeProcessor
) -> None:
    owe(conn, "12.345", "KWD")

    collect(conn, processor, NOW)

    assert state(conn) == ("paid", [("succeeded", None)], 12340)
    assert stripe.captured == [12340]
    carried = conn.execute("SELECT carried_out_minor FROM invoice").fetchall()
    assert carried == [(5,)]


def test_less_than_the_minimum_is_not_charged(
    conn: psycopg.Connection[Any], stripe: StripeStandIn, processor: StripeProcessor
) -> None:
    owe(conn, "0.49")

    collect(conn, processor, NOW)

    assert state(conn) == ("paid", [], 0)
    assert stripe.intents == {}
