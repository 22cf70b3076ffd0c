"""One seed of metering: a world, its meterings, the wires that break, and what came of it."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import psycopg

from botplane.errors import Retryable
from botplane.metering.evidence import Kind
from botplane.metering.feed import Feed, FeedError
from botplane.metering.reconcile import Metering
from botplane.metering.release import Cluster, Pace
from botplane.metering.store import MeteringStore
from botplane.store.migrate import migrate
from botplane.store.pool import Role, become
from tests.faults.lives import NODES, WEEK, Life, Script, Stretch, populate
from tests.faults.pgproxy import PostgresProxy
from tests.faults.stand_in import EPOCH, Door, Faults, Fuse, KilledError, Server
from tests.support.controlplane.postgres import Postgres

PODS, CLAIMS = 28, 9
BEAT, STEP, RESYNC_AFTER = 60, 45, 120
TABLES = "runtime_interval, pod, bot, meter_gap, source_watermark, late_usage"
NOTHING = Faults()


@dataclass(frozen=True)
class Wires:
    """Two ways to one database: the tests' own, and the one that breaks."""

    own: psycopg.Connection[Any]
    proxy: PostgresProxy

    @classmethod
    @contextmanager
    def to(cls, postgres: Postgres, name: str) -> Iterator[Wires]:
        """Make a database with our schema, for a while, and both ways to it."""
        url = postgres.create_database(name)
        migrate(url)
        proxy = PostgresProxy(url)
        with psycopg.connect(url, autocommit=True, options="-c timezone=UTC") as own:
            yield cls(own, proxy)
        proxy.close()
        postgres.drop_database(name)


def seconds(stretches: list[Stretch]) -> int:
    """Return how long stretches are together."""
    return sum(end - start for _, start, end, _ in stretches)


class Row(NamedTuple):
    """A closed row of the database."""

    stretch: Stretch
    is_exact: bool


@dataclass
class Line:
    """What the store takes for its pool: a connection with the rights of metering, that breaks."""

    wires: Wires
    dice: random.Random
    fuse: Fuse
    percent: int
    _conn: psycopg.Connection[Any] | None = None

    @contextmanager
    def connection(self) -> Iterator[Line]:
        """Lend the connection; it is lost with whoever is killed or cut off."""
        self.fuse.burn()
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(
                self.wires.proxy.url, autocommit=True, options="-c timezone=UTC"
            )
            become(self._conn, Role.METERING)
        if self.dice.randrange(100) < self.percent:
            raise psycopg.OperationalError("Postgres is away")
        self.wires.proxy.cut_commits = int(self.dice.randrange(100) < self.percent)
        try:
            yield self
        except BaseException:
            self.close()
            raise
        self.fuse.burn()

    def execute(self, *statement: Any) -> Any:
        """Send a statement."""
        self.fuse.burn()
        assert self._conn is not None
        return self._conn.execute(*statement)

    def transaction(self) -> Any:
        """Begin a transaction."""
        assert self._conn is not None
        return self._conn.transaction()

    def close(self) -> None:
        """Break off."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None


class AtOnce(Pace):
    """No pace."""

    def __init__(self) -> None:
        super().__init__(1)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Wait for nothing."""
        yield


