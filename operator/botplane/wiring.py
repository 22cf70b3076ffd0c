"""The operator process: joins the rooms, starts everything, stops in order."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import structlog

from botplane.api import labels as lb
from botplane.api.conditions import Finding, only_in_progress
from botplane.billing.reconcile import PlanReconciler
from botplane.bot_keys import BotKeys
from botplane.bots.exposure import Facilities
from botplane.bots.reconcile import BotReconciler, Surroundings
from botplane.bots.templates import Templates
from botplane.clock import utc_now
from botplane.errors import Rejected, Retryable
from botplane.kube.apply import Applier
from botplane.kube.client import KubeClient
from botplane.kube.observe import Children, Key
from botplane.kube.resources import Manifest, Ref, ref_of
from botplane.postgres import News, Postgres
from botplane.rooms import (
    CHILD_KINDS,
    KINDS,
    OPTIONAL_KINDS,
    Commitments,
    Neighbours,
    NetworkProbe,
)
from botplane.runtime.cluster import Cluster
from botplane.runtime.connection import Connection, connect
from botplane.runtime.controller import Controller, Done, Reconcile
from botplane.runtime.front_end import FrontEnd
from botplane.runtime.health import serve
from botplane.runtime.lease import Lease
from botplane.runtime.objects import Objects
from botplane.runtime.pace import Pace
from botplane.runtime.queue import WorkQueue
from botplane.runtime.repeat import repeat
from botplane.runtime.resync import RESYNC_SECONDS, Resync
from botplane.runtime.secrets import SecretPoll
from botplane.runtime.status import StatusWriter
from botplane.runtime.watches import ChildWatches
from botplane.settings import Settings
from botplane.telemetry import metrics
from botplane.telemetry.logs import configure
from botplane.tenants.purge import close_abandoned, purge
from botplane.tenants.reconcile import Capacity, Network, Site, TenantReconciler

log = structlog.get_logger()

STUCK_SECONDS = 120.0
USAGE_SECONDS = 2.0
KEYS_SECONDS = 2.0
FORECAST_SECONDS = 30.0
MASTER_KEY_LENGTH = 32
CAPACITY_SECONDS = 10.0
METRICS_SECONDS = 5.0
NETWORK_SECONDS = 10.0
SETTLE_SECONDS = 8.0


class Operator:
    """All parts of the operator process."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._settings = settings
        self._connection = connection
        self._client = KubeClient(connection.server, connection.session)
        self._objects = Objects()
        self._children = Children()
        self._queue: WorkQueue[Key] = WorkQueue(time.monotonic, _tenant_of)
        self._resync = Resync(self._client, self._objects, self._children, self._wake)
        self._lease = Lease(
            self._client,
            Ref("Lease", settings.namespace, "botplane-operator"),
            settings.identity,
            utc_now,
        )
        self._postgres = Postgres(
            settings.database_url, utc_now, settings.identity, self._lease.is_held
        )
        master_key = settings.master_key.get_secret_value().encode()
        self._keys = BotKeys(self._postgres, master_key, utc_now)
        self._neighbours = Neighbours(
            self._objects, self._children, settings.bot_repository, self._postgres.state
        )
        self._commitments = Commitments(self._client, self._objects)
        self._network = NetworkProbe(self._client, settings.namespace)
        self._status = StatusWriter(self._client, self._objects, utc_now)
        self._cluster = Cluster(
            self._client,
            self._objects,
            self._children,
            Applier(self._client, self._children),
            self._status,
        )
        self._secrets = SecretPoll(self._client, self._children)
        self._child_kinds: tuple[str, ...] = CHILD_KINDS
        self._pace: Pace[Key] = Pace(time.monotonic)
        self._views: dict[Key, str] = {}
        """What its neighbours see of an object: its own figures concern none of them."""
        self._leading = False
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Run until a signal comes or leadership is lost; return the exit code."""
        health = await serve(self._settings.health_port, self._live_problem, self._ready_problem)
        watches_stop = asyncio.Event()
        try:
            _collect_seldom()
            await self._read_everything()
            gc.freeze()
            lost = asyncio.create_task(self._lead())
            watches = asyncio.create_task(self._watch(watches_stop))
            children = asyncio.create_task(self._watch_children())
            network = asyncio.create_task(
                repeat(self._follow_network, NETWORK_SECONDS, "The probe was not read")
            )
            stopped = asyncio.create_task(self._stop.wait())
            ends = {lost, watches, children, network, stopped}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            code = 0 if self._stop.is_set() else 1
            for failed in (watches, children, network):
                if failed.done() and failed.exception() is not None:
                    log.error("Watches failed", exc_info=failed.exception())
            self._queue.close()
            await self._queue.drained(SETTLE_SECONDS)
            # No pass may go on when another leads, and kopf would wait for what reads.
            for task in (lost, children, network):
                task.cancel()
            await asyncio.wait({lost, children, network}, timeout=SETTLE_SECONDS)
            await self._lease.release()
            watches_stop.set()
            await asyncio.wait({watches}, timeout=SETTLE_SECONDS)
            return code
        finally:
            self._postgres.close()
            await health.cleanup()
            await self._connection.session.close()

    async def _read_everything(self) -> None:
        """List all objects, until that works: no pass may mistake the unknown for the absent."""
        while not self._stop.is_set():
            try:
                served = [kind for kind in OPTIONAL_KINDS if await self._client.serves(kind)]
                self._child_kinds = (*CHILD_KINDS, *served)
                await self._resync.round(KINDS, self._child_kinds)
                await self._network.refresh()
            except (Rejected, Retryable) as error:
                log.warning("Objects were not read", reason=error.reason, message=error.message)
                await asyncio.sleep(1)
            else:
                return

    async def _watch(self, stop: asyncio.Event) -> None:
        front = FrontEnd(self._note, KINDS)
        loop = asyncio.get_running_loop()

        def take_signals() -> None:
            # kopf has put its own in place; ours stop things in order.
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)

        await front.run(self._connection, stop, take_signals)

    async def _watch_children(self) -> None:
        watches = ChildWatches(self._client, self._resync, self._note)
        await watches.run(self._child_kinds)

    async def _lead(self) -> None:
        """Wait for the lease, then work until it is lost, or Postgres knows another leader."""
        await self._lease.acquire()
        self._leading = True
        controller = Controller(self._queue, self._reconcilers(), self._report_bug)
        for kind in KINDS:
            for key in self._objects.news(kind):
                self._queue.add(key)
        self._queue.add_all(key for kind in KINDS for key in self._objects.keys(kind))
        async with asyncio.TaskGroup() as group:
            rounds = (
                self._resync.run(KINDS, self._child_kinds),
                self._secrets.run(self._tenant_namespaces, self._add),
                self._follow_usage(),
                self._foresee(),
                repeat(self._issue_keys, KEYS_SECONDS, "Keys were not issued"),
                repeat(self._count_capacity, CAPACITY_SECONDS, "Capacity was not counted"),
                repeat(self._purge, self._settings.purge_seconds, "Nothing was purged"),
                repeat(self._measure, METRICS_SECONDS, "Nothing was measured"),
            )
            background = [group.create_task(endless) for endless in rounds]
            working = group.create_task(controller.run())
            held = group.create_task(self._lease.hold())
            fenced = group.create_task(self._postgres.fenced.wait())
            await asyncio.wait({held, fenced}, return_when=asyncio.FIRST_COMPLETED)
            # At once: another replica leads soon, and what passes here still write is old news.
            self._queue.close()
            for task in (*background, working, held, fenced):
                task.cancel()

    def _reconcilers(self) -> dict[str, Callable[[Key], Awaitable[Done]]]:
        settings = self._settings
        site = Site(
            settings.namespace,
            settings.service_account,
            bot_repository=settings.bot_repository,
            backup_image=settings.backup_image,
            public_domain=settings.public_domain,
        )
        tenants = TenantReconciler(
            self._cluster,
            self._postgres.accounts(),
            site,
            Capacity(self._commitments.has_room_for, settings.overcommit == "Strict"),
            Network(self._network.verdict, settings.network_isolation == "Strict"),
        )
        around = Surroundings(
            tenant_of=self._neighbours.tenant_of,
            usage=self._postgres.usage,
            clock=utc_now,
            gateway_url=settings.gateway_url,
            usage_url=settings.usage_url,
            master_key=settings.master_key.get_secret_value().encode(),
            facilities=Facilities(
                public_domain=settings.public_domain,
                ingress_class=settings.ingress_class,
                ingress_namespace=settings.ingress_namespace,
                monitoring_namespace=settings.monitoring_namespace,
                backup_image=settings.backup_image,
                pod_monitors="PodMonitor" in self._child_kinds,
            ),
        )

        bots = BotReconciler(self._cluster, Templates(settings.templates_dir), around)
        return {
            "Tenant": self._telling(tenants),
            "Plan": self._telling(
                PlanReconciler(self._cluster, self._postgres.publish, self._neighbours.tenants_on)
            ),
            "BotDeployment": self._telling(self._with_secrets(bots)),
        }

    def _with_secrets(self, reconcile: Reconcile) -> Reconcile:
        """Look at the Secrets of a tenant's namespace before its first bot is looked at."""

        async def informed(key: Key) -> Done:
            if self._children.get(Ref("Namespace", "", key[1])) is not None:
                await self._secrets.first_look(key[1])
            return await reconcile(key)

        return informed

    def _telling(self, reconcile: Reconcile) -> Reconcile:
        """Wake the neighbours after a pass if what they can see of the object has changed."""

        async def told(key: Key) -> Done:
            before = self._views.get(key) or self._neighbours.view_of(key)
            try:
                return await reconcile(key)
            finally:
                after = self._neighbours.view_of(key)
                if after:
                    self._views[key] = after
                else:
                    self._views.pop(key, None)
                misled = key[0] == "Tenant" and self._neighbours.has_misled(key)
                if after != before or misled:
                    self._wake_neighbours(key)

        return told

    def _note(self, event: str, body: Manifest) -> None:
        """Take note of a watch event and ask for the passes that it calls for."""
        kind = body["kind"]
        metrics.WATCH_EVENTS.labels(kind).inc()
        if kind in KINDS:
            key = Key(*ref_of(body))
            gone = event == "DELETED"
            found = self._objects.deleted(body) if gone else self._objects.observe(body)
            if found is not None:
                self._note_object(key, event)
            return
        if event == "DELETED":
            owner = self._children.deleted(body)
            owners = [] if owner is None else [owner]
        else:
            owners = self._children.observe(body)
        for owner in owners:
            self._add(owner)
            # A tenant shows how many of its bots run.
            tenant = self._neighbours.tenant_key(owner[1]) if kind == "Deployment" else None
            if tenant is not None:
                self._add(tenant)

    def _note_object(self, key: Key, event: str) -> None:
        if event == "DELETED" or key[0] == "Plan":
            self._views.pop(key, None)
            self._pace.forget(key)
            self._wake(key)
        elif event != "MODIFIED":
            # Of what came while a watch was broken a list tells, without saying that it is new.
            self._add(key)
            for other in self._neighbours.greeted_by(key):
                self._add(other)
        elif self._leading:
            # Whom it concerns is told after the pass.
            self._queue.add_after(key, self._pace.delay(key))

    def _wake(self, key: Key) -> None:
        """Ask for a pass of an object that has changed, and of those that it may concern."""
        if self._leading:
            self._add(key)
            self._wake_neighbours(key)

    def _wake_neighbours(self, key: Key) -> None:
        for other in self._neighbours.touched_by(key):
            self._add(other)

    def _add(self, key: Key) -> None:
        if not self._leading:
            return
        # A change of its children must not bring a restless bot's next change in before its time.
        if wait := self._pace.left(key):
            self._queue.add_after(key, wait)
        else:
            self._queue.add(key)

    async def _follow_usage(self) -> None:
        """Enforce limits, and show in the status what has been used."""
        due = 0.0
        while True:
            started = time.monotonic()
            if started >= due or self._postgres.is_away:
                news = await self._postgres.follow()
                if news is not None:
                    await self._take(news)
                    # At many tenants the question itself takes seconds: ask less often.
                    ended = time.monotonic()
                    due = ended + 10 * (ended - started)
            await asyncio.sleep(USAGE_SECONDS)

    async def _take(self, news: News) -> None:
        """Ask for the passes that show what a round has changed, and post its warnings."""
        if news.is_back:
            for key in (*self._objects.keys("Plan"), *self._objects.keys("Tenant")):
                self._add(key)
        for key in self._neighbours.by_uid(news.moved):
            self._add(key)
        await self._tell(news.warnings)

    async def _tell(self, warnings: Sequence[tuple[UUID, Finding]]) -> None:
        """Post the Events of warnings about limits and unpaid invoices."""
        keys = self._neighbours.by_uid(str(tenant_id) for tenant_id, _ in warnings)
        tenants = {self._objects.uid(key): self._objects.get(key) for key in keys}
        for tenant_id, finding in warnings:
            body = tenants.get(str(tenant_id))
            if body is not None:
                await self._status.warn(body, finding)

    async def _foresee(self) -> None:
        """Estimate what the running periods will cost; at many tenants less often."""
        while True:
            started = time.monotonic()
            await self._postgres.foresee()
            took = time.monotonic() - started
            await asyncio.sleep(max(FORECAST_SECONDS, 100 * took))

    async def _issue_keys(self) -> None:
        """Let bots report usage with the keys in their Secrets."""
        await self._keys.settle(self._neighbours.tenants_of_bots())

    async def _count_capacity(self) -> None:
        """Count what plans promise, and tell the tenants that do not fit."""
        for key in self._neighbours.by_uid(await self._commitments.refresh()):
            self._add(key)

    async def _follow_network(self) -> None:
        """Read what the last probe of the network found; tell all tenants when that changes.

        A replica that waits for the lease reads it too: no tenant hears old news of a new leader.
        """
        if not await self._network.refresh():
            return
        found = self._network.verdict()
        log.warning(
            "Network isolation changed",
            status=found.status,
            reason=found.reason,
            message=found.message,
        )
        for key in self._objects.keys("Tenant"):
            self._add(key)

    async def _purge(self) -> None:
        """Delete namespaces whose retention is over; close accounts that nothing else closes."""
        await purge(self._cluster, utc_now())
        for key in await close_abandoned(self._cluster, self._postgres.accounts()):
            self._add(key)

    async def _measure(self) -> None:
        metrics.QUEUE_DEPTH.set(len(self._queue))
        metrics.QUEUE_OLDEST_SECONDS.set(self._queue.oldest_seconds)
        for kind in KINDS:
            counts = self._objects.counts(kind)
            metrics.OBJECTS.labels(kind).set(counts.total())
            for status in ("True", "False", "Unknown"):
                metrics.READY.labels(kind, status).set(counts[status])

    def _tenant_namespaces(self) -> list[str]:
        return [ref.name for ref in self._children.refs("Namespace")]

    async def _report_bug(self, key: Key, error: Exception) -> None:
        body = self._objects.get(key)
        if body is None:
            return
        text = f"Internal error ({type(error).__name__}); the operator's log has the details"
        shown = only_in_progress(body.get("status") or {}, Finding("InternalError", text))
        await self._status.write(body, *shown)

    def _live_problem(self) -> str | None:
        now = asyncio.get_running_loop().time()
        if self._queue.oldest_seconds > STUCK_SECONDS:
            return f"a key has waited for {self._queue.oldest_seconds:.0f} seconds"
        if self._leading and self._resync.last is not None:
            age = now - self._resync.last
            if age > 3 * RESYNC_SECONDS:
                return f"the last full list is {age:.0f} seconds old"
        return None

    def _ready_problem(self) -> str | None:
        return "objects are being read" if self._resync.last is None else None


def _collect_seldom() -> None:
    """Keep the garbage collector away from what lives long: a fifth of all CPU (measured)."""
    gc.set_threshold(20_000, 20, 50)


def _tenant_of(key: Key) -> str:
    """Return whose turn in the queue a pass takes: its tenant's, by the namespace."""
    return key[1] or lb.tenant_namespace(key[2])


async def run_operator(settings: Settings) -> int:
    """Run the operator process and return its exit code; after a failure, exit at once."""
    configure(settings.log_format, settings.log_level)
    if len(settings.master_key.get_secret_value()) < MASTER_KEY_LENGTH:
        log.error("BOTPLANE_MASTER_KEY is too short", least=MASTER_KEY_LENGTH)
        return 2
    connection = await connect()
    code = await Operator(settings, connection).run()
    if code:
        # The event loop would now wait for kopf's watches, which survive being cancelled once.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
