"""A thousand tenants and three thousand bots: throughput beside raw writes, memory, cold start."""

from __future__ import annotations

import asyncio
import statistics
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import psutil

from botplane.kube.resources import Manifest, Ref, ref_of
from tests.bench.client import BenchClient
from tests.bench.latency import MEMBERS, replaced, tenant_objects
from tests.bench.rows import Row
from tests.faults.early_ready import EarlyReady
from tests.support.controlplane import audit, processes
from tests.support.controlplane.waiting import until
from tests.support.installation import OPERATOR_USER, Installation
from tests.support.world import a_bot, a_name, a_plan, a_tenant

T = TypeVar("T")
CONNECTIONS = 16
FLOOR_TENANTS = 150
PLAN = "bench"
LATE = "z-late"
"""Behind all the others by its name: it must not come first by that."""
QUIET_SECONDS = 5.0
NOISE_BEFORE = 100
"""Changes before others are looked at: what the first ones start has settled."""
RSS_MIB = 175e6 / 2**20


class Scale:
    """One run at one size; each figure builds on the one before."""

    def __init__(
        self, installed: Installation, client: BenchClient, tenants: int, bots: int
    ) -> None:
        self._installed = installed
        self._client = client
        self._names = [a_name("s") for _ in range(tenants)]
        self._bots = bots
        self._operator = psutil.Process(processes.record(installed.cluster.state, "operator").pid)

    async def run(self) -> list[Row]:
        """Measure everything and return the rows."""
        await self._client.create(a_plan(PLAN, maxBots=5, quota={"cpu": "40", "memory": "80Gi"}))
        watcher = EarlyReady(self._installed.cluster.api())
        rows = [*await self._tenants(), *await self._bots_of_all()]
        rows.append(await self._early(watcher))
        rows.append(self._memory())
        rows += await self._restart()
        rows += await self._drift()
        rows.append(await self._neighbour())
        await self._other_memory()
        return rows

    async def _tenants(self) -> list[Row]:
        floor = await self._floor()
        before, started = self._cpu(), time.monotonic()
        bodies = (a_tenant(n, members=MEMBERS, planRef={"name": PLAN}) for n in self._names)
        await _each(bodies, self._client.create)
        for name in self._names:
            for manifest in tenant_objects(name):
                await self._client.arrival(*ref_of(manifest))
        took = time.monotonic() - started
        count = len(self._names)
        cpu = (self._cpu() - before) / count
        print(f"  {count} tenants in {took:.1f} s: {count / took:.1f}/s, raw {1 / floor:.1f}/s")
        return [
            Row(
                what=f"{count} tenants, seconds for each (raw: {CONNECTIONS} connections)",
                floor=floor,
                measured=took / count,
                bar=2.0,
            ),
            Row(what="operator CPU for each tenant", floor=None, measured=cpu, bar=0.025),
        ]

    async def _floor(self) -> float:
        """Return the seconds that one tenant's set takes when written straight, many at once."""
        sets = [tenant_objects(a_name("raw")) for _ in range(FLOOR_TENANTS)]

        async def write(manifests: list[Manifest]) -> None:
            for manifest in manifests:
                await self._client.apply(manifest)

        started = time.monotonic()
        await _each(sets, write)
        return (time.monotonic() - started) / len(sets)

    async def _bots_of_all(self) -> list[Row]:
        wanted = [(n, f"bot-{i}") for n in self._names for i in range(self._bots)]
        before, started = self._cpu(), time.monotonic()
        await _each((a_bot(tenant, bot) for tenant, bot in wanted), self._created)
        for tenant, bot in wanted:
            await self._client.arrival("Deployment", f"tenant-{tenant}", bot)
        took = time.monotonic() - started
        cpu = (self._cpu() - before) / len(wanted)
        print(f"  {len(wanted)} bots in {took:.1f} s: {len(wanted) / took:.1f}/s")
        return [Row(what="operator CPU for each bot", floor=None, measured=cpu, bar=0.05)]

    async def _created(self, body: Manifest) -> None:
        """Create a bot: the quota of a new tenant takes a moment to be computed."""
        for _ in range(600):
            try:
                await self._client.create(body)
            except Exception as error:
                if "status unknown for quota" not in str(error):
                    raise
                await asyncio.sleep(0.1)
            else:
                return
        raise TimeoutError(f"{ref_of(body)}: its quota was not computed")

    async def _early(self, watcher: EarlyReady) -> Row:
        for name in self._names:
            await self._ready(name)
        await asyncio.to_thread(watcher.close)
        told, early = watcher.judged()
        what = f"Tenants Ready before they were closed, of {told}"
        return Row(what=what, floor=None, measured=len(early), bar=0, unit="")

    async def _ready(self, name: str) -> None:
        for _ in range(600):
            conditions = (await self._client.get(Ref("Tenant", "", name)))["status"]["conditions"]
            if any((c["type"], c["status"]) == ("Ready", "True") for c in conditions):
                return
            await asyncio.sleep(0.1)
        raise TimeoutError(f"Tenant {name} does not become Ready")

    def _memory(self) -> Row:
        rss = self._operator.memory_info().rss / 2**20
        return Row(what="operator RSS", floor=None, measured=rss, bar=RSS_MIB, unit="MiB")

    async def _other_memory(self) -> None:
        """Print what has no bar: the operator that was started again, and metering."""
        self._installed.start("metering")
        await asyncio.to_thread(
            until,
            lambda: self._installed.answers("metering", "readyz"),
            within=120,
            what="metering has seen all pods",
        )
        metering = psutil.Process(
            processes.record(self._installed.cluster.state, "metering").pid
        ).memory_info()
        operator = self._operator.memory_info()
        print(f"  RSS: operator after its restart {operator.rss / 2**20:.0f} MiB, ", end="")
        print(f"metering of as many bots {metering.rss / 2**20:.0f} MiB")

    async def _restart(self) -> list[Row]:
        log = self._installed.cluster.audit_log
        assert log is not None
        await asyncio.to_thread(self._settle, log)
        await asyncio.to_thread(self._installed.stop, "operator")
        since, started = audit.position(log), time.monotonic()
        self._installed.start("operator")
        await asyncio.sleep(1)
        late = await self._late_tenant()
        passes = len(self._names) * (1 + self._bots)
        await asyncio.to_thread(
            until,
            lambda: _metric(self._installed, "botplane_reconcile_total") >= passes,
            within=300,
            what="every object had its pass",
            # A scrape takes some milliseconds of what is measured.
            every=0.5,
        )
        took = time.monotonic() - started
        self._operator = psutil.Process(
            processes.record(self._installed.cluster.state, "operator").pid
        )
        written = [
            r
            for r in audit.requests(log, user=OPERATOR_USER, since=since)
            if _is_change(r) and r.subresource != "status" and LATE not in f"{r.namespace} {r.name}"
        ]
        return [
            Row(what="cold start until all passes are done", floor=None, measured=took, bar=15),
            Row(what="a new tenant 1 s after the restart", floor=None, measured=late, bar=5),
            Row(
                what="writes after the restart but for its objects",
                floor=None,
                measured=len(written),
                bar=0,
                unit="",
            ),
        ]

    def _settle(self, log: Path) -> None:
        """Return when the operator has had nothing to write for five seconds: all pods run."""
        until(lambda: not self._written(log, QUIET_SECONDS), within=900, what="all has settled")

    def _written(self, log: Path, seconds: float) -> bool:
        since = audit.position(log)
        time.sleep(seconds)
        return any(_is_change(r) for r in audit.requests(log, user=OPERATOR_USER, since=since))

    async def _late_tenant(self) -> float:
        """Return how long a tenant takes that comes while the operator starts."""
        name, started = a_name(LATE), time.monotonic()
        await self._client.create(a_tenant(name, members=MEMBERS, planRef={"name": PLAN}))
        for manifest in tenant_objects(name):
            await self._client.arrival(*ref_of(manifest))
        return time.monotonic() - started

    async def _drift(self) -> list[Row]:
        took = await self._repairs(self._names[:60], "NetworkPolicy", "default-deny")
        took.sort()
        p50, p99 = statistics.median(took), took[-1]
        return [
            Row(what="drift repair at this size, p50", floor=None, measured=p50, bar=0.2),
            Row(
                what="drift repair at this size, the slowest of 60", floor=None, measured=p99, bar=1
            ),
        ]

    async def _neighbour(self) -> Row:
        """Other tenants' repair while one tenant changes a bot 50 times a second."""
        quiet = await self._repairs(self._names[-80:-40])
        going = asyncio.Event()
        noise = asyncio.create_task(self._noise(self._names[0], going))
        await going.wait()
        loud = await self._repairs(self._names[-40:])
        noise.cancel()
        await asyncio.gather(noise, return_exceptions=True)
        what = "others' slowest repair of 40 beside a tenant at 50 changes/s"
        return Row(what=what, floor=max(quiet), measured=max(loud), bar=2.0)

    async def _repairs(
        self,
        tenants: Iterable[str],
        kind: str = "ConfigMap",
        name: str = "tenant-policy",
    ) -> list[float]:
        """Delete an object of each tenant in turn; return how long each takes to be back."""
        took = []
        for tenant in tenants:
            ref = Ref(kind, f"tenant-{tenant}", name)
            there = await self._client.get(ref)
            started = time.monotonic()
            await self._client.delete(ref, there["metadata"]["uid"])
            while not await replaced(self._client, ref, there["metadata"]["uid"]):
                pass
            took.append(time.monotonic() - started)
        return took

    async def _noise(self, tenant: str, going: asyncio.Event) -> None:
        """Change a bot 50 times a second, for ever; set `going` after two seconds of that."""
        ref = Ref("BotDeployment", f"tenant-{tenant}", "bot-0")
        number = 0
        while True:
            number += 1
            path = "/spec/runtimeConfig"
            await self._client.json_patch(
                ref, [{"op": "add", "path": path, "value": {"n": number}}]
            )
            if number == NOISE_BEFORE:
                going.set()
            await asyncio.sleep(0.02)

    def _cpu(self) -> float:
        spent = self._operator.cpu_times()
        return float(spent.user + spent.system)


def _is_change(request: audit.Request) -> bool:
    return request.is_write and request.resource != "leases"


async def _each(items: Iterable[T], act: Callable[[T], Awaitable[object]]) -> None:
    """Act on all items, over as many connections as the floor has."""
    turn = asyncio.Semaphore(CONNECTIONS)

    async def one(item: T) -> None:
        async with turn:
            await act(item)

    await asyncio.gather(*(one(item) for item in items))


def _metric(installed: Installation, name: str) -> float:
    """Return the sum of a metric of the operator; 0 while it does not answer."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{installed.ports['operator']}/metrics"
        ) as page:
            lines = page.read().decode().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))
