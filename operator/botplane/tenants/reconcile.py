"""Tenant: observe, decide, apply, report. The shell; decisions are in policy and manifests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from botplane.api import labels as lb
from botplane.api.conditions import ConditionStatus, Finding, Verdict, only_in_progress
from botplane.api.plan import PlanSpec
from botplane.api.tenant import TenantSpec
from botplane.clock import utc_now
from botplane.errors import Rejected, Retryable
from botplane.kube.apply import Boundary
from botplane.kube.drift import sealed
from botplane.kube.errors import NotFoundError
from botplane.kube.observe import Key
from botplane.kube.resources import Manifest, Ref, ref_of
from botplane.runtime.cluster import Cluster
from botplane.runtime.controller import Done
from botplane.tenants import manifests, policy
from botplane.tenants.accounts import AccountState, TenantAccount, remembered
from botplane.tenants.capacity import NOT_COUNTED, insufficient
from botplane.tenants.network import news
from botplane.tenants.status import Progress, tenant_verdicts

KINDS = frozenset(
    {
        "Namespace",
        "ConfigMap",
        "NetworkPolicy",
        "ResourceQuota",
        "LimitRange",
        "ServiceAccount",
        "RoleBinding",
    }
)

LOOK_AGAIN_SECONDS = 10.0
COUNTED_SOON_SECONDS = 1.0


@dataclass(frozen=True)
class Accounts:
    """The billing accounts of tenants, as this room needs them."""

    register: Callable[[TenantAccount], Awaitable[None]]
    close: Callable[[UUID], Awaitable[None]]
    state: Callable[[str], AccountState | None]
    """What Postgres says of a Tenant's account, by its uid; None before its first answer."""
    open: Callable[[], Awaitable[Mapping[UUID, str]]]
    """The names of all tenants whose accounts are open."""


@dataclass(frozen=True)
class Capacity:
    """What is known of the room that the cluster has for tenants."""

    has_room_for: Callable[[str, str], bool | None]
    """Whether a Tenant, by its uid and plan, fits beside the older ones; None: not counted yet."""
    strict: bool
    """New tenants wait for room."""


@dataclass(frozen=True)
class Network:
    """What is known of the network that tenants share."""

    verdict: Callable[[], Verdict]
    """Whether it was seen to enforce policies, as the condition of a Tenant."""
    strict: bool
    """New tenants wait until it was."""


@dataclass(frozen=True)
class Site:
    """Where the operator itself runs, and what this installation offers to tenants."""

    namespace: str
    account: str
    bot_repository: str = ""
    backup_image: str = ""
    public_domain: str = ""
    clock: Callable[[], datetime] = utc_now


class Space(NamedTuple):
    """A namespace: whose it is, by the uid of the Tenant, and whether it is going."""

    tenant_uid: str
    deleting: bool


