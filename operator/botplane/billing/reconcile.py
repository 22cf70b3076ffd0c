"""Plan: publish its prices as a revision of the price book; keep it while it is used. The shell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from botplane.api import labels as lb
from botplane.api.conditions import Finding, Outcome, Verdict, only_in_progress, summarize
from botplane.api.plan import PlanSpec
from botplane.billing.pricebook import PriceBook, price_book
from botplane.errors import Rejected, Retryable
from botplane.kube.observe import Key
from botplane.kube.resources import Manifest
from botplane.runtime.cluster import Cluster
from botplane.runtime.controller import Done

LOOK_AGAIN_SECONDS = 10.0
MOST_NAMED = 5

Publish = Callable[[PriceBook], Awaitable[int]]
"""Stores a price book and returns its revision; the same content gives the same revision."""


class PlanReconciler:
    """Keeps the price book in Postgres equal to the plans."""

    def __init__(
        self, cluster: Cluster, publish: Publish, tenants_on: Callable[[str], Sequence[Key]]
    ) -> None:
        self._cluster = cluster
        self._publish = publish
        self._tenants_on = tenants_on

    async def __call__(self, key: Key) -> Done:
        """Do one pass for one plan."""
        body = self._cluster.objects.get(key)
        if body is None:
            return Done()
        if "deletionTimestamp" in body["metadata"]:
            return await self._let_go(body)
        changed = await self._cluster.add_finalizer(body, lb.PLAN_FINALIZER)
        before = (body.get("status") or {}).get("revision")
        try:
            revision = await self._publish(
                price_book(key[2], PlanSpec.model_validate(body["spec"]))
            )
        except (Rejected, Retryable) as error:
            changed |= await self._report(body, _failed(error), before)
            return Done(changed=changed, retry=error if isinstance(error, Retryable) else None)
        text = f"Revision {revision} of the prices is in force"
        verdicts = [
            *summarize(Outcome.READY, "Published", text),
            Verdict.holds("PricesPublished", "Published", text),
        ]
        changed |= await self._report(body, verdicts, revision)
        return Done(changed=changed)

    async def _let_go(self, body: Manifest) -> Done:
        """Let a plan go that no tenant uses: without it, theirs could not be set up or mended.

        Published prices stay for what was used.
        """
        users = [key[2] for key in self._tenants_on(body["metadata"]["name"])]
        if not users:
            await self._cluster.remove_finalizer(body, lb.PLAN_FINALIZER)
            return Done(changed=True)
        if lb.PLAN_FINALIZER not in body["metadata"].get("finalizers", ()):
            return Done()
        shown = only_in_progress(body.get("status") or {}, _in_use(users))
        changed = await self._cluster.status.write(body, *shown)
        return Done(changed=changed, after_seconds=LOOK_AGAIN_SECONDS)

    async def _report(self, body: Manifest, verdicts: list[Verdict], revision: int | None) -> bool:
        return await self._cluster.status.write(body, verdicts, {"revision": revision})


def _in_use(users: Sequence[str]) -> Finding:
    named = ", ".join(sorted(users)[:MOST_NAMED])
    more = f" and {len(users) - MOST_NAMED} more" if len(users) > MOST_NAMED else ""
    return Finding(
        "PlanInUse",
        f"Deletion waits for the tenants on this plan: {named}{more}; change their spec.planRef",
    )


def _failed(error: Rejected | Retryable) -> list[Verdict]:
    outcome = Outcome.STALLED if isinstance(error, Rejected) else Outcome.IN_PROGRESS
    finding = Finding(error.reason, error.message)
    return [*summarize(outcome, *finding), Verdict.fails("PricesPublished", finding)]
