"""An operator that was paused while another took over writes nothing any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from botplane.billing.adjustments.store import Order
from botplane.billing.payments.fake import FakeProcessor
from botplane.billing.payments.run import collect
from botplane.billing.payments.store import set_payment_method
from botplane.billing.run import billing_run
from botplane.billing.store import publish_plan
from botplane.bot_keys import BotKeys
from botplane.errors import Retryable
from botplane.metering.events.policy import UsageEvent
from botplane.metering.events.store import (
    Batch,
    IngestKey,
    ingest,
    register_keys,
    revoke_keys,
    secret_hash,
)
from botplane.postgres import Postgres
from botplane.store import pool
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.store import register_tenant
from botplane.usage.store import standings
from tests.faults.pgproxy import PostgresProxy
from tests.support.billing import (
    a_plan,
    an_account,
    at,
    complete_until,
    waits_for_a_lock,
    whole_content,
)
from tests.support.declared import MASTER_KEY
from tests.support.operator_calls import operator_calls
from tests.support.until import until

NOW = at("2026-11-04T01:00:00Z")
"""A tenth of the period is over, which is when a forecast is kept."""
CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "1"}]}
BOT = UUID(int=7)


@dataclass(frozen=True)
class Site:
    """Two operators at one database, and a tenant about which there is something to write."""

    old: Postgres
    new: Postgres
    conn: psycopg.Connection[Any]
    account: TenantAccount

    async def handover(self) -> None:
        """Let the old one lead, and the new one take over."""
        for operator in (self.old, self.new):
            assert await operator.call(_answers)


@pytest.fixture
def site(conn: psycopg.Connection[Any], migrated: str) -> Iterator[Site]:
    """A tenant that has used its spend limit and owes an invoice which nobody was told of."""
    publish_plan(conn, a_plan(fee="10.00", prices=[CALLS]), at("2026-10-01"))
    account = an_account(spend_limit=Decimal("50.00"))
    register_tenant(conn, account, at("2026-10-01"))
    complete_until(conn, NOW)
    assert billing_run(conn, NOW).billed == 1
    set_payment_method(conn, Order(tenant="acme", actor="ana", now=NOW), "cus_1", "card")
    collect(conn, FakeProcessor(declines={"card": "insufficient_funds"}), NOW)
    used = UsageEvent(
        source="bot",
        event_id="1",
        meter="rpc_calls",
        occurred_at=at("2026-11-03"),
        quantity=Decimal(60),
        dims="{}",
    )
    ingest(conn, [Batch(tenant_id=account.tenant_id, bot_id=None, events=[used])], NOW)
    standings(conn, NOW)  # settles sums, which anybody does who asks
    with ExitStack() as open_ones:
        old, new = (
            open_ones.enter_context(closing(operator_calls(migrated, lambda: NOW, identity=name)))
            for name in ("old", "new")
        )
        yield Site(old, new, conn, account)


def _answers(_conn: Any) -> bool:
    return True


async def _publishes(operator: Postgres, _account: TenantAccount) -> None:
    await operator.publish(a_plan(fee="99.00", prices=[CALLS]))


async def _registers(operator: Postgres, account: TenantAccount) -> None:
    await operator.accounts().register(replace(account, spend_limit=Decimal(99)))


async def _closes(operator: Postgres, account: TenantAccount) -> None:
    await operator.accounts().close(account.tenant_id)


async def _issues_keys(operator: Postgres, account: TenantAccount) -> None:
    await BotKeys(operator, MASTER_KEY, lambda: NOW).settle({uuid4(): account.tenant_id})


async def _revokes_keys(operator: Postgres, account: TenantAccount) -> None:
    await operator.call(revoke_keys, [(account.tenant_id, str(BOT))], NOW)


async def _follows(operator: Postgres, _account: TenantAccount) -> None:
    await operator.follow()


async def _foresees(operator: Postgres, _account: TenantAccount) -> None:
    await operator.foresee()


PATHS = (_publishes, _registers, _closes, _issues_keys, _revokes_keys, _follows, _foresees)
Path = Callable[[Postgres, TenantAccount], Awaitable[None]]


@pytest.mark.parametrize("path", PATHS)
async def test_what_an_old_leader_writes_is_refused_and_the_newer_data_stands(
    site: Site, path: Path
) -> None:
    key = IngestKey(
        key_id=str(BOT), tenant_id=site.account.tenant_id, bot_id=BOT, secret_hash=secret_hash("s")
    )
    register_keys(site.conn, [key], NOW)
    await site.handover()
    before = whole_content(site.conn)

    late = asyncio.ensure_future(path(site.old, site.account))
    await asyncio.wait_for(site.old.fenced.wait(), 20)

    assert whole_content(site.conn) == before
    assert not late.done(), "it was told something that it may report"
    late.cancel()
    await path(site.new, site.account)
    assert whole_content(site.conn) != before, "there was nothing to write"
    assert not site.new.fenced.is_set()


def test_every_table_that_the_operator_may_write_is_fenced(conn: psycopg.Connection[Any]) -> None:
    writable = """
        SELECT c.relname, EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid
            AND t.tgname = 'fence' AND t.tgenabled = 'O')
        FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
            AND (has_any_column_privilege('botplane_operator', c.oid, 'INSERT, UPDATE')
                OR has_table_privilege('botplane_operator', c.oid, 'DELETE, TRUNCATE'))
    """
    fenced = dict(conn.execute(writable).fetchall())

    assert len(fenced) > 10
    assert {name for name, is_fenced in fenced.items() if not is_fenced} == {"leadership"}


async def test_the_log_says_who_leads_and_what_to_do(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    await site.handover()

    late = asyncio.ensure_future(_publishes(site.old, site.account))
    await asyncio.wait_for(site.old.fenced.wait(), 20)
    late.cancel()

    said = capsys.readouterr().out
    assert "another operator leads: new, since 2026-11-04 01:00:00+00" in said
    assert "nothing is to be done" in said


async def test_who_takes_over_waits_for_the_writes_under_way(site: Site) -> None:
    gate = threading.Event()

    def write(conn: psycopg.Connection[Any]) -> None:
        with conn.transaction():
            conn.execute("UPDATE tenant SET spend_limit = 1")
            gate.wait(20)

    assert await site.old.call(_answers)
    writing = asyncio.ensure_future(site.old.call(write))
    await until(lambda: _is_idle_in_transaction(site.conn), seconds=20)
    taking_over = asyncio.ensure_future(site.new.call(_answers))
    await until(lambda: waits_for_a_lock(site.conn), seconds=20)
    gate.set()

    await asyncio.gather(writing, taking_over)

    await _registers(site.new, site.account)
    assert site.conn.execute("SELECT spend_limit FROM tenant").fetchone() == (99,)


async def test_a_leader_paused_within_a_transaction_does_not_keep_the_next_one_out(
    site: Site, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PAUSE_SECONDS", 1)
    gate = threading.Event()

    def write(conn: psycopg.Connection[Any]) -> None:
        with conn.transaction():
            conn.execute("UPDATE tenant SET spend_limit = 1")
            gate.wait(60)

    with closing(operator_calls(migrated, lambda: NOW, identity="paused")) as paused:
        assert await paused.call(_answers)
        writing = asyncio.ensure_future(paused.call(write))
        await until(lambda: _is_idle_in_transaction(site.conn), seconds=20)

        await _registers(site.new, site.account)
        gate.set()
        with pytest.raises(Retryable) as lost:
            await writing

    assert lost.value.reason == "DatabaseUnavailable"
    assert site.conn.execute("SELECT spend_limit FROM tenant").fetchone() == (99,)


async def test_nothing_is_written_without_a_proof_of_leadership(site: Site, migrated: str) -> None:
    async def lost() -> bool:
        return False

    before = whole_content(site.conn)
    with (
        closing(operator_calls(migrated, lambda: NOW, holds_lease=lost)) as waiting,
        pytest.raises(Retryable) as unproven,
    ):
        await _publishes(waiting, site.account)

    assert unproven.value.reason == "LeadershipUnproven"
    assert whole_content(site.conn) == before


async def test_a_leader_that_comes_late_to_postgres_does_not_fence_its_successor(
    site: Site, migrated: str
) -> None:
    proofs = iter([True, False])

    async def paused_after_the_proof() -> bool:
        is_held = next(proofs)
        if is_held:
            # The Lease runs out meanwhile, and the next leader is there before this one wakes up.
            await site.new.call(_answers)
        return is_held

    with closing(operator_calls(migrated, holds_lease=paused_after_the_proof)) as late:
        for _ in range(2):
            with pytest.raises(Retryable):
                await _publishes(late, site.account)

    await _publishes(site.new, site.account)
    assert not site.new.fenced.is_set()


async def test_a_takeover_whose_answer_was_lost_is_known_afterwards(
    site: Site, migrated: str
) -> None:
    proofs = iter([True, False])

    async def once() -> bool:
        return next(proofs)

    taking = b"INSERT INTO leadership"
    with closing(PostgresProxy(migrated, taking, ends=taking)) as wire:
        wire.cut_commits = 1
        with closing(operator_calls(wire.url, lambda: NOW, holds_lease=once)) as operator:
            with pytest.raises(Retryable):
                await _publishes(operator, site.account)
            assert await operator.follow() is not None

            await _publishes(operator, site.account)

            assert wire.cuts == 1
            assert not operator.fenced.is_set()


async def test_a_standby_that_does_not_know_the_leader_makes_it_start_again(site: Site) -> None:
    await site.handover()
    site.conn.execute("DELETE FROM leadership")

    late = asyncio.ensure_future(_publishes(site.new, site.account))

    await asyncio.wait_for(site.new.fenced.wait(), 20)
    late.cancel()


def _is_idle_in_transaction(conn: psycopg.Connection[Any]) -> bool:
    found = conn.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state = 'idle in transaction'"
    ).fetchone()
    return found == (1,)