@dataclass
class Worker:
    """A metering process: it lives, is killed, and comes again knowing nothing."""

    play: Play
    dice: random.Random
    back_at: int = 0
    fuse: Fuse = field(default_factory=Fuse)
    metering: Metering | None = None
    versions: dict[Kind, int] = field(default_factory=dict)
    listed: dict[Kind, int] = field(default_factory=dict)

    def step(self) -> bool:
        """Look and settle once; return whether nothing went wrong."""
        if self.play.server.now < self.back_at:
            return False
        try:
            if self.metering is None:
                self._begin()
            looked = [self._look(kind) for kind in Kind]
            return all(looked) and self._settle()
        except KilledError:
            self.die(self.dice.choice([0, self.dice.randrange(400)]))
            return False

    def die(self, seconds: int) -> None:
        """Be gone for some seconds."""
        if self.metering is not None:
            self.line.close()
            self.cluster.close()
        self.metering = None
        self.back_at = self.play.server.now + seconds

    def _begin(self) -> None:
        play, skew = self.play, timedelta(seconds=self.dice.randrange(-90, 90))
        lives_on = self.dice.randrange(4) == 0 or play.faults is NOTHING
        self.fuse = Fuse(None if lives_on else self.dice.randrange(1, 400))
        self.door = Door(play.server, self.dice, play.faults, self.fuse)
        percent = 0 if play.faults is NOTHING else 4
        self.line = Line(play.wires, self.dice, self.fuse, percent)

        def clock() -> Any:
            return EPOCH + timedelta(seconds=play.server.now) + skew

        self.feed = Feed(self.door, clock, 0)  # type: ignore[arg-type]
        # Time is simulated, so nothing waits for its turn.
        self.cluster = Cluster(self.door, 1, AtOnce())  # type: ignore[arg-type]
        store = MeteringStore(self.line)  # type: ignore[arg-type]
        ticks = lambda: float(play.server.now)  # noqa: E731
        self.metering = Metering(self.feed, store, self.cluster, clock, ticks)
        self.versions, self.listed = {}, {}

    def _look(self, kind: Kind) -> bool:
        try:
            if kind not in self.versions:
                self.versions[kind] = int(self.feed.list_once(kind))
                self.listed[kind] = self.play.server.now
                if self.dice.randrange(3) == 0:
                    # The other thread settles before the watch has said a word.
                    return True
            for event in self.door.events(kind.plural, self.versions[kind]):
                self.feed.note(kind, event)
                version = int(event["object"]["metadata"]["resourceVersion"])
                self.versions[kind] = max(version, self.versions[kind])
        except (FeedError, Retryable):
            self.versions.pop(kind, None)
            return False
        if self.play.server.now - self.listed[kind] > RESYNC_AFTER:
            del self.versions[kind]
        return True

    def _settle(self) -> bool:
        assert self.metering is not None
        try:
            self.metering.turn(threading.Event())
        except Retryable:
            return False
        return True


