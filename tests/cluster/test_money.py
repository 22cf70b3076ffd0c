"""Money stops bots, money starts them again, and nothing that is unknown does either."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from botplane.billing.payments import store as payments
from tests.events.server import Web, an_event, web_process
from tests.support.controlplane.postgres import Postgres
from tests.support.installation import CommandFailedError
from tests.support.world import World, a_bot, a_name, a_plan, bot_key, condition, tenant_key

NO_LIMIT: dict[str, Any] = {"spec": {"billing": {"spendLimit": None}}}


@pytest.fixture
def books(world: World) -> Iterator[psycopg.Connection[Any]]:
    """The installation's database."""
    url = world.installed.database_url
    with psycopg.connect(url, autocommit=True, options="-c timezone=UTC") as conn:
        yield conn


@pytest.fixture
def web(world: World) -> Iterator[Web]:
    with web_process(world.installed.database_url) as running:
        yield running


def test_at_the_spend_limit_bots_stop_after_notice_and_resume_with_a_higher_one(
    world: World, books: psycopg.Connection[Any]
) -> None:
    tenant = world.tenant(billing={"spendLimit": "0.01"})
    world.create(a_bot(tenant, replicas=2))
    body = world.wait_for(tenant_key(tenant), "WithinLimits", "SpendLimitReached")
    assert "bots stop in 15 minutes or less" in condition(body, "WithinLimits")[2]
    world.wait_for(bot_key(tenant), "Ready", "Running")
    assert body["status"]["usage"]["limitPercent"] >= 100

    _let_notice_pass(books, tenant)

    body = world.wait_for(tenant_key(tenant), "Suspended", "SpendLimit")
    assert body["status"]["suspendedFor"] == ["SpendLimit"]
    assert "bots are stopped" in condition(body, "WithinLimits")[2]
    world.eventually(lambda: _replicas(world, tenant) == 0, "bots are stopped")
    world.patch(*tenant_key(tenant), NO_LIMIT)
    world.wait_for(tenant_key(tenant), "Suspended", "False")
    world.wait_for(bot_key(tenant), "Ready", "Running")
    assert _replicas(world, tenant) == 2


def test_plan_may_stop_a_tenant_where_all_that_it_includes_is_used(
    world: World, books: psycopg.Connection[Any]
) -> None:
    second = {"meter": "bot_seconds", "model": "PerUnit", "included": "1", "tiers": [{}]}
    strict, soft = a_name("strict"), a_name("soft")
    world.create(a_plan(strict, prices=[second | {"onExceed": "Block"}]))
    world.create(a_plan(soft, prices=[second]))
    tenant, other = world.tenant(planRef={"name": strict}), world.tenant(planRef={"name": soft})
    world.create(a_bot(tenant))
    world.create(a_bot(other))
    body = world.wait_for(tenant_key(tenant), "WithinLimits", "UsageLimitReached")
    assert "bots stop in 15 minutes or less" in condition(body, "WithinLimits")[2]
    world.wait_for(tenant_key(other), "WithinLimits", "OverIncluded")

    _let_notice_pass(books, tenant)

    body = world.wait_for(tenant_key(tenant), "Suspended", "UsageLimit")
    assert body["status"]["suspendedFor"] == ["UsageLimit"]
    world.eventually(lambda: _replicas(world, tenant) == 0, "bots are stopped")
    world.patch(*tenant_key(tenant), {"spec": {"planRef": {"name": soft}}})
    world.wait_for(tenant_key(tenant), "Suspended", "False")
    world.wait_for(bot_key(tenant), "Ready", "Running")
    assert condition(world.read(*tenant_key(other)), "Suspended")[0] == "False"


def test_each_warning_of_a_limit_is_an_event_once(world: World) -> None:
    tenant = world.tenant(billing={"spendLimit": "0.01"})
    world.wait_for(tenant_key(tenant), "WithinLimits", "SpendLimitReached")

    def warnings() -> list[str]:
        found = world.installed.get("events", "-n", "default")["items"]
        mine = [e for e in found if e["involvedObject"]["name"] == tenant]
        return sorted(e["message"][:5] for e in mine if "spend limit" in e["message"])

    world.eventually(lambda: len(warnings()) >= 4, "the warnings are posted")
    world.installed.kill9("operator")
    world.installed.start("operator")
    world.patch(*tenant_key(tenant), NO_LIMIT)
    world.wait_for(tenant_key(tenant), "WithinLimits", "True")

    assert warnings() == ["100 %", "50 % ", "80 % ", "90 % "]


def test_step_of_dunning_is_an_event_once(world: World) -> None:
    tenant, number = _indebted(world)

    def dues() -> list[str]:
        found = world.installed.get("events", "-n", "default")["items"]
        return [
            event["message"]
            for event in found
            if event["involvedObject"]["name"] == tenant and event["reason"] == "PaymentDue"
        ]

    world.installed.botplane("billing", "run")
    world.eventually(lambda: len(dues()) == 1, "the notice is posted")
    world.installed.kill9("operator")
    world.installed.start("operator")
    world.installed.botplane("billing", "run")
    other, _ = _indebted(world)
    world.installed.botplane("billing", "run")
    shown = world.installed.botplane("payment", "notices", tenant)

    [message] = dues()
    assert message.startswith(f"Invoice {number} over ")
    assert shown.count(message) == 1
    assert world.installed.botplane("payment", "notices", other).count("Invoice") == 1


