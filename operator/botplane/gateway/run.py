"""The gateway process: where its calls, its counts and Postgres meet."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import structlog
import uvloop

from botplane.clock import utc_now
from botplane.errors import Rejected, Retryable
from botplane.gateway import metrics, store
from botplane.gateway.app import Gateway
from botplane.gateway.counts import Counts
from botplane.gateway.http import HTTPServer
from botplane.gateway.policy import MOST_BYTES, Access
from botplane.gateway.providers import Providers, read_endpoints
from botplane.gateway.settings import GatewaySettings
from botplane.metering.events import store as event_store
from botplane.metering.events.policy import Verdict
from botplane.store.pool import Database, Role
from botplane.telemetry.health import serve_health
from botplane.usage import store as usage_store

log = structlog.get_logger()

READ_EVERY_SECONDS: Final = 1.0
"""How long a revoked key, or one who has reached a limit, may still be served."""
WRITE_EVERY_SECONDS: Final = 5.0
"""What a killed process has counted since then is not billed."""
STUCK_AFTER_SECONDS: Final = 330.0
"""Longer than the longest statement."""
LAST_WRITE_SECONDS: Final = 8.0
"""How long an end tries to write; with what is answered before it, less than Kubernetes waits."""
TRY_AGAIN_SECONDS: Final = 0.2
CONNECTIONS: Final = 2


class GatewayProcess:
    """One gateway process: any number of them share a database."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        self.counts = Counts(source=f"gateway/{uuid4()}")
        self._access: Access | None = None
        self._moved_at = time.monotonic()

    def access(self) -> Access | None:
        """Return who may call, as it was read last."""
        return self._access

    def is_ready(self) -> bool:
        """Say whether Postgres has ever told who may call."""
        return self._access is not None

    def is_stuck(self) -> bool:
        """Say whether nothing was read for so long that only a restart helps."""
        return time.monotonic() - self._moved_at > STUCK_AFTER_SECONDS

    async def follow(self) -> None:
        """Read who may call, again and again.

        Raises:
            Rejected: Postgres does not let us.
        """
        while True:
            try:
                self._access = await asyncio.to_thread(self._database.call, self._read)
                metrics.READ_AT.set(self._clock().timestamp())
            except Retryable as error:
                log.warning("Keys and limits were not read", message=error.message)
            self._moved_at = time.monotonic()
            await asyncio.sleep(READ_EVERY_SECONDS)

    async def report(self) -> None:
        """Write what was counted, again and again."""
        while True:
            await asyncio.sleep(WRITE_EVERY_SECONDS)
            await self.write()

    async def write(self) -> bool:
        """Write what failed, or else what was counted; return whether it is on disk now."""
        batches = self.counts.take()
        try:
            if batches:
                told = await asyncio.to_thread(
                    self._database.call, event_store.ingest, batches, self._clock()
                )
                _check(told)
                self.counts.confirm()
        except (Rejected, Retryable) as error:
            log.warning("Calls were not written", message=error.message)
            return False
        finally:
            metrics.UNWRITTEN.set(self.counts.waiting)
        return True

    async def write_all(self) -> None:
        """Write what is left, at the end; a connection that breaks then is no reason to lose it."""
        last = time.monotonic() + LAST_WRITE_SECONDS
        while self.counts.waiting:
            if await self.write():
                continue
            if time.monotonic() > last:
                log.error("Ended with calls that are not billed", calls=self.counts.waiting)
                return
            await asyncio.sleep(TRY_AGAIN_SECONDS)

    def _read(self, conn: Any) -> Access:
        now, at = self._clock(), time.monotonic()
        with store.needed_rights():
            stopped = usage_store.refused(conn, now)
            return Access(callers=store.callers(conn), stopped=stopped, read_at=at)


def _check(told: list[list[Verdict]]) -> None:
    """Log what can only be a bug: no other process has our source, and the calls were just made."""
    lost = sum(v in {Verdict.CONFLICT, Verdict.REJECTED} for verdicts in told for v in verdicts)
    if lost:
        log.error("Calls were refused as usage", events=lost)


def run(
    database_url: str, settings: GatewaySettings, clock: Callable[[], datetime] = utc_now
) -> None:
    """Serve until SIGTERM, then answer and write what was taken, and return.

    Args:
        database_url: Postgres, as libpq reads it.
        settings: Ports, and where the providers are.
        clock: Current time in UTC.

    Raises:
        Rejected: The file of providers is missing or invalid, a port is taken, or Postgres does
            not give the rights of the gateway.
    """
    endpoints = read_endpoints(settings.rpc_endpoints)
    database = Database(database_url, Role.GATEWAY, max_size=CONNECTIONS)
    process = GatewayProcess(database, clock)
    try:
        health = serve_health(settings.gateway_health_port, process)
    except OSError as error:
        database.close()
        raise _taken("BOTPLANE_GATEWAY_HEALTH_PORT", settings.gateway_health_port, error) from None
    log.info(
        "Serving the gateway",
        port=settings.gateway_port,
        chains=sorted(endpoints),
        source=process.counts.source,
    )
    try:
        uvloop.run(_serve(process, endpoints, settings.gateway_port, clock))
    finally:
        health.shutdown()
        database.close()
    log.info("Stopped the gateway")


def _taken(name: str, port: int, error: OSError) -> Rejected:
    return Rejected("SettingInvalid", f"{name} {port} cannot be served: {error.strerror}.")


async def _serve(
    process: GatewayProcess,
    endpoints: Mapping[str, str],
    port: int,
    clock: Callable[[], datetime],
) -> None:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    providers = Providers(endpoints)
    gateway = Gateway(providers, process.counts, process.access, clock)
    beside = [asyncio.create_task(process.follow()), asyncio.create_task(process.report())]

    for task in beside:
        task.add_done_callback(lambda _: ended.set())
    try:
        await HTTPServer(gateway.answer, MOST_BYTES).serve(port, ended)
    except OSError as error:
        raise _taken("BOTPLANE_GATEWAY_PORT", port, error) from None
    for task in beside:
        task.cancel()
    outcomes = await asyncio.gather(*beside, return_exceptions=True)
    await process.write_all()
    providers.close()
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