@dataclass
class Play:
    """One seed: a world, its meterings, and what can be said of the end."""

    seed: int
    wires: Wires
    server: Server
    script: Script
    faults: Faults
    workers: list[Worker]
    sees_all: bool
    """Whether the server keeps its word: no event is swallowed, no list is from the past."""
    blind: list[tuple[int, int]] = field(default_factory=list)
    """When no metering looked without trouble."""
    exact: set[Any] = field(default_factory=set)
    looks: list[int] = field(default_factory=list)
    """When one did."""

    @classmethod
    @contextmanager
    def of(cls, seed: int, wires: Wires) -> Iterator[Play]:
        """Set up what a seed says."""
        dice = random.Random(seed)
        random.seed(seed)
        server = Server(nodes=dict.fromkeys(NODES))
        script = Script(server, dice, dice.choice([None, None, dice.randrange(300, 2000)]))
        populate(script, PODS, CLAIMS)
        is_calm = seed % 10 == 0
        blurred = dice.choice([0, 0, 5])
        faults = Faults(
            refused=dice.choice([0, 3, 15]),
            unheard=dice.choice([0, 20]),
            broken=dice.choice([0, 5]),
            repeated=dice.choice([0, 20]),
            hidden=blurred,
            stale=4 * blurred,
        )
        play = cls(seed, wires, server, script, NOTHING if is_calm else faults, [], not blurred)
        count = dice.choice([1, 1, 2])
        play.workers = [Worker(play, random.Random(f"{seed} {n}")) for n in range(count)]
        wires.own.execute(f"TRUNCATE {TABLES} CASCADE")
        try:
            yield play
        finally:
            for worker in play.workers:
                worker.die(0)

    def run(self) -> None:
        """Play to the end, heal, and wait until everything is released."""
        while not self.script.is_over:
            self._step(self.script.dice.randrange(1, STEP))
        self.faults = NOTHING
        for worker in self.workers:
            worker.die(0)
        for _ in range(40):
            self._step(30)
            if not self.server.objects and not self._unsettled():
                return
        raise AssertionError(f"seed {self.seed}: stuck: {sorted(self.server.objects)}")

    def _step(self, seconds: int) -> None:
        until = self.server.now + seconds
        outage = self.script.outage_at
        if outage is not None and self.server.now < outage <= until:
            for worker in self.workers:
                worker.die(WEEK + seconds)
            until += WEEK
            self.blind.append((self.server.now, until))
        began = self.server.now
        self.script.play(until)
        looked = [worker.step() for worker in self.workers]
        if any(looked):
            self.looks.append(self.server.now)
        else:
            self.blind.append((began, self.server.now))
        if self.script.dice.randrange(2) == 0:
            self._check()

    def provable(self, life: Life, said: list[Any]) -> list[Any]:
        """Return what must be billed of a life: all, but for a first size that nobody saw."""
        return life.grown if said == life.grown and self._may_be_unseen(life) else life.true

    @property
    def told_late(self) -> int:
        """Return for how long what has vanished may look as before: until the next full list."""
        return 0 if self.sees_all else RESYNC_AFTER + 2 * STEP

    def _may_be_unseen(self, life: Life) -> bool:
        if not life.grown:
            return False
        bound, grown = life.true[0][1:3]
        return not (self.sees_all and any(bound <= at < grown for at in self.looks))

    def _check(self) -> None:
        """Look at promises that hold at any time.

        What was exact is as before; what exists was not taken for gone; and what the API told
        before the watermark is billed.
        """
        there = {body["metadata"]["uid"] for body in self.server.objects.values()}
        gone = self._ask(
            "SELECT pod_uid::text FROM runtime_interval WHERE close_reason = 'pod_gone'"
        )
        assert not there & {uid for (uid,) in gone}, f"seed {self.seed}: taken for gone"
        mark = self._ask("SELECT complete_until FROM source_watermark")
        found = self.billed()
        exact = {(uid, *row) for uid, rows in found.items() for row in rows if row.is_exact}
        assert exact >= self.exact, f"seed {self.seed}: {self.exact - exact} moved"
        self.exact = exact
        if not mark or not self.sees_all:
            return
        until = (mark[0][0] - EPOCH).total_seconds()
        for life in self.script.lives:
            for stretch, told in zip(life.true, life.told, strict=True):
                rows = [row.stretch for row in found.get(life.uid, [])]
                is_told = life.is_proven and told < until
                if is_told and not self._may_be_unseen(life):
                    assert stretch in rows, f"seed {self.seed}: {life.name} before {until}"

    def billed(self) -> dict[str, list[Row]]:
        """Return the closed rows by uid."""
        found = defaultdict(list)
        for uid, number, *times, size, is_exact in self._ask(
            "SELECT pod_uid::text, restart + seg, started_at, ended_at, storage_bytes,"
            " close_quality = 'exact' FROM runtime_interval WHERE ended_at IS NOT NULL"
            " ORDER BY 1, 2"
        ):
            start, end = (int((at - EPOCH).total_seconds()) for at in times)
            found[uid].append(Row((number, start, end, size), is_exact))
        return dict(found)

    def gaps(self) -> defaultdict[str, int]:
        """Return the seconds that are on record as perhaps used and not billed, by uid."""
        rows = self._ask(
            "SELECT pod_uid::text, sum(extract(epoch FROM ends_at - starts_at))::int"
            " FROM meter_gap GROUP BY 1"
        )
        return defaultdict(int, rows)

    def unseen(self, life: Life) -> int:
        """Return how many seconds of a life no metering can have known of.

        Those in which none looked; and for each end that was lost, the time since the last
        heartbeat.
        """
        until = max(life.went_at, max((end for _, _, end, _ in life.true), default=0))
        first = min((start for _, start, _, _ in life.true), default=0)
        blind = sum(max(0, min(b, until) - max(a, first)) for a, b in self.blind)
        return blind + len(life.true) * (BEAT + 2 * STEP)

    def _unsettled(self) -> list[Any]:
        return self._ask("SELECT 1 FROM pod WHERE settled_at IS NULL")

    def _ask(self, query: str) -> list[tuple[Any, ...]]:
        return self.wires.own.execute(query).fetchall()
