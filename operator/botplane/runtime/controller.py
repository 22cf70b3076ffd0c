"""Passes: take a key from the queue, reconcile, judge the result. The same for every kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from botplane.errors import Rejected, Retryable
from botplane.kube.errors import ConflictError, NotFoundError
from botplane.kube.observe import Key
from botplane.runtime.queue import WorkQueue
from botplane.telemetry import metrics

log = structlog.get_logger()

WORKERS = 16


@dataclass(frozen=True)
class Done:
    """The result of a pass that ended as it should.

    Attributes:
        changed: Something was written.
        retry: The pass met something that is not ready and wants another try.
        after_seconds: Look again after this time, ready or not.
    """

    changed: bool = False
    retry: Retryable | None = None
    after_seconds: float | None = None


Reconcile = Callable[[Key], Awaitable[Done]]
ReportBug = Callable[[Key, Exception], Awaitable[None]]


class Controller:
    """Runs the reconcile function of each kind on the keys of one queue."""

    def __init__(
        self, queue: WorkQueue[Key], reconcilers: Mapping[str, Reconcile], report_bug: ReportBug
    ) -> None:
        self._queue = queue
        self._reconcilers = reconcilers
        self._report_bug = report_bug

    async def run(self) -> None:
        """Work until the queue is closed."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._queue.work(self._pass))

    async def _pass(self, key: Key) -> None:
        kind, namespace, name = key
        start = time.monotonic()
        with structlog.contextvars.bound_contextvars(kind=kind, namespace=namespace, name=name):
            result = await self._judged(key)
        metrics.RECONCILES.labels(kind, result).inc()
        metrics.RECONCILE_SECONDS.labels(kind).observe(time.monotonic() - start)

    async def _judged(self, key: Key) -> str:
        try:
            done = await self._reconcilers[key[0]](key)
        except Rejected as error:
            self._queue.succeeded(key)
            log.warning("Rejected", reason=error.reason, message=error.message)
            return "rejected"
        except Retryable as error:
            self._retry(key, error)
            return "retry"
        except (ConflictError, NotFoundError) as error:
            # An object changed or went while the pass ran.
            self._retry(key, Retryable("WriteConflict", str(error)))
            return "retry"
        except Exception as error:  # the one place where a bug is caught: others go on
            delay = self._queue.backoff(key)
            log.exception("Pass failed", retry_seconds=round(delay, 2))
            await self._report(key, error)
            return "error"
        if done.retry is not None:
            self._retry(key, done.retry)
            return "retry"
        self._queue.succeeded(key)
        if done.after_seconds is not None:
            self._queue.add_after(key, done.after_seconds)
        return "changed" if done.changed else "unchanged"

    def _retry(self, key: Key, error: Retryable) -> None:
        delay = self._queue.backoff(key, error.after_seconds or 0.0)
        log.info(
            "Waiting", reason=error.reason, message=error.message, retry_seconds=round(delay, 2)
        )

    async def _report(self, key: Key, error: Exception) -> None:
        try:
            await self._report_bug(key, error)
        except Exception:  # the API server may be what fails
            log.warning("Bug was not reported in the status", exc_info=True)
