"""Where the rooms of the operator meet: who is whose neighbour, and what Postgres tells them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import structlog

from botplane.api import labels as lb
from botplane.api.plan import PlanSpec
from botplane.api.tenant import TenantSpec
from botplane.billing import store as billing_store
from botplane.billing.pricebook import PriceBook
from botplane.bots.policy import Rights
from botplane.bots.reconcile import TenantView
from botplane.errors import Rejected, Retryable
from botplane.kube.client import KubeClient
from botplane.kube.drift import digest
from botplane.kube.observe import Children, Key
from botplane.kube.resources import Ref
from botplane.runtime.objects import Objects
from botplane.store.errors import translated_errors
from botplane.store.pool import open_pool
from botplane.telemetry import metrics
from botplane.tenants import capacity
from botplane.tenants import policy as tenant_policy
from botplane.tenants import store as tenant_store
from botplane.tenants.accounts import TenantAccount
from botplane.tenants.reconcile import Accounts
from botplane.usage import store as usage_store
from botplane.usage.status import figures

log = structlog.get_logger()
T = TypeVar("T")

SHOWN_FOR_SECONDS = 60.0
KINDS = ("Plan", "Tenant", "BotDeployment")
CHILD_KINDS = (
    "Namespace",
    "ConfigMap",
    "NetworkPolicy",
    "ResourceQuota",
    "LimitRange",
    "ServiceAccount",
    "RoleBinding",
    "PersistentVolumeClaim",
    "Deployment",
    "Service",
    "HorizontalPodAutoscaler",
    "Ingress",
    "PodDisruptionBudget",
    "CronJob",
)
OPTIONAL_KINDS = ("PodMonitor",)
"""Kinds of others that are used where the cluster serves them."""
ISOLATION = (
    ("ConfigMap", "tenant-policy"),
    ("NetworkPolicy", "default-deny"),
    ("ResourceQuota", "plan"),
    ("LimitRange", "plan"),
    ("RoleBinding", "botplane-operator"),
)
"""What must be seen in a tenant's namespace before a bot may run there."""


class Neighbours:
    """Which objects concern each other."""

    def __init__(
        self,
        objects: Objects,
        children: Children,
        bot_repository: str,
        holds: Callable[[str], Iterable[str]],
    ) -> None:
        self._holds = holds
        self._objects = objects
        self._children = children
        self._bot_repository = bot_repository

    def tenant_key(self, namespace: str) -> Key | None:
        """Return the tenant of a namespace, by its name."""
        name = namespace.removeprefix(lb.TENANT_NAMESPACE_PREFIX)
        return None if name == namespace else Key("Tenant", "", name)

    def bots_of(self, tenant: Key) -> list[Key]:
        """Return the bots of a tenant."""
        return self._objects.keys("BotDeployment", lb.tenant_namespace(tenant[2]))

    def by_uid(self, uids: Iterable[str]) -> list[Key]:
        """Return the tenants and bots with these uids."""
        wanted = set(uids)
        return [
            key
            for kind in ("Tenant", "BotDeployment")
            for key in self._objects.keys(kind)
            if self._objects.uid(key) in wanted
        ]

    def touched_by(self, key: Key) -> Iterable[Key]:
        """Return the objects that a change of this one concerns."""
        if key[0] == "Plan":
            return [t for t in self._objects.keys("Tenant") if self._plan_of(t) == key[2]]
        if key[0] == "Tenant":
            return self.bots_of(key)
        tenant = self.tenant_key(key[1])
        siblings = [k for k in self._objects.keys("BotDeployment", key[1]) if k != key]
        return siblings if tenant is None else [tenant, *siblings]

    def tenant_of(self, namespace: str) -> TenantView | None:
        """Return what a bot needs to know of the tenant of its namespace."""
        return self._tenant_of(namespace)

    def _plan_of(self, tenant: Key) -> str:
        body = self._objects.get(tenant) or {}
        name: str = body.get("spec", {}).get("planRef", {}).get("name", "")
        return name

    def _tenant_of(self, namespace: str) -> TenantView | None:
        key = self.tenant_key(namespace)
        body = None if key is None else self._objects.get(key)
        if key is None or body is None:
            return None
        spec, uid = TenantSpec.model_validate(body["spec"]), body["metadata"]["uid"]
        space = self._children.get(Ref("Namespace", "", namespace))
        labels = spec.configuration.propagate_labels
        annotations = body["metadata"].get("annotations", {})
        stopped = tenant_policy.suspensions(spec, annotations, self._holds(uid))
        return TenantView(
            name=key[2],
            uid=uid,
            isolated=space is not None and space.tenant_uid == uid and self._isolated(namespace),
            suspended="; ".join(s.message for s in stopped),
            user_labels={f"user.{lb.GROUP}/{k}": v for k, v in labels.items()},
            rights=self._rights(spec),
        )

    def _isolated(self, namespace: str) -> bool:
        children = (self._children.get(Ref(kind, namespace, name)) for kind, name in ISOLATION)
        return all(child is not None and not child.deleting for child in children)

    def _rights(self, spec: TenantSpec) -> Rights | None:
        body = self._objects.get(Key("Plan", "", spec.plan_ref.name))
        if body is None:
            return None
        granted = tenant_policy.entitlements(spec, PlanSpec.model_validate(body["spec"]))
        return Rights(
            plan_name=spec.plan_ref.name,
            plan=granted.plan,
            max_bots=granted.max_bots,
            max_replicas=granted.max_replicas,
            image_registries=granted.image_registries,
            bot_repository=self._bot_repository,
        )


