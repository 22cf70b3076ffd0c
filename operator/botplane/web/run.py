"""The web process: where its routes, its queue and Postgres meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import structlog
import uvicorn
from fastapi import FastAPI

from botplane.billing.payments.settings import PaymentSettings
from botplane.billing.trades import store as trade_store
from botplane.clock import utc_now
from botplane.errors import Rejected, Retryable
from botplane.metering.events import store as event_store
from botplane.metering.events.policy import Trade, Verdict
from botplane.metering.events.store import Batch
from botplane.store.pool import Database, Role
from botplane.web import metrics
from botplane.web.app import Counted, create_app
from botplane.web.auth import Bearers
from botplane.web.bounded import MOST_CONNECTIONS, BoundedProtocol
from botplane.web.events import events_router
from botplane.web.queue import EventQueue
from botplane.web.reports import reports_router
from botplane.web.webhooks import webhooks_router

log = structlog.get_logger()

CONNECTIONS: Final = 4
PARTITIONS_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 5.0
DRAIN_SECONDS: Final = 20


class WebProcess:
    """One web process: any number of them share a database."""

    def __init__(
        self, database_url: str, payments: PaymentSettings, clock: Callable[[], datetime]
    ) -> None:
        self._database = Database(database_url, Role.WEB, max_size=CONNECTIONS)
        self._clock = clock
        self._prepared = False
        self._ended = False
        self._queue = EventQueue(self._ingest)
        bearers = Bearers(lambda *parts: self._database.call(event_store.find_key, *parts))
        routers = [
            events_router(bearers, self._queue, clock),
            reports_router(bearers, self._database.call, clock),
        ]
        if payments.webhook_secrets:
            routers.append(webhooks_router(payments.webhook_secrets, self._database.call, clock))
        self.app = Counted(create_app(routers, self._beside, self._live, self._ready))

    def _ingest(self, batches: Sequence[Batch]) -> list[list[Verdict]]:
        now = self._clock()

        def record(conn: Any, trades: Sequence[Trade]) -> None:
            trade_store.record_trades(conn, [trade_store.Trade(**vars(t)) for t in trades], now)

        return self._database.call(event_store.ingest, batches, now, record)

    @contextlib.asynccontextmanager
    async def _beside(self, _app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._queue.run()), asyncio.create_task(self._keep_months())]
        for task in tasks:
            task.add_done_callback(self._note_end)
        yield
        # Every request has its answer by now, so nothing waits in the queue.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._database.close()

    async def _keep_months(self) -> None:
        while True:
            try:
                early = await asyncio.to_thread(
                    self._database.call, event_store.ensure_partitions, self._clock()
                )
                metrics.EARLY_ROWS.set(early)
                self._prepared = True
                pruned = await asyncio.to_thread(
                    self._database.call, event_store.prune, self._clock()
                )
                if pruned:
                    log.info("Pruned by retention", **pruned)
            except (Rejected, Retryable) as error:
                log.warning(
                    "Months were not looked after", reason=error.reason, message=error.message
                )
            await asyncio.sleep(PARTITIONS_SECONDS if self._prepared else RETRY_SECONDS)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A part of the process has ended", exc_info=error)
            self._ended = True

    def _live(self) -> str | None:
        if self._ended:
            return "a part of the process has ended; its log says why"
        return "a transaction does not end" if self._queue.is_stuck() else None

    def _ready(self) -> str | None:
        return None if self._prepared else "Postgres has not answered yet"


class _Server(uvicorn.Server):
    """Leaves signals to `run`: uvicorn would raise them again after a clean end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(database_url: str, port: int, clock: Callable[[], datetime] = utc_now) -> None:
    """Serve until SIGTERM, then answer what was taken and return.

    Args:
        database_url: Postgres, as libpq reads it.
        port: On all addresses.
        clock: Current time in UTC.
    """
    process = WebProcess(database_url, PaymentSettings(), clock)
    config = uvicorn.Config(
        process.app,
        host="0.0.0.0",  # noqa: S104 - a pod has one address
        port=port,
        loop="uvloop",
        http=BoundedProtocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = _Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    log.info("Serving web", port=port)
    server.run()
    log.info("Stopped web")