class TenantReconciler:
    """Brings tenants to what they declare."""

    def __init__(
        self,
        cluster: Cluster,
        accounts: Accounts,
        site: Site,
        capacity: Capacity,
        network: Network,
    ) -> None:
        self._capacity = capacity
        self._network = network
        self._cluster = cluster
        self._accounts = accounts
        self._site = site

    async def __call__(self, key: Key) -> Done:
        """Do one pass for one tenant."""
        body = self._cluster.objects.get(key)
        if body is None:
            return Done()
        if "deletionTimestamp" in body["metadata"]:
            return await self._dissolve(body)
        spec = TenantSpec.model_validate(body["spec"])
        plan = self._plan(spec.plan_ref.name)
        account = self._accounts.state(body["metadata"]["uid"])
        account = account or remembered(body.get("status") or {})
        annotations = body["metadata"].get("annotations", {})
        suspended = policy.suspensions(spec, annotations, account.holds, plan)
        network = self._network.verdict()
        progress = Progress(suspended=suspended, account=account, network=network)
        if plan is None:
            plans = [key[2] for key in self._cluster.objects.keys("Plan")]
            progress.blocked = policy.plan_not_found(spec.plan_ref.name, plans)
        else:
            bots = len(self._cluster.objects.keys("BotDeployment", lb.tenant_namespace(key[2])))
            progress.beyond_plan = policy.plan_findings(spec, plan, bots)
            progress.blocked = next(iter(policy.spec_findings(spec, plan)), None)
        if progress.blocked is None and plan is not None:
            if await self._is_history(body):
                return Done()
            self._check_cluster(body, progress)
            if progress.waits_for is None:
                context = self._context(body, spec, plan, suspended=bool(suspended))
                await self._set_up(body, context, progress)
        progress.changed |= await self._report(body, spec, plan, progress)
        # What is not ours is not watched, nor is what a quota counts.
        unwatched = progress.conflict or progress.quota_excess or progress.waits_for
        after = LOOK_AGAIN_SECONDS if unwatched else None
        if progress.waits_for is NOT_COUNTED:
            after = COUNTED_SOON_SECONDS
        return Done(changed=progress.changed, retry=progress.retry, after_seconds=after)

    async def _is_history(self, body: Manifest) -> bool:
        """Return whether a Tenant whose namespace is missing has gone with it.

        Its own deletion may not have been told: to set it up again would be for ever.
        """
        space = Ref("Namespace", "", lb.tenant_namespace(body["metadata"]["name"]))
        had_passes = lb.TENANT_FINALIZER in body["metadata"].get("finalizers", ())
        if not had_passes or self._cluster.children.get(space) is not None:
            return False
        return await self._cluster.is_gone(body)

    def _check_cluster(self, body: Manifest, progress: Progress) -> None:
        """Note what the cluster lacks; where it is strict, a new tenant waits for it."""
        meta, plan = body["metadata"], body["spec"]["planRef"]["name"]
        has_room = self._capacity.has_room_for(meta["uid"], plan)
        if has_room is False:
            progress.capacity = insufficient(plan)
        if self._cluster.children.get(Ref("Namespace", "", lb.tenant_namespace(meta["name"]))):
            return
        network = progress.network
        if self._network.strict and network.status is not ConditionStatus.TRUE:
            progress.waits_for = Finding(network.reason, network.message)
        elif self._capacity.strict:
            progress.waits_for = NOT_COUNTED if has_room is None else progress.capacity

    async def _set_up(self, body: Manifest, context: manifests.Context, progress: Progress) -> None:
        boundary = Boundary(KINDS, context.namespace)
        try:
            fresh = await self._claim(context)
        except Rejected as error:
            progress.blocked = Finding(error.reason, error.message)
            return
        # First: a Tenant that is deleted at this moment would leave its namespace behind.
        progress.changed |= await self._cluster.add_finalizer(body, lb.TENANT_FINALIZER)
        space = manifests.namespace(context)
        first = await self._cluster.applier.apply([space], boundary, fresh=fresh)
        progress.failed |= first.failed
        progress.changed |= bool(first.changed)
        if first.failed:
            return
        account = asyncio.create_task(self._register(body, context))
        try:
            await self._fill(context, space, progress, fresh=fresh)
        except Exception:
            # What the next pass tells Postgres must come after this.
            await account
            raise
        progress.billing = await account

    async def _fill(
        self,
        context: manifests.Context,
        space: Manifest,
        progress: Progress,
        *,
        fresh: bool,
    ) -> None:
        """Bring what is in the namespace to what it should be."""
        boundary = Boundary(KINDS, context.namespace)
        quota = await self._ratcheted(context, progress)
        closed, opened = manifests.isolation(context, quota), manifests.allowances(context)
        for group in (closed, opened):
            applied = await self._cluster.applier.apply(group, boundary, fresh=fresh)
            progress.failed |= applied.failed
            progress.changed |= bool(applied.changed)
        owner = Key("Tenant", "", context.name)
        pruned = await self._cluster.applier.prune(owner, [space, *closed, *opened], boundary)
        progress.changed |= bool(pruned)
        counted = self._cluster.children.get(ref_of(quota))
        progress.quota_computed = counted is not None and bool(counted.status.get("computed"))

    async def _ratcheted(self, context: manifests.Context, progress: Progress) -> Manifest:
        """Return the quota of the plan, or what is in use where that is more."""
        quota = manifests.resource_quota(context)
        known = self._cluster.children.get(ref_of(quota))
        if known is None or self._cluster.children.is_settled(sealed(quota)):
            return quota
        try:
            live = await self._cluster.client.get(ref_of(quota))
        except NotFoundError:
            return quota
        raised = manifests.ratcheted(quota, live.get("status", {}).get("used", {}))
        progress.quota_excess = manifests.quota_excess(quota, raised)
        return raised

    async def _claim(self, context: manifests.Context) -> bool:
        """Return whether the namespace is still to be created; refuse one that is not ours."""
        found = await self._found(Ref("Namespace", "", context.namespace))
        if found is None:
            return True
        owner, deleting = found
        if owner == context.uid and not deleting:
            return False
        whose = f"belongs to tenant uid {owner}" if owner else "was not made by botplane"
        state = " and is being deleted" if deleting else ""
        raise Rejected(
            "NamespaceConflict",
            f"Namespace {context.namespace} exists, {whose}{state}; nothing in it was touched. "
            "Delete it or choose another tenant name",
        )

    async def _found(self, space: Ref) -> Space | None:
        """Return whose a namespace is, from the API server if no watch has told of it."""
        known = self._cluster.children.get(space)
        if known is not None:
            return Space(known.tenant_uid, known.deleting)
        try:
            there = (await self._cluster.client.get(space, metadata_only=True))["metadata"]
        except NotFoundError:
            return None
        owner = there.get("labels", {}).get(lb.TENANT_UID, "")
        return Space(owner, "deletionTimestamp" in there)

    async def _register(
        self, body: Manifest, context: manifests.Context
    ) -> Rejected | Retryable | None:
        try:
            await self._accounts.register(account_of(body, context.spec))
        except (Rejected, Retryable) as error:
            return error
        return None

    async def _report(
        self, body: Manifest, spec: TenantSpec, plan: PlanSpec | None, progress: Progress
    ) -> bool:
        name = body["metadata"]["name"]
        fields: dict[str, Any] = {"namespace": None, "plan": {"name": spec.plan_ref.name}}
        if progress.blocked is None and plan is not None:
            revision = self._plan_status(spec.plan_ref.name).get("revision")
            fields["namespace"] = lb.tenant_namespace(name)
            fields["plan"] |= {"revision": revision} if revision is not None else {}
            fields["bots"] = self._bots(name, policy.entitlements(spec, plan).max_bots)
        fields["usage"] = progress.account.usage
        fields["suspendedFor"] = [s.reason for s in progress.suspended]
        written = await self._cluster.status.write(body, tenant_verdicts(progress), fields)
        finding = news(progress.network, body.get("status") or {})
        # Who waits for the network has been told so with Ready.
        if written and finding is not None and progress.waits_for is None:
            await self._cluster.status.warn(body, finding)
        return written

    def _bots(self, name: str, limit: int) -> dict[str, int]:
        namespace = lb.tenant_namespace(name)
        keys = self._cluster.objects.keys("BotDeployment", namespace)
        deployments = [self._cluster.children.get(Ref("Deployment", namespace, k[2])) for k in keys]
        running = sum(1 for d in deployments if d is not None and d.status.get("readyReplicas"))
        return {"running": running, "desired": len(keys), "limit": limit}

    async def _dissolve(self, body: Manifest) -> Done:
        """Stop the bots, settle the account, then let the Tenant go."""
        name, uid = body["metadata"]["name"], body["metadata"]["uid"]
        if lb.TENANT_FINALIZER not in body["metadata"].get("finalizers", ()):
            return Done()
        # Asked for anew: a hold that the watch has not told yet must not come too late.
        live = await self._cluster.live(body)
        if live is None:
            return Done()
        spec = TenantSpec.model_validate(live["spec"])
        held = policy.deletion_held(spec)
        if held is not None:
            changed = await self._cluster.status.write(
                live, *only_in_progress(live.get("status") or {}, held)
            )
            return Done(changed=changed, after_seconds=LOOK_AGAIN_SECONDS)
        space = Ref("Namespace", "", lb.tenant_namespace(name))
        found = await self._found(space)
        ours = found is not None and found.tenant_uid == uid
        if ours:
            # What the watches have not told of yet would stay behind.
            if self._cluster.children.get(space) is None:
                return Done(after_seconds=1)
            kind, left = await self._left(space.name)
            if left:
                blocked = policy.deletion_blocked(kind, left, self._site.clock())
                if blocked is not None:
                    shown = only_in_progress(body.get("status") or {}, blocked)
                    await self._cluster.status.write(body, *shown)
                return Done(changed=True, after_seconds=1)
            await self._accounts.close(UUID(uid))
            await self._retain_or_delete(space, spec.deletion.retention_days)
        await self._cluster.remove_finalizer(body, lb.TENANT_FINALIZER)
        return Done(changed=True)

    async def _retain_or_delete(self, space: Ref, days: int) -> None:
        """Delete the namespace, or note until when it is kept and take access away."""
        if days == 0:
            await self._cluster.applier.delete(space)
            return
        until = self._site.clock() + timedelta(days=days)
        path = f"/metadata/annotations/{lb.RETAIN_UNTIL.replace('/', '~1')}"
        note = {"op": "add", "path": path, "value": f"{until:%Y-%m-%dT%H:%M:%SZ}"}
        await self._cluster.client.json_patch(space, [note])
        for role in manifests.ROLES:
            name = f"tenant-{role.value.lower()}s"
            await self._cluster.applier.delete(Ref("RoleBinding", space.name, name))

    async def _left(self, namespace: str) -> tuple[str, list[Manifest]]:
        """Delete the bots; return the metadata of what of them is not settled and gone, if any."""
        for key in self._cluster.objects.keys("BotDeployment", namespace):
            bot = self._cluster.objects.get(key)
            if bot is not None and "deletionTimestamp" not in bot["metadata"]:
                await self._delete_bot(key, bot["metadata"]["uid"])
        managed = f"{lb.MANAGED_BY}={lb.MANAGED_BY_VALUE}"
        for kind, selector in (
            ("BotDeployment", ""),
            ("Pod", managed),
            ("PersistentVolumeClaim", managed),
        ):
            if left := await self._cluster.client.list(
                kind, namespace=namespace, selector=selector, metadata_only=True
            ):
                return kind, [body["metadata"] for body in left]
        return "", []

    async def _delete_bot(self, key: Key, uid: str) -> None:
        try:
            await self._cluster.client.delete(key.ref, uid)
        except NotFoundError:
            self._cluster.objects.forget(key, uid)

    def _context(
        self, body: Manifest, spec: TenantSpec, plan: PlanSpec, *, suspended: bool
    ) -> manifests.Context:
        return manifests.Context(
            name=body["metadata"]["name"],
            uid=body["metadata"]["uid"],
            spec=spec,
            rights=policy.entitlements(spec, plan),
            suspended=suspended,
            operator_namespace=self._site.namespace,
            operator_account=self._site.account,
            bot_repository=self._site.bot_repository,
            backup_image=self._site.backup_image,
            public_domain=self._site.public_domain,
        )

    def _plan(self, name: str) -> PlanSpec | None:
        body = self._cluster.objects.get(Key("Plan", "", name))
        return None if body is None else PlanSpec.model_validate(body["spec"])

    def _plan_status(self, name: str) -> dict[str, Any]:
        body = self._cluster.objects.get(Key("Plan", "", name))
        return {} if body is None else body.get("status") or {}


def account_of(body: Manifest, spec: TenantSpec) -> TenantAccount:
    """Return the billing account that a Tenant declares."""
    meta = body["metadata"]
    start = spec.billing.subscription_start_time or meta["creationTimestamp"]
    limit = spec.billing.spend_limit
    return TenantAccount(
        tenant_id=UUID(meta["uid"]),
        name=meta["name"],
        namespace=lb.tenant_namespace(meta["name"]),
        currency=spec.billing.currency,
        time_zone=spec.billing.time_zone,
        anchor_day=spec.billing.anchor_day,
        organization_name=spec.organization_name,
        admin_email=spec.admin_email,
        plan=spec.plan_ref.name,
        # RFC 3339 admits small letters, and so does the API server.
        subscription_start=datetime.fromisoformat(start.upper()),
        spend_limit=None if limit is None else Decimal(limit),
    )
