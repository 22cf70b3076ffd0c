"""Price books and accounts: what is recorded, what changes nothing, what is refused."""

from __future__ import annotations

import threading
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from botplane.billing.pricebook import METERS
from botplane.billing.store import publish_plan
from botplane.errors import Rejected, Retryable
from botplane.tenants.store import close_tenant, register_tenant
from tests.support.billing import (
    a_plan,
    an_account,
    at,
    per_hour,
    waits_for_a_lock,
    whole_content,
)
from tests.support.until import until

NOW = at("2026-11-10T09:00:00.123456Z")


def phases(conn: psycopg.Connection[Any]) -> list[Any]:
    """Return (plan, start, end) of all phases."""
    return conn.execute(
        "SELECT plan, starts_at, ends_at FROM subscription_phase ORDER BY starts_at"
    ).fetchall()


def test_equal_content_keeps_its_revision_and_changes_nothing(
    conn: psycopg.Connection[Any],
) -> None:
    publish_plan(conn, a_plan(fee="10.00", prices=[per_hour("0.060")]), NOW)
    before = whole_content(conn)

    revision = publish_plan(conn, a_plan(fee="10", prices=[per_hour("0.06")]), NOW)

    assert revision == 1
    assert whole_content(conn) == before


def test_changed_content_is_a_revision_from_now_on(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(fee="10.00"), NOW)

    assert publish_plan(conn, a_plan(fee="12.00"), NOW + timedelta(days=1)) == 2
    assert publish_plan(conn, a_plan(fee="10.00"), NOW + timedelta(days=2)) == 3

    effective = conn.execute("SELECT effective::text FROM plan_version ORDER BY version")
    assert effective.fetchall() == [
        ('(,"2026-11-11 09:00:00+00")',),
        ('["2026-11-11 09:00:00+00","2026-11-12 09:00:00+00")',),
        ('["2026-11-12 09:00:00+00",)',),
    ]


def test_two_revisions_in_one_second_are_put_off(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(fee="10.00"), NOW)
    publish_plan(conn, a_plan(fee="11.00"), NOW + timedelta(days=1))

    with pytest.raises(Retryable) as put_off:
        publish_plan(conn, a_plan(fee="12.00"), NOW + timedelta(days=1, milliseconds=500))

    assert (put_off.value.reason, put_off.value.after_seconds) == ("PlanJustPublished", 1.0)


def test_currency_of_a_plan_is_fixed(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(), NOW)

    with pytest.raises(Rejected) as refused:
        publish_plan(conn, a_plan(currency="EUR"), NOW + timedelta(days=1))

    assert refused.value.reason == "CurrencyFixed"


def test_python_and_sql_know_the_same_meters(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute("SELECT meter FROM meter").fetchall()

    # Trades are counted; their price is the commission.
    assert {meter for (meter,) in rows} - {"trades"} == set(METERS)


def test_equal_account_changes_nothing(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(), NOW)
    account = an_account(spend_limit=Decimal("500.00"))
    register_tenant(conn, account, NOW)
    before = whole_content(conn)

    register_tenant(conn, account, NOW + timedelta(days=1))

    assert whole_content(conn) == before


def test_changed_account_is_recorded(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(), NOW)
    account = an_account()
    register_tenant(conn, account, NOW)
    changed = {"spend_limit": Decimal("9.50"), "admin_email": "new@acme.example"}

    register_tenant(conn, an_account(**vars(account) | changed), NOW)

    row = conn.execute(
        "SELECT spend_limit, admin_email FROM tenant JOIN tenant_profile USING (tenant_id)"
    ).fetchone()
    assert row == (Decimal("9.5"), "new@acme.example")


def test_changed_plan_ends_the_phase_now_to_the_second(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan("basic"), NOW)
    publish_plan(conn, a_plan("pro"), NOW)
    account = an_account()
    register_tenant(conn, account, NOW)

    register_tenant(conn, an_account(**vars(account) | {"plan": "pro"}), NOW)

    change = at("2026-11-10T09:00:00Z")
    assert phases(conn) == [("basic", at("2026-10-01"), change), ("pro", change, None)]


def test_plan_changed_twice_in_one_second_leaves_no_empty_phase(
    conn: psycopg.Connection[Any],
) -> None:
    for plan in ("basic", "pro", "max"):
        publish_plan(conn, a_plan(plan), NOW)
    account = an_account()
    for plan in ("basic", "pro", "max"):
        register_tenant(conn, an_account(**vars(account) | {"plan": plan}), NOW)

    change = at("2026-11-10T09:00:00Z")
    assert phases(conn) == [("basic", at("2026-10-01"), change), ("max", change, None)]


def test_plan_that_is_not_published_yet_is_waited_for(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(Retryable) as missing:
        register_tenant(conn, an_account(), NOW)

    assert missing.value.reason == "PlanNotPublished"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"currency": "EUR"}, "CurrencyMismatch"),
        ({"time_zone": "Asia/Tokyo"}, "BillingTermsFixed"),
        ({"anchor_day": 2}, "BillingTermsFixed"),
        ({"tenant_id": an_account().tenant_id}, "NameInUse"),
        ({"tenant_id": an_account().tenant_id, "name": "beta"}, "NamespaceInUse"),
        (
            {
                "tenant_id": an_account().tenant_id,
                "name": "beta",
                "namespace": "tenant-beta",
                "time_zone": "Europe/Atlantis",
            },
            "TimeZoneUnknown",
        ),
    ],
)
def test_account_that_cannot_be_is_refused(
    conn: psycopg.Connection[Any], change: dict[str, Any], reason: str
) -> None:
    publish_plan(conn, a_plan(), NOW)
    account = an_account()
    register_tenant(conn, account, NOW)
    before = whole_content(conn)

    with pytest.raises(Rejected) as refused:
        register_tenant(conn, an_account(**vars(account) | change), NOW)

    assert refused.value.reason == reason
    assert whole_content(conn) == before


def test_name_of_a_closed_tenant_is_free(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(), NOW)
    first, second = an_account(), an_account()
    register_tenant(conn, first, NOW)

    close_tenant(conn, first.tenant_id, NOW)
    register_tenant(conn, second, NOW)

    with pytest.raises(Rejected) as refused:
        register_tenant(conn, first, NOW)
    assert refused.value.reason == "TenantClosed"


async def test_tenant_that_is_closed_while_it_is_registered_is_closed(
    conn: psycopg.Connection[Any], migrated: str
) -> None:
    publish_plan(conn, a_plan(), NOW)
    account = an_account()

    def close_alone() -> None:
        with psycopg.connect(migrated, autocommit=True) as mine:
            close_tenant(mine, account.tenant_id, NOW)

    closing = threading.Thread(target=close_alone)
    with psycopg.connect(migrated) as other:
        with other.transaction():
            register_tenant(other, account, NOW)
            closing.start()
            await until(lambda: waits_for_a_lock(conn) or not closing.is_alive(), seconds=20)
        closing.join()

    assert [end for _, _, end in phases(conn)] == [NOW.replace(microsecond=0)]


def test_closing_twice_or_a_stranger_changes_nothing(conn: psycopg.Connection[Any]) -> None:
    publish_plan(conn, a_plan(), NOW)
    account = an_account()
    register_tenant(conn, account, NOW)
    close_tenant(conn, account.tenant_id, NOW)
    before = whole_content(conn)

    close_tenant(conn, account.tenant_id, NOW + timedelta(days=1))
    close_tenant(conn, an_account().tenant_id, NOW)

    assert whole_content(conn) == before
