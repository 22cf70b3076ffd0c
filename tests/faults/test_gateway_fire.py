"""Gateways under fire: what is billed was answered, and only what a kill took is not billed.

Three gateways on one database and bots that never pause. The gateways are killed and ended and
started again, their connections to Postgres are cut, also between COMMIT and its answer, and
Postgres is killed. Each process reports under a source of its own, so each is held to account.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from botplane.billing.store import publish_plan
from botplane.store.migrate import migrate
from botplane.tenants.store import register_tenant
from botplane.usage.store import standings, totals_that_differ
from tests.events.gateway import CHAIN, Bot, Gateway, a_bot, counted, gateway_process
from tests.events.test_outage import mortal
from tests.faults.pgproxy import PostgresProxy
from tests.faults.rehearsal import WHOLE
from tests.support.billing import a_plan, an_account
from tests.support.controlplane import postgres as servers
from tests.support.controlplane.waiting import until
from tests.support.rpc_vendor import RPCVendor, rpc_vendor

__all__ = ["mortal"]

CALLS = {"meter": "rpc_calls", "model": "PerUnit", "tiers": [{"unitPrice": "1"}]}
KILLS = 20 if WHOLE else 3
THINK_SECONDS = 0.004
FAULTS = ("Postgres is killed", "a COMMIT is not answered", "connections are cut", "nothing")
Life = tuple[int, int]
"""A gateway and how often it was started: one process."""


@dataclass(kw_only=True)
class End:
    """How a process ended, and when."""

    number: signal.Signals
    at: datetime


@dataclass(kw_only=True)
class Fire:
    """The gateways, their bots, and what was seen of both.

    Attributes:
        wires: Each gateway's way to Postgres.
        lives: How often each gateway was started.
        replies: When bots got answers, by the process they came from.
        others: Whatever else bots got.
    """

    gateways: list[Gateway]
    wires: list[PostgresProxy]
    vendor: RPCVendor
    lives: list[int] = field(default_factory=lambda: [1, 1, 1])
    replies: dict[Life, list[datetime]] = field(default_factory=lambda: defaultdict(list))
    others: Counter[int] = field(default_factory=Counter)
    ends: dict[Life, End] = field(default_factory=dict)

    @contextmanager
    def calling(self, bots: list[Bot]) -> Iterator[None]:
        """Bots call one gateway after the other, until the block ends."""
        over = threading.Event()
        threads = [threading.Thread(target=self._call, args=[bot, over]) for bot in bots]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _call(self, bot: Bot, over: threading.Event) -> None:
        open_to: dict[int, tuple[http.client.HTTPConnection, Life]] = {}
        headers = {"Authorization": f"Bearer {bot.key}", "Content-Type": "application/json"}
        for index in itertools.cycle(range(len(self.gateways))):
            if over.wait(THINK_SECONDS):
                break
            try:
                if index not in open_to:
                    open_to[index] = self._wire(index)
                wire, life = open_to[index]
                call = {"jsonrpc": "2.0", "id": 1, "method": "getSlot", "params": list(life)}
                wire.request("POST", f"/{CHAIN}", json.dumps(call), headers)
                answer = wire.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                if index in open_to:
                    open_to.pop(index)[0].close()
                continue
            if answer.status == 200:
                self.replies[life].append(datetime.now(UTC))
            else:
                self.others[answer.status] += 1
        for wire, _ in open_to.values():
            wire.close()

    def _wire(self, index: int) -> tuple[http.client.HTTPConnection, Life]:
        wire = http.client.HTTPConnection("127.0.0.1", self.gateways[index].port, timeout=60)
        wire.connect()
        # A process is numbered before it listens; wires to the one before it are dead by then.
        return wire, (index, self.lives[index])

    def life(self, index: int) -> Life:
        """Return the process that a gateway is now."""
        return index, self.lives[index]

    def has(self, life: Life, calls: int) -> bool:
        """Say whether bots got as many answers from a process."""
        return len(self.replies[life]) >= calls

    def source(self, life: Life) -> str:
        """Return what a process reports as, which its log says."""
        log = self.gateways[life[0]].log.read_text()
        sources: list[str] = re.findall(r"source=(gateway/[0-9a-f-]+)", log)
        return sources[life[1] - 1]

    def failed(self, life: Life) -> bool:
        """Say whether a process had to write anything again."""
        log = self.gateways[life[0]].log.read_text()
        return "Calls were not written" in log.split("Serving the gateway")[life[1]]

    def end(self, index: int, number: signal.Signals) -> None:
        """End a gateway."""
        self.ends[self.life(index)] = End(number=number, at=datetime.now(UTC))
        code = self.gateways[index].end(number)
        assert code == (0 if number == signal.SIGTERM else -number)

    def start(self, index: int) -> None:
        """Start a gateway again."""
        self.lives[index] += 1
        self.gateways[index].start()

    def answered(self) -> Counter[Life]:
        """Return how many calls of each process the vendor got."""
        told = (json.loads(dial.body)["params"] for dial in self.vendor.dials)
        return Counter((index, number) for index, number in told)


@pytest.fixture
def fire(mortal: servers.Postgres, tmp_path: Path) -> Iterator[tuple[Fire, list[Bot]]]:
    """Three gateways whose wires to Postgres can be cut, and six bots of two tenants."""
    url = mortal.create_database("fire")
    migrate(url)
    now = datetime.now(UTC)
    with psycopg.connect(url, autocommit=True) as conn:
        publish_plan(conn, a_plan(prices=[CALLS]), now.replace(year=now.year - 1))
        accounts = [an_account(name) for name in ("acme", "beta")]
        for account in accounts:
            register_tenant(conn, account, now.replace(year=now.year - 1))
        bots = [a_bot(conn, account.tenant_id) for account in accounts for _ in range(3)]
        standings(conn, now)
    wires = [PostgresProxy(url, of=b"stage") for _ in range(3)]
    with ExitStack() as stack:
        vendor = stack.enter_context(rpc_vendor())
        gateways = []
        for number, wire in enumerate(wires):
            folder = tmp_path / f"gateway-{number}"
            folder.mkdir()
            gateways.append(stack.enter_context(gateway_process(wire.url, vendor.url, folder)))
        yield Fire(gateways=gateways, wires=wires, vendor=vendor), bots
    for wire in wires:
        wire.close()


def _groups(conn: psycopg.Connection[Any], source: str) -> list[tuple[datetime, int]]:
    """Return when each group of a process was written, and its calls."""
    return conn.execute(
        "SELECT received_at, sum(quantity)::int FROM usage_event WHERE source = %s"
        " GROUP BY received_at ORDER BY received_at",
        [source],
    ).fetchall()


def _strike(fault: str, fire: Fire, index: int, server: servers.Postgres) -> None:
    if fault == "Postgres is killed":
        server.kill9()
        until(
            lambda: all(fire.failed(fire.life(index)) for index in range(3)),
            what="every gateway has failed to write",
        )
        server.restart()
    elif fault == "a COMMIT is not answered":
        fire.wires[index].cut_commits = 1
    elif fault == "connections are cut":
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'botplane'"
            )


def _play(fire: Fire, server: servers.Postgres, chance: random.Random) -> None:
    ends = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * max(KILLS // 2, 2)
    chance.shuffle(ends)
    url = server.database_url("fire")
    for number, fault in zip(ends, itertools.cycle(FAULTS), strict=False):
        index = chance.randrange(3)
        life = fire.life(index)
        source = fire.source(life)
        _strike(fault, fire, index, server)
        with psycopg.connect(url, autocommit=True) as conn:
            until(partial(_groups, conn, source), what="a write of the process")
        last = len(fire.replies[life]) + chance.randrange(1, 400)
        until(partial(fire.has, life, last), what="calls are answered")
        if number == signal.SIGTERM:
            fire.wires[index].cut_commits = 1
        fire.end(index, number)
        fire.start(index)
    for index in range(3):
        fire.end(index, signal.SIGTERM)


def test_what_is_billed_was_answered_and_only_what_a_kill_took_is_not_billed(
    fire: tuple[Fire, list[Bot]], mortal: servers.Postgres
) -> None:
    played, bots = fire
    began = time.monotonic()
    with played.calling(bots):
        _play(played, mortal, random.Random(7))

    answered, lost, ages = played.answered(), Counter[Life](), list[float]()
    with psycopg.connect(mortal.database_url("fire"), autocommit=True) as conn:
        for life, end in played.ends.items():
            groups, replies = _groups(conn, played.source(life)), played.replies[life]
            billed = sum(calls for _, calls in groups)
            assert billed <= answered[life], life
            if end.number == signal.SIGTERM:
                assert len(replies) == billed == answered[life], life
                continue
            # A group that failed is written later than it was taken, but before the next is taken.
            written = [at for at, _ in groups][: -1 if played.failed(life) else None]
            if written:
                assert billed >= sum(at < written[-1] for at in replies), life
                ages.append((end.at - written[-1]).total_seconds())
            lost[life] = max(len(replies) - billed, 0)
        standings(conn, datetime.now(UTC))
        assert totals_that_differ(conn) == []
        (events,) = conn.execute("SELECT sum(quantity)::int FROM usage_event").fetchall()[0]
        assert sum(counted(conn, bot) for bot in bots) == events

    assert events <= answered.total()
    cuts = sum(wire.cuts for wire in played.wires)
    assert set(played.others) <= {503}, "a process that has not read the keys yet says so"
    print(
        f"{answered.total()} calls answered in {time.monotonic() - began:.0f} s, {events} counted;"
        f" {KILLS} kills took {lost.total()}, {max(lost.values())} at most;"
        f" written {max(ages):.1f} s before a kill at most; {cuts} COMMITs unanswered;"
        f" refused {dict(played.others)}"
    )
