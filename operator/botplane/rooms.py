"""Where the rooms of the operator meet: who is whose neighbour, and what plans promise."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable
from uuid import UUID

from botplane.api import labels as lb
from botplane.api import network
from botplane.api.conditions import ConditionStatus, Verdict
from botplane.api.plan import PlanSpec
from botplane.api.tenant import TenantSpec
from botplane.bots.policy import Rights
from botplane.bots.reconcile import TenantView
from botplane.kube.client import KubeClient
from botplane.kube.drift import digest
from botplane.kube.errors import NotFoundError
from botplane.kube.observe import Children, Key
from botplane.kube.resources import Ref
from botplane.runtime.objects import Objects
from botplane.telemetry import metrics
from botplane.tenants import capacity
from botplane.tenants import policy as tenant_policy
from botplane.tenants.accounts import AccountState, remembered
from botplane.tenants.network import NOT_PROBED, network_verdict

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

BREATH = 20
"""Tenants that are counted before others get their turn of the event loop."""
SEVERAL = -1
"""Bots have seen a tenant in more than one way; no hash is that."""
PRIVATE_FIELDS = frozenset({"runtimeConfig"})
"""What a bot may change often and no other bot can notice; the rest may claim quota."""


class Neighbours:
    """Which objects concern each other."""

    def __init__(
        self,
        objects: Objects,
        children: Children,
        bot_repository: str,
        account_of: Callable[[str], AccountState | None],
    ) -> None:
        self._account_of = account_of
        self._objects = objects
        self._children = children
        self._bot_repository = bot_repository
        self._shown: dict[str, int] = {}

    def tenant_key(self, namespace: str) -> Key | None:
        """Return the tenant of a namespace, by its name."""
        name = namespace.removeprefix(lb.TENANT_NAMESPACE_PREFIX)
        return None if name == namespace else Key("Tenant", "", name)

    def bots_of(self, tenant: Key) -> list[Key]:
        """Return the bots of a tenant."""
        return self._objects.keys("BotDeployment", lb.tenant_namespace(tenant[2]))

    def tenants_on(self, plan: str) -> list[Key]:
        """Return the tenants that use a plan."""
        return [t for t in self._objects.keys("Tenant") if self._plan_of(t) == plan]

    def tenants_of_bots(self) -> dict[UUID, UUID]:
        """Return the tenant of each bot, both by uid."""
        tenants = {k[2]: UUID(self._objects.uid(k)) for k in self._objects.keys("Tenant")}
        return {
            UUID(self._objects.uid(key)): tenants[tenant[2]]
            for key in self._objects.keys("BotDeployment")
            if (tenant := self.tenant_key(key[1])) is not None and tenant[2] in tenants
        }

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
            return self.tenants_on(key[2])
        if key[0] == "Tenant":
            return self.bots_of(key)
        tenant = self.tenant_key(key[1])
        siblings = [k for k in self._objects.keys("BotDeployment", key[1]) if k != key]
        return siblings if tenant is None else [tenant, *siblings]

    def greeted_by(self, key: Key) -> Iterable[Key]:
        """Return the objects that a new one concerns: bots wait for their tenant, which counts."""
        if key[0] == "Tenant":
            return self.bots_of(key)
        tenant = self.tenant_key(key[1])
        return [] if tenant is None else [tenant]

    def view_of(self, key: Key) -> str:
        """Return, hashed, what neighbours can see of an object; nothing when it is gone."""
        if key[0] == "Tenant":
            view = self._tenant_of(lb.tenant_namespace(key[2]))
            return "" if view is None else digest(repr(view))
        body = self._objects.get(key)
        if body is None:
            return ""
        if key[0] == "Plan":
            # What it declares is told at once; its revision, when it is published.
            return digest((body.get("status") or {}).get("revision"))
        return digest({k: v for k, v in body["spec"].items() if k not in PRIVATE_FIELDS})

    def tenant_of(self, namespace: str) -> TenantView | None:
        """Return what a bot needs to know of the tenant of its namespace."""
        view = self._tenant_of(namespace)
        glance = self._glance(namespace, view)
        if self._shown.setdefault(namespace, glance) != glance:
            self._shown[namespace] = SEVERAL
        return view

    def has_misled(self, tenant: Key) -> bool:
        """Return whether bots, since this was asked last, saw a tenant other than it is now.

        What a tenant's passes found before and after may be the same, and a bot has looked between.
        """
        namespace = lb.tenant_namespace(tenant[2])
        shown = self._shown.pop(namespace, None)
        if shown is None:
            return False
        return shown != self._glance(namespace, self._tenant_of(namespace))

    def _glance(self, namespace: str, view: TenantView | None) -> int:
        """Return, hashed, what of a view can come and go without a pass of the tenant."""
        key = self.tenant_key(namespace)
        body = None if key is None else self._objects.get(key)
        if body is None or view is None:
            return hash(None)
        generation = body["metadata"]["generation"]
        return hash((generation, view.isolated, view.suspended, view.rights is None))

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
        plan = self._plan(spec)
        account = self._account_of(uid) or remembered(body.get("status") or {})
        stopped = tenant_policy.suspensions(spec, annotations, account.holds, plan)
        reasons = [suspension.message for suspension in stopped]
        if "deletionTimestamp" in body["metadata"] and tenant_policy.deletion_held(spec) is None:
            # A bot that comes after the last look at them would outlive its tenant.
            reasons.append("it is being deleted")
        return TenantView(
            name=key[2],
            uid=uid,
            isolated=space is not None and space.tenant_uid == uid and self._isolated(namespace),
            suspended="; ".join(reasons),
            user_labels={f"user.{lb.GROUP}/{k}": v for k, v in labels.items()},
            rights=None if plan is None else self._rights(spec, plan),
        )

    def _isolated(self, namespace: str) -> bool:
        children = (self._children.get(Ref(kind, namespace, name)) for kind, name in ISOLATION)
        return all(child is not None and not child.deleting for child in children)

    def _plan(self, spec: TenantSpec) -> PlanSpec | None:
        body = self._objects.get(Key("Plan", "", spec.plan_ref.name))
        return None if body is None else PlanSpec.model_validate(body["spec"])

    def _rights(self, spec: TenantSpec, plan: PlanSpec) -> Rights:
        granted = tenant_policy.entitlements(spec, plan)
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
        self._counted: dict[str, str] = {}
        """The plan that each tenant was counted with, by its uid."""

    def has_room_for(self, uid: str, plan: str) -> bool | None:
        """Return whether a tenant fits beside the older ones; None: not counted with this plan."""
        if uid in self._beyond:
            return False
        return True if self._counted.get(uid) == plan else None

    async def refresh(self) -> frozenset[str]:
        """Count again; return the uids of the tenants for which the answer has changed."""
        nodes = capacity.capacity_of(await self._client.list("Node"))
        claims = [claim async for claim in self._claims()]
        total = capacity.committed(claims)
        for resource, promised, there in (
            ("cpu", total.cpu, nodes.cpu),
            ("memory", total.memory, nodes.memory),
        ):
            if there:
                metrics.COMMITTED.labels(resource).set(float(promised / there))
        before, self._beyond = self._beyond, capacity.beyond(claims, nodes)
        self._counted = {claim.uid: claim.plan for claim in claims}
        return before ^ self._beyond

    async def _claims(self) -> AsyncIterator[capacity.Claim]:
        plans = {
            key[2]: capacity.promised(PlanSpec.model_validate(body["spec"]))
            for key in self._objects.keys("Plan")
            if (body := self._objects.get(key)) is not None
        }
        for number, key in enumerate(self._objects.keys("Tenant")):
            if number % BREATH == 0:
                await asyncio.sleep(0)
            body = self._objects.get(key)
            if body is None:
                continue
            meta, plan = body["metadata"], body["spec"]["planRef"]["name"]
            if (amount := plans.get(plan)) is not None:
                yield capacity.Claim(meta["creationTimestamp"], meta["uid"], amount, plan)


class NetworkProbe:
    """What the last probe of the network found, as it was recorded."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self._record = Ref("ConfigMap", namespace, network.RECORD)
        self._verdict = NOT_PROBED

    def verdict(self) -> Verdict:
        """Return the condition that it makes for every Tenant, as read last."""
        return self._verdict

    async def refresh(self) -> bool:
        """Read the record; return whether it says something else than before.

        Raises:
            Rejected: It may not be read.
            Retryable: The API server does not answer.
        """
        try:
            record = await self._client.get(self._record)
        except NotFoundError:
            record = None
        before, self._verdict = self._verdict, network_verdict(record)
        told = {ConditionStatus.TRUE: 1.0, ConditionStatus.FALSE: 0.0}
        metrics.NETWORK_POLICIES_ENFORCED.set(told.get(self._verdict.status, math.nan))
        return self._verdict != before
