"""Webhooks of Stripe over HTTP: kept once whoever sends them how often, and only when signed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from botplane.billing.adjustments.store import Order
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import set_payment_method
from botplane.billing.payments.stripe import StripeProcessor
from botplane.billing.payments.webhooks import signature
from botplane.billing.proof.store import compare_processor, reconcile
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.tenants.store import register_tenant
from tests.events.server import Web, web_process
from tests.faults.pgproxy import PostgresProxy
from tests.support.billing import a_plan, an_account, at, complete_until
from tests.support.controlplane.waiting import until
from tests.support.stripe_standin import API_KEY, StripeStandIn, stripe_standin

OLD, NEW = "whsec_old", "whsec_new"
NOW = at("2026-11-02T09:00:00Z")
DAY = timedelta(days=1)
PATH = "/v1/webhooks/stripe"


@pytest.fixture(autouse=True)
def two_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process trust both secrets, as while one replaces the other."""
    monkeypatch.setenv("BOTPLANE_STRIPE_WEBHOOK_SECRETS", f"{OLD} {NEW}")


@pytest.fixture
def web(migrated: str) -> Iterator[Web]:
    with web_process(migrated) as process:
        yield process


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    with stripe_standin() as standin:
        yield standin


def send(web: Web, body: bytes, secret: str = NEW, age: int = 0) -> int:
    """Send a body, signed some seconds ago, and return the status of the answer."""
    second = int(time.time()) - age
    header = f"t={second},v1={signature(body, second, secret)}"
    return web.ask("POST", PATH, body, stripe_signature=header)[0]


def an_event(event_id: str = "evt_1", **more: Any) -> bytes:
    return json.dumps({"id": event_id, "object": "event", **more}).encode()


def kept(conn: psycopg.Connection[Any]) -> list[str]:
    rows = conn.execute("SELECT event_id FROM webhook_inbox ORDER BY event_id").fetchall()
    return [event_id for (event_id,) in rows]


def owe(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(fee="284.38"), at("2026-10-01"))
    register_tenant(conn, an_account(), at("2026-10-01"))
    order = Order(tenant="acme", actor="ana", now=at("2026-10-01"))
    set_payment_method(conn, order, "cus_1", "pm_1")
    complete_until(conn, NOW)
    assert billing_run(conn, NOW).billed == 1


def test_payment_is_settled_by_webhooks_twice_reversed_and_with_either_secret(
    web: Web, conn: psycopg.Connection[Any], stripe: StripeStandIn
) -> None:
    owe(conn)
    processor = StripeProcessor(API_KEY, stripe.url, timeout=2)
    stripe.cards["pm_1"] = "insufficient_funds"
    collect(conn, processor, NOW)
    stripe.cards.clear()
    stripe.faults = ["timeout"]
    assert collect(conn, processor, NOW + 3 * DAY).unanswered == 1
    assert len(stripe.events) == 2

    for number, body in enumerate([*reversed(stripe.events), *stripe.events]):
        assert send(web, body, (OLD, NEW)[number % 2]) == 200
    collect(conn, processor, NOW + 3 * DAY)

    assert kept(conn) == ["evt_1", "evt_2"]
    assert conn.execute("SELECT count(processed_at) FROM webhook_inbox").fetchone() == (2,)
    attempts = conn.execute("SELECT status FROM payment_attempt ORDER BY attempt_no").fetchall()
    assert attempts == [("failed",), ("succeeded",)]
    assert conn.execute("SELECT status FROM invoice").fetchall() == [("paid",)]
    assert stripe.captured == [28438]
    assert reconcile(conn, at("2026-10-01"), NOW + 3 * DAY) == []
    assert compare_processor(conn, processor, at("2026-10-01")) == []


def test_declined_payment_that_its_holder_makes_good_is_paid_by_the_webhook(
    web: Web, conn: psycopg.Connection[Any], stripe: StripeStandIn
) -> None:
    owe(conn)
    processor = StripeProcessor(API_KEY, stripe.url, timeout=2)
    stripe.cards["pm_1"] = "stolen_card"
    collect(conn, processor, NOW)
    stripe.authenticate("pi_1")

    assert {send(web, body) for body in stripe.events} == {200}
    collect(conn, processor, NOW + DAY)

    assert conn.execute("SELECT status FROM invoice").fetchall() == [("paid",)]


REFUSED = [
    (an_event(), "whsec_other", 0, 400),
    (an_event(), NEW, 301, 400),
    (an_event(), NEW, -302, 400),
    (b"", NEW, 0, 400),
    (b"{", NEW, 0, 400),
    (b"[]", NEW, 0, 400),
    (b'{"id": 7}', NEW, 0, 400),
    (b'{"id": "' + b"x" * 300 + b'"}', NEW, 0, 400),
    (b'{"id": "evt_1", "data": "\\u0000"}', NEW, 0, 400),
    (b'{"id": "evt_1", "data": "\\ud800"}', NEW, 0, 400),
    (b'{"id": "evt_1", "data": "\xff"}', NEW, 0, 400),
    (b'{"id": "evt_1", "data": ' + b"[" * 100_000 + b"}", NEW, 0, 400),
    (an_event(data="x" * 300_000), NEW, 0, 413),
]


def test_what_is_not_a_signed_event_is_refused_and_not_kept(
    web: Web, conn: psycopg.Connection[Any]
) -> None:
    answers = [send(web, body, secret, age) for body, secret, age, _ in REFUSED]

    assert answers == [status for *_, status in REFUSED]
    assert web.ask("POST", PATH, an_event())[0] == 400
    assert kept(conn) == []
    assert send(web, an_event("evt_good"), OLD) == 200


def test_signature_of_another_body_is_refused(web: Web, conn: psycopg.Connection[Any]) -> None:
    second = int(time.time())
    header = f"t={second},v1={signature(an_event('evt_1'), second, NEW)}"

    assert web.ask("POST", PATH, an_event("evt_2"), stripe_signature=header)[0] == 400
    assert kept(conn) == []


def test_event_whose_commit_lost_its_answer_is_kept_once(
    migrated: str, conn: psycopg.Connection[Any]
) -> None:
    proxy = PostgresProxy(migrated, of=b"INSERT INTO webhook_inbox")
    with closing(proxy), web_process(proxy.url) as web:
        assert send(web, an_event("evt_0")) == 200
        proxy.cut_commits = 1
        assert send(web, an_event("evt_1")) == 503
        assert proxy.cuts == 1
        assert kept(conn) == ["evt_0", "evt_1"]

        until(lambda: send(web, an_event("evt_1")) == 200, what="Stripe tries again")

    assert kept(conn) == ["evt_0", "evt_1"]
