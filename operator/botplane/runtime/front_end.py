"""kopf as the event front-end: events become keys in the queue, and nothing else happens here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from botplane.api.labels import GROUP
from botplane.kube.resources import RESOURCES, Manifest
from botplane.runtime.connection import Connection
from botplane.runtime.lone_kopf import kopf

Note = Callable[[str, Manifest], None]
"""Takes the event type (ADDED, MODIFIED, DELETED, or empty from a list) and the object."""


class EndlessBackoff:
    """Delays from 1 to 30 seconds with jitter, for ever.

    kopf exits when its list of delays ends; an API server upgrade must not restart the operator.
    """

    def __iter__(self) -> Iterator[float]:
        delay = 1.0
        while True:
            yield delay * random.uniform(0.7, 1.3)
            delay = min(delay * 2, 30.0)


class NoDiffs(kopf.DiffBaseStorage):
    """Keeps kopf from copying every object to compare it with its last handled state.

    There is none: nothing but `on.event` is used. A third of kopf's work for an event (measured).
    """

    def build(
        self,
        *,
        body: kopf.Body,  # noqa: ARG002 - the names are kopf's
        extra_fields: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> kopf.BodyEssence:
        """Return nothing to compare."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:  # noqa: ARG002
        """Return that no state was stored."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing in the object."""


def _failure(tasks: Iterable[asyncio.Task[None]]) -> BaseException | None:
    """Return what a task that has ended failed with, if one has."""
    ended = [task for task in tasks if task.done() and not task.cancelled()]
    return next((error for task in ended if (error := task.exception()) is not None), None)


class FrontEnd:
    """Watches custom resources, cluster-wide, one stream per kind."""

    def __init__(self, note: Note, kinds: Iterable[str]) -> None:
        self._note = note
        self._kinds = tuple(kinds)

    async def run(
        self, connection: Connection, stop: asyncio.Event, started: Callable[[], None]
    ) -> None:
        """Watch until `stop` is set; raises when a watch has failed for good.

        Args:
            connection: The API server; kopf closes its session at the end.
            stop: Set it to end the watches.
            started: Called once when kopf has set itself up, signal handlers included.
        """
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(server=connection.server, aiohttp_session=connection.session)

        for kind in self._kinds:
            self._register(registry, kind)
        ready = asyncio.Event()
        ready_task = asyncio.create_task(ready.wait())
        ready_task.add_done_callback(lambda task: None if task.cancelled() else started())
        ours = asyncio.all_tasks()
        try:
            tasks = await kopf.spawn_tasks(
                registry=registry,
                settings=self._settings(),
                clusterwide=True,
                standalone=True,
                stop_flag=stop,
                ready_flag=ready,
            )
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if (error := _failure(tasks)) is not None:
                # kopf's own end would close our session and then wait for its other watches,
                # which try again for ever: a minute without an operator.
                raise error
            await kopf.run_tasks(tasks, ignored=ours)
        finally:
            ready_task.cancel()

    def _register(self, registry: kopf.OperatorRegistry, kind: str) -> None:
        resource = RESOURCES[kind]
        group, _, version = resource.api_version.rpartition("/")

        @kopf.on.event(group, version, resource.plural, registry=registry, id=f"note-{kind}")
        async def note(event: Any, **_: Any) -> None:
            body: Manifest = event["object"]
            # List items carry no kind of their own in all versions.
            body.setdefault("kind", kind)
            self._note(event["type"] or "", body)

    def _settings(self) -> kopf.OperatorSettings:
        """Return the settings; the reasons are measured facts about kopf 1.45."""
        settings = kopf.OperatorSettings()
        settings.peering.standalone = True
        settings.scanning.disabled = True
        settings.watching.chunk_size = 250
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 330
        settings.watching.connect_timeout = 10
        settings.watching.reconnect_backoff = 1.0
        settings.networking.request_timeout = 30
        settings.networking.connect_timeout = 5
        settings.networking.error_backoffs = EndlessBackoff()
        settings.networking.enforce_retry_after = True
        # A worker holds memory for as long as it idles; ours only put keys into a queue.
        settings.queueing.idle_timeout = 0.05
        settings.queueing.exit_timeout = 5
        settings.process.ultimate_exiting_timeout = 60
        settings.persistence.finalizer = f"{GROUP}/unused"
        settings.persistence.diffbase_storage = NoDiffs()
        settings.posting.enabled = False
        settings.execution.default_backoff = 5
        return settings
