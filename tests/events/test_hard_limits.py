"""All of what a plan includes is used: some plans charge what goes beyond, others stop there."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any

import psycopg
import pytest

from botplane.billing.adjustments.store import CreditTerms, Order, grant_credit
from botplane.billing.payments.fake import FakeProcessor
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import set_payment_method
from botplane.billing.records.store import export_tenant
from botplane.billing.run import billing_run, invoice
from botplane.billing.store import publish_plan
from botplane.errors import Retryable
from botplane.metering.events.store import Batch, create_tenant_key, find_key, ingest
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.store import close_tenant, register_tenant
from botplane.usage.documents import standing_document
from botplane.usage.standing import LimitState
from botplane.usage.store import enforce_limits, standing_of, standings
from tests.events.test_standing import CALLS, NOW, an_event, blocked, call
from tests.support.billing import a_plan, an_account, at, complete_until
from tests.support.cut_connection import CutConnection

HARD = CALLS | {"onExceed": "Block"}
SCOPE = "included/rpc_calls"


@pytest.fixture
def strict(conn: psycopg.Connection[Any]) -> TenantAccount:
    """A tenant that may make a hundred calls a month, and none beyond."""
    publish_plan(conn, a_plan("strict", prices=[HARD]), at("2026-09-01"))
    publish_plan(conn, a_plan("roomy", prices=[HARD | {"included": "1000"}]), at("2026-09-01"))
    publish_plan(conn, a_plan("soft", prices=[CALLS]), at("2026-09-01"))
    account = an_account(plan="strict")
    register_tenant(conn, account, at("2026-10-01"))
    return account


def enforced(conn: psycopg.Connection[Any], now: datetime = NOW) -> list[tuple[str, int, bool]]:
    """Return the warnings of one pass over all tenants."""
    notices = enforce_limits(conn, standings(conn, now)[0].values(), now)
    return [(notice.scope, notice.percent, notice.is_hard) for notice in notices]


def test_hard_limit_warns_once_and_blocks_when_all_is_used(
    conn: psycopg.Connection[Any], strict: TenantAccount
) -> None:
    told, states = [], []
    for number, more in enumerate(["49", "1", "40", "9", "1", "5"]):
        call(conn, strict.tenant_id, more, number)
        told += [*enforced(conn), *enforced(conn)]
        states.append(blocked(conn))

    assert told == [(SCOPE, percent, True) for percent in (50, 80, 90, 100)]
    assert states == [{}] * 4 + [{strict.tenant_id: {SCOPE}}] * 2
    stand = standing_of(conn, "acme", NOW + timedelta(minutes=15))
    assert stand.blocks == {SCOPE: LimitState.SUSPENDED}
    assert stand.limit_state is LimitState.CLEAR
    shown = standing_document(stand, None, NOW)
    assert [meter["limitState"] for meter in shown["meters"]] == ["Suspended"]
    assert shown["spendLimit"] is None
    assert conn.execute("SELECT count(*) FROM spend_block").fetchone() == (1,)


def test_soft_limit_warns_and_blocks_nobody(
    conn: psycopg.Connection[Any], strict: TenantAccount
) -> None:
    soft = an_account("soft", plan="soft")
    register_tenant(conn, soft, at("2026-10-01"))
    call(conn, soft.tenant_id, "120")

    assert enforced(conn) == [(SCOPE, percent, False) for percent in (50, 80, 90, 100)]
    assert blocked(conn) == {}
    assert strict


@pytest.mark.parametrize("plan", ["roomy", "soft"])
def test_plan_with_more_or_without_the_limit_makes_room_at_once(
    conn: psycopg.Connection[Any], strict: TenantAccount, plan: str
) -> None:
    call(conn, strict.tenant_id, "100")
    enforced(conn)
    assert blocked(conn) == {strict.tenant_id: {SCOPE}}

    register_tenant(conn, replace(strict, plan=plan), NOW)
    enforced(conn, NOW + timedelta(seconds=5))

    assert blocked(conn) == {}


@pytest.mark.parametrize(("included", "scopes"), [("100", {SCOPE}), ("101", set())])
def test_revision_of_the_plan_counts_on_against_what_it_includes(
    conn: psycopg.Connection[Any], strict: TenantAccount, included: str, scopes: set[str]
) -> None:
    call(conn, strict.tenant_id, "100")
    enforced(conn)

    revised = a_plan("strict", fee="1", prices=[HARD | {"included": included}])
    publish_plan(conn, revised, NOW)
    enforced(conn, NOW + timedelta(minutes=20))

    assert blocked(conn).get(strict.tenant_id, set()) == scopes
    [calls] = standing_of(conn, "acme", NOW + timedelta(minutes=20)).meters
    assert (calls.quantity, calls.included) == (Decimal(100), Decimal(included))


def test_next_period_makes_room_and_warns_anew(
    conn: psycopg.Connection[Any], strict: TenantAccount
) -> None:
    december = at("2026-12-02")
    call(conn, strict.tenant_id, "100")
    enforced(conn)

    assert enforced(conn, december) == []
    assert blocked(conn) == {}
    event = an_event(9, at("2026-12-01T12:00:00Z"), quantity=Decimal(60))
    ingest(conn, [Batch(tenant_id=strict.tenant_id, bot_id=None, events=[event])], december)
    assert enforced(conn, december) == [(SCOPE, 50, True)]


OCT, NOV, DEC = at("2026-10-31"), at("2026-11-01"), at("2026-12-01")
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("granted_at", "expires_at", "limit"),
    [
        (NOV, None, 55),
        (NOW, DEC, 55),
        (NOW, DEC - SECOND, 50),
        (OCT, None, 50),
        (NOW + SECOND, None, 50),
    ],
    ids=["kept", "until the end", "expires before", "of another period", "not granted yet"],
)
def test_credit_makes_room_in_its_period_if_it_can_pay_for_it(
    conn: psycopg.Connection[Any],
    strict: TenantAccount,
    granted_at: datetime,
    expires_at: datetime | None,
    limit: int,
) -> None:
    register_tenant(conn, replace(strict, spend_limit=Decimal(50)), NOW)
    terms = CreditTerms(credit_id="gift", amount="5.00", expires_at=expires_at)
    grant_credit(conn, Order(tenant="acme", actor="ana", now=granted_at), terms)

    assert standing_of(conn, "acme", NOW).spend_limit == limit


@pytest.mark.parametrize(
    ("limit", "later", "state"),
    [
        ("9.99", NOW, LimitState.SUSPENDED),
        ("10", NOW, LimitState.SUSPENDED),
        ("10.01", NOW, LimitState.CLEAR),
        ("5", DEC, LimitState.CLEAR),
        ("1", DEC, LimitState.SUSPENDED),
    ],
)
def test_suspended_bots_stay_so_without_a_new_notice_until_there_is_room(
    conn: psycopg.Connection[Any],
    limit: str,
    later: datetime,
    state: LimitState,
) -> None:
    publish_plan(conn, a_plan("dear", fee="1", prices=[CALLS]), at("2026-09-01"))
    account = an_account("dear", plan="dear", spend_limit=Decimal(5))
    register_tenant(conn, account, at("2026-10-01"))
    call(conn, account.tenant_id, "109")
    enforced(conn)
    later += timedelta(minutes=15)
    assert (
        standing_of(conn, "dear", NOW + timedelta(minutes=15)).limit_state is LimitState.SUSPENDED
    )

    register_tenant(conn, replace(account, spend_limit=Decimal(limit)), later)
    enforced(conn, later)

    assert standing_of(conn, "dear", later).limit_state is state


def test_both_limits_block_and_clear_apart(
    conn: psycopg.Connection[Any], strict: TenantAccount
) -> None:
    register_tenant(conn, replace(strict, spend_limit=Decimal(5)), NOW)
    call(conn, strict.tenant_id, "105")
    enforced(conn)
    assert blocked(conn) == {strict.tenant_id: {"spend", SCOPE}}

    register_tenant(conn, replace(strict, spend_limit=Decimal(50)), NOW)
    enforced(conn)

    assert blocked(conn) == {strict.tenant_id: {SCOPE}}


def test_pass_that_is_cut_anywhere_blocks_once(
    conn: psycopg.Connection[Any], migrated: str, strict: TenantAccount
) -> None:
    call(conn, strict.tenant_id, "100")
    told: list[tuple[str, int, bool]] = []
    for cut in range(1, 20):
        with (
            CutConnection(migrated, cut, every_statement=True) as wire,
            psycopg.connect(wire.url, autocommit=True) as broken,
            suppress(Retryable),
        ):
            told += enforced(broken)
    told += enforced(conn)

    assert len(told) == len(set(told))
    assert conn.execute("SELECT count(*) FROM limit_notice").fetchone() == (4,)
    assert conn.execute("SELECT count(*) FROM spend_block").fetchone() == (1,)


def test_blocked_tenant_still_reports_reads_exports_pays_and_goes(
    conn: psycopg.Connection[Any], strict: TenantAccount
) -> None:
    call(conn, strict.tenant_id, "100")
    enforced(conn)
    assert blocked(conn)

    call(conn, strict.tenant_id, "7", 1)
    assert standing_of(conn, "acme", NOW).quantity("rpc_calls") == 107
    export_tenant(conn, "acme", BytesIO(), NOW)
    bearer = create_tenant_key(conn, "acme", ("usage:read",), "ana", NOW)
    assert find_key(conn, *bearer.split(".")) is not None
    set_payment_method(conn, Order(tenant="acme", actor="ana", now=NOW), "cus_1", "card")
    close_tenant(conn, strict.tenant_id, NOW)
    complete_until(conn, at("2026-12-02"))
    assert billing_run(conn, at("2026-12-02")).parked == ()
    assert collect(conn, FakeProcessor(), at("2026-12-02")).charged == 1
    assert invoice(conn, "acme", "2026-11", NOW).status == "paid"
