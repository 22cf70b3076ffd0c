"""The one writer of status: merges conditions, writes when something differs, tells transitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import structlog

from botplane.api.conditions import Finding, Verdict, condition_in, merge
from botplane.errors import Rejected, Retryable
from botplane.kube.client import KubeClient
from botplane.kube.errors import ConflictError, NotFoundError
from botplane.kube.resources import Manifest
from botplane.runtime.events import event_of
from botplane.runtime.objects import Objects, key_of

log = structlog.get_logger()


class StatusWriter:
    """Writes the status of custom resources."""

    def __init__(self, client: KubeClient, objects: Objects, wall: Callable[[], datetime]) -> None:
        self._client = client
        self._objects = objects
        self._wall = wall

    async def write(
        self, body: Manifest, verdicts: Sequence[Verdict], fields: dict[str, Any]
    ) -> bool:
        """Bring the status to these conditions and fields; return whether it was written.

        Args:
            body: The object as this pass saw it.
            verdicts: All conditions that hold or fail now.
            fields: The other fields of the status; fields with None are left out.
        """
        before = body.get("status") or {}
        generation = body["metadata"]["generation"]
        conditions = merge(before.get("conditions", ()), verdicts, generation, self._wall())
        status = {
            "conditions": conditions,
            "observedGeneration": generation,
            **{k: v for k, v in fields.items() if v is not None},
        }
        self._objects.want(key_of(body), status)
        if status == before:
            return False
        meta = {k: v for k, v in body["metadata"].items() if k in {"name", "namespace"}}
        kind = {"apiVersion": body["apiVersion"], "kind": body["kind"]}
        try:
            written = await self._client.apply(
                {**kind, "metadata": meta, "status": status}, "status"
            )
        except NotFoundError:
            self._objects.forget(key_of(body), body["metadata"]["uid"])
            return False
        self._objects.wrote(written)
        await self._tell(body, before, conditions[0])
        return True

    async def _tell(self, body: Manifest, before: Manifest, ready: dict[str, Any]) -> None:
        last = condition_in(before, "Ready")
        if last is not None and (last["status"], last["reason"]) == (
            ready["status"],
            ready["reason"],
        ):
            return
        log.info(
            "Ready changed",
            status=ready["status"],
            reason=ready["reason"],
            message=ready["message"],
        )
        event_type = "Warning" if ready["status"] == "False" else "Normal"
        await self._post(body, Finding(ready["reason"], ready["message"]), event_type)

    async def warn(self, body: Manifest, finding: Finding) -> None:
        """Post a Warning that belongs to no change of Ready."""
        log.info("Warned", reason=finding.reason, message=finding.message)
        await self._post(body, finding, "Warning")

    async def _post(self, body: Manifest, finding: Finding, event_type: str) -> None:
        try:
            await self._client.create(event_of(body, finding, event_type, self._wall()))
        except (ConflictError, NotFoundError, Rejected, Retryable) as error:
            # The condition and the log line say the same; an Event is not worth another pass.
            log.debug("Event was not written", error=str(error))
