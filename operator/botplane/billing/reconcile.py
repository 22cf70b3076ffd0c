"""Plan: publish its prices as a revision of the price book. The shell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from botplane.api.conditions import Finding, Outcome, Verdict, summarize
from botplane.api.plan import PlanSpec
from botplane.billing.pricebook import PriceBook, price_book
from botplane.errors import Rejected, Retryable
from botplane.kube.observe import Key
from botplane.kube.resources import Manifest
from botplane.runtime.cluster import Cluster
from botplane.runtime.controller import Done

Publish = Callable[[PriceBook], Awaitable[int]]
"""Stores a price book and returns its revision; the same content gives the same revision."""


class PlanReconciler:
    """Keeps the price book in Postgres equal to the plans."""

    def __init__(self, cluster: Cluster, publish: Publish) -> None:
        self._cluster = cluster
        self._publish = publish

    async def __call__(self, key: Key) -> Done:
        """Do one pass for one plan."""
        body = self._cluster.objects.get(key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            # Tenants that use it say PlanNotFound; published prices stay for what was used.
            return Done()
        before = (body.get("status") or {}).get("revision")
        try:
            revision = await self._publish(
                price_book(key[2], PlanSpec.model_validate(body["spec"]))
            )
        except (Rejected, Retryable) as error:
            changed = await self._report(body, _failed(error), before)
            return Done(changed=changed, retry=error if isinstance(error, Retryable) else None)
        text = f"Revision {revision} of the prices is in force"
        verdicts = [
            *summarize(Outcome.READY, "Published", text),
            Verdict.holds("PricesPublished", "Published", text),
        ]
        return Done(changed=await self._report(body, verdicts, revision))

    async def _report(self, body: Manifest, verdicts: list[Verdict], revision: int | None) -> bool:
        return await self._cluster.status.write(body, verdicts, {"revision": revision})


def _failed(error: Rejected | Retryable) -> list[Verdict]:
    outcome = Outcome.STALLED if isinstance(error, Rejected) else Outcome.IN_PROGRESS
    finding = Finding(error.reason, error.message)
    return [*summarize(outcome, *finding), Verdict.fails("PricesPublished", finding)]