def test_an_overdue_tenant_resumes_when_it_has_paid(
    world: World, books: psycopg.Connection[Any]
) -> None:
    tenant, number = _indebted(world)
    world.bot(tenant)

    _stay_unpaid(books, tenant)

    world.wait_for(tenant_key(tenant), "Suspended", "PaymentOverdue")
    world.eventually(lambda: _replicas(world, tenant) == 0, "bots are stopped")
    world.installed.botplane("payment", "record", number, a_name("transfer"))
    world.wait_for(tenant_key(tenant), "Suspended", "False")
    world.wait_for(bot_key(tenant), "Ready", "Running")


def test_a_plan_may_let_an_overdue_tenant_run_on(
    world: World, books: psycopg.Connection[Any]
) -> None:
    patient = a_name("patient")
    world.create(a_plan(patient, onPaymentOverdue="None"))
    tenant, _ = _indebted(world, plan=patient)
    strict, _ = _indebted(world)
    world.bot(tenant)

    _stay_unpaid(books, tenant)
    _stay_unpaid(books, strict)

    # The other one is stopped, so the debts have been read.
    world.wait_for(tenant_key(strict), "Suspended", "PaymentOverdue")
    assert condition(world.read(*tenant_key(tenant)), "Suspended")[0] == "False"
    assert _replicas(world, tenant) == 1


def test_who_is_suspended_stays_so_while_postgres_is_away(
    world: World, books: psycopg.Connection[Any], postgres: Postgres
) -> None:
    if postgres.state is None:
        pytest.skip("the server of DATABASE_URL is not ours to kill")
    tenant = world.tenant(billing={"spendLimit": "0.01"})
    world.create(a_bot(tenant))
    world.wait_for(tenant_key(tenant), "WithinLimits", "SpendLimitReached")
    _let_notice_pass(books, tenant)
    world.wait_for(tenant_key(tenant), "Suspended", "SpendLimit")
    other = world.tenant()
    world.installed.stop("operator")
    postgres.kill9()

    try:
        world.installed.start("operator")
        world.installed.wait_for_leader()
        # Every bot has had its pass when the one that came last runs.
        world.create(a_bot(other, "last"))
        world.wait_for(bot_key(other, "last"), "Ready", "Running")
        seen = world.read(*tenant_key(tenant))
    finally:
        postgres.restart()

    assert condition(seen, "Suspended")[:2] == ("True", "SpendLimit")
    assert _replicas(world, tenant) == 0


def test_a_bot_reports_usage_with_the_key_in_its_secret(world: World, web: Web) -> None:
    tenant = world.tenant()
    body = world.bot(tenant)
    bearer = world.issued_key(tenant, "usage-key")

    # The process may have refused the key just before it was issued, and remembers that.
    world.eventually(lambda: web.post(bearer, [an_event(7)])[0] == 200, "the key is accepted")

    reader = world.installed.botplane("key", "create", tenant).strip()
    status, stand, _ = web.ask("GET", "/v1/usage", authorization=f"Bearer {reader}")
    assert status == 200
    assert {m["meter"]: m["quantity"] for m in stand["meters"]}["ai_units"] == "7"
    assert bearer.startswith(body["metadata"]["uid"])
    assert web.ask("GET", "/v1/usage", authorization=f"Bearer {bearer}")[0] == 403
    assert web.post(reader, [an_event(8)])[0] == 403


def test_a_revoked_key_opens_nothing(world: World, web: Web) -> None:
    tenant = world.tenant()
    bearer = world.installed.botplane("key", "create", tenant).strip()
    key_id = bearer.partition(".")[0]
    world.installed.botplane("key", "revoke", tenant, key_id)

    assert web.ask("GET", "/v1/usage", authorization=f"Bearer {bearer}")[0] == 401
    with pytest.raises(CommandFailedError, match="KeyNotFound"):
        world.installed.botplane("key", "revoke", tenant, key_id)


def _let_notice_pass(books: psycopg.Connection[Any], tenant: str) -> None:
    done = books.execute(
        "UPDATE spend_block b SET blocked_at = b.blocked_at - interval '15 minutes' FROM tenant t "
        "WHERE t.tenant_id = b.tenant_id AND t.name = %s AND b.cleared_at IS NULL",
        [tenant],
    )
    assert done.rowcount == 1


def _indebted(world: World, plan: str = "professional") -> tuple[str, str]:
    """Return a tenant and the number of its invoice for last month."""
    first = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    last_month = (first - timedelta(days=1)).replace(day=1)
    start = {"subscriptionStartTime": f"{last_month:%Y-%m-%dT%H:%M:%SZ}"}
    tenant = world.tenant(planRef={"name": plan}, billing=start)
    printed = world.eventually(
        lambda: _final(
            world.installed.botplane("invoice", tenant, "--period", f"{last_month:%Y-%m}")
        ),
        "the invoice is final",
    )
    return tenant, printed


def _final(printed: str) -> str:
    words = printed.split()
    return words[1] if words[1].startswith("INV-") else ""


def _stay_unpaid(books: psycopg.Connection[Any], tenant: str) -> None:
    """Let the term of payment of the tenant's invoice pass, as the payment run finds it."""
    later = datetime.now(UTC) + timedelta(days=16)
    (tenant_id,) = books.execute(
        "SELECT tenant_id FROM tenant WHERE name = %s", [tenant]
    ).fetchone() or (None,)
    mine = [i for i in payments.unpaid_invoices(books) if i.tenant_id == UUID(str(tenant_id))]
    for one in mine:
        payments.give_up(books, one, later)
    assert mine


def _replicas(world: World, tenant: str, name: str = "bot") -> int:
    body = world.read("Deployment", f"tenant-{tenant}", name)
    assert body is not None
    return int(body["spec"]["replicas"])