class Commitments:
    """What plans promise, beside what the nodes can give."""

    def __init__(self, client: KubeClient, objects: Objects) -> None:
        self._client = client
        self._objects = objects
        self._beyond: frozenset[str] = frozenset()

    def lacks_room_for(self, uid: str) -> bool:
        """Return whether a tenant does not fit beside the older ones, as counted last."""
        return uid in self._beyond

    async def refresh(self) -> frozenset[str]:
        """Count again; return the uids of the tenants for which the answer has changed."""
        nodes = capacity.capacity_of(await self._client.list("Node"))
        claims = list(self._claims())
        total = capacity.committed(claims)
        for resource, promised, there in (
            ("cpu", total.cpu, nodes.cpu),
            ("memory", total.memory, nodes.memory),
        ):
            if there:
                metrics.COMMITTED.labels(resource).set(float(promised / there))
        before, self._beyond = self._beyond, capacity.beyond(claims, nodes)
        return before ^ self._beyond

    def _claims(self) -> Iterable[capacity.Claim]:
        plans = {
            key[2]: capacity.promised(PlanSpec.model_validate(body["spec"]))
            for key in self._objects.keys("Plan")
            if (body := self._objects.get(key)) is not None
        }
        for key in self._objects.keys("Tenant"):
            body = self._objects.get(key)
            amount = plans.get(body["spec"]["planRef"]["name"]) if body else None
            if body is not None and amount is not None:
                meta = body["metadata"]
                yield capacity.Claim(meta["creationTimestamp"], meta["uid"], amount)


class Postgres:
    """The operator's calls of Postgres: few, in threads, and skipped when nothing changed."""

    def __init__(self, database_url: str, clock: Callable[[], datetime]) -> None:
        self._pool = open_pool(database_url)
        self._clock = clock
        self._registered: dict[UUID, str] = {}
        self._published: dict[str, tuple[str, int]] = {}
        self._holds: dict[str, frozenset[str]] = {}
        self._figures: dict[str, tuple[dict[str, Any] | None, float]] = {}

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def accounts(self) -> Accounts:
        """Return the billing accounts, as the tenants' room needs them."""
        return Accounts(self._register, self._close_tenant, self.holds, self.usage)

    async def publish(self, book: PriceBook) -> int:
        """Store a price book unless it is the one that was stored last."""
        content = book.content_hash.hex()
        known = self._published.get(book.plan)
        if known is None or known[0] != content:
            revision = await self._call(billing_store.publish_plan, book, self._clock())
            known = self._published[book.plan] = (content, revision)
        return known[1]

    def holds(self, uid: str) -> frozenset[str]:
        """Return why a tenant has to be suspended: SpendLimit, PaymentOverdue."""
        return self._holds.get(uid, frozenset())

    def usage(self, uid: str) -> dict[str, Any] | None:
        """Return the rounded usage of a tenant or bot, or None while there is none."""
        return self._figures.get(uid, (None, 0.0))[0]

    async def refresh_usage(self) -> list[str]:
        """Read the usage of all tenants at once; return the uids whose status shall change.

        What a status shows stays for a minute, unless nothing had run before.
        """
        try:
            totals = await self._call(usage_store.usage_summaries, self._clock())
        except (Rejected, Retryable) as error:
            log.warning("Usage was not read", reason=error.reason, message=error.message)
            return []
        now = time.monotonic()
        moved = []
        for uid, shown in figures(*totals).items():
            last, at = self._figures.get(uid, (None, 0.0))
            idle = last is None or last["botHours"] == "0.000"
            if shown != last and (idle or now - at >= SHOWN_FOR_SECONDS):
                self._figures[uid] = (shown, now)
                moved.append(uid)
        return moved

    async def _register(self, account: TenantAccount) -> None:
        content = digest([str(field) for field in astuple(account)])
        if self._registered.get(account.tenant_id) != content:
            await self._call(tenant_store.register_tenant, account, self._clock())
            self._registered[account.tenant_id] = content

    async def _close_tenant(self, tenant_id: UUID) -> None:
        await self._call(tenant_store.close_tenant, tenant_id, self._clock())
        self._registered.pop(tenant_id, None)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        def run() -> T:
            with translated_errors(), self._pool.connection() as conn:
                return function(conn, *arguments)

        return await asyncio.to_thread(run)
