"""BotDeployment: observe, decide, apply, report. The shell; decisions are in policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from botplane.api import labels as lb
from botplane.api.bot_deployment import BotDeploymentSpec
from botplane.api.conditions import ConditionStatus, Finding, condition_in
from botplane.api.crd import API_VERSION
from botplane.api.types import LocalReference
from botplane.bots import manifests, policy
from botplane.bots.backup import backup_name
from botplane.bots.exposure import Facilities, endpoints, host_of, public_ports
from botplane.bots.status import PLAN_REASONS, Progress, bot_verdicts
from botplane.bots.templates import Templates
from botplane.kube.apply import Boundary
from botplane.kube.errors import NotFoundError
from botplane.kube.observe import Child, Key
from botplane.kube.resources import Manifest, Ref, ref_of
from botplane.runtime.cluster import Cluster
from botplane.runtime.controller import Done

KINDS = frozenset(
    {
        "ServiceAccount", "ConfigMap", "Secret", "PersistentVolumeClaim", "Deployment", "Service",
        "HorizontalPodAutoscaler", "NetworkPolicy", "Ingress", "PodDisruptionBudget", "CronJob",
        "PodMonitor",
    }
)  # fmt: skip
RUNNING_KINDS = frozenset({"Deployment", "HorizontalPodAutoscaler", "CronJob"})
MOUNTED_KINDS = frozenset({"ServiceAccount", "ConfigMap", "Secret", "PersistentVolumeClaim"})
"""What pods start with: written before what starts them."""
UNWATCHED_SECONDS = 3.0
"""How often to look at what is not watched: the tenant's Secrets, and what is in our way."""
SECRETS_SECONDS = 300.0
"""How often to look whether Secrets are still there of a bot that runs: its next pod needs them."""
MOST_WAIT_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class TenantView:
    """What a bot needs to know of its tenant."""

    name: str
    uid: str
    isolated: bool
    suspended: str
    """Why the tenant is suspended; empty while it is not."""
    user_labels: dict[str, str]
    rights: policy.Rights | None
    """None while the tenant's plan does not exist."""


@dataclass(frozen=True)
class Surroundings:
    """What this room takes from others: wired by the process."""

    tenant_of: Callable[[str], TenantView | None]
    """The tenant of a namespace."""
    usage: Callable[[str, dict[str, Any] | None], dict[str, Any] | None]
    """Rounded usage of a bot by its uid; what its status shows while nothing is known."""
    gateway_url: str
    usage_url: str
    master_key: bytes
    facilities: Facilities
    clock: Callable[[], datetime]


class BotReconciler:
    """Brings bots to what they declare."""

    def __init__(self, cluster: Cluster, templates: Templates, around: Surroundings) -> None:
        self._cluster = cluster
        self._templates = templates
        self._around = around

    async def __call__(self, key: Key) -> Done:
        """Do one pass for one bot."""
        body = self._cluster.objects.get(key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            # Children go with their owner, pods once their last second is in Postgres.
            return Done()
        spec = BotDeploymentSpec.model_validate(body["spec"])
        tenant = self._around.tenant_of(key[1])
        progress = self._judge(body, spec, tenant)
        missing = await self._missing_secrets(key[1], spec)
        progress.findings += missing
        if not progress.findings and progress.waiting is None and tenant is not None:
            wanted = manifests.desired(self._context(body, spec, tenant), self._templates)
            if self._has_lost(body, wanted) and await self._cluster.is_gone(body):
                return Done()
            await self._apply(key, wanted, progress)
        elif progress.suspended:
            await self._stop(key, progress)
        progress.workload = self._workload(body)
        progress.changed |= await self._report(body, spec, tenant, progress)
        after = SECRETS_SECONDS if any(_named_secrets(spec).values()) else None
        if missing or progress.is_blocked_unseen:
            after = UNWATCHED_SECONDS
        if progress.deadline is not None and not progress.suspended:
            left = (progress.deadline - self._around.clock()).total_seconds()
            after = min(after or MOST_WAIT_SECONDS, max(left, 1.0))
        return Done(changed=progress.changed, retry=progress.retry, after_seconds=after)

    def _judge(
        self, body: Manifest, spec: BotDeploymentSpec, tenant: TenantView | None
    ) -> Progress:
        namespace = body["metadata"]["namespace"]
        suspended = "spec.suspend is true" if spec.suspend else ""
        if tenant is None:
            text = f"Namespace {namespace} is not the namespace of a Tenant; create the bot in one"
            return Progress(findings=[Finding("TenantNotFound", text)], suspended=suspended)
        cause = "User" if suspended else "TenantSuspended"
        if tenant.suspended:
            text = f"tenant {tenant.name} is suspended: {tenant.suspended}"
            suspended = "; ".join(filter(None, (suspended, text)))
        if tenant.rights is None or not tenant.isolated:
            text = f"Tenant {tenant.name} is not set up yet; kubectl get tenant {tenant.name}"
            waiting = Finding("TenantNotReady", text)
            return Progress(waiting=waiting, suspended=suspended, suspended_by=cause)
        facts = policy.Facts(
            spec=spec,
            rights=tenant.rights,
            older=self._older(body, tenant.rights),
            public_domain=self._around.facilities.public_domain,
        )
        found = policy.findings(facts)
        deadline = self._deadline(body, found, tenant.rights)
        if deadline is not None and deadline <= self._around.clock() and not suspended:
            suspended = f"beyond the plan since before {deadline:%Y-%m-%d %H:%M} UTC"
            cause = next(f.reason for f in found if f.reason in PLAN_REASONS)
        return Progress(
            findings=found,
            suspended=suspended,
            suspended_by=cause,
            deadline=deadline,
            rests=spec.autoscaling is None and spec.replicas == 0,
        )

    def _deadline(
        self, body: Manifest, found: Sequence[Finding], rights: policy.Rights
    ) -> datetime | None:
        """Return until when a bot that runs beyond its plan may go on."""
        beyond = any(f.reason in PLAN_REASONS for f in found)
        if not beyond or self._deployment(body) is None:
            return None
        within = condition_in(body.get("status") or {}, "WithinPlan")
        if within is None or within["status"] != ConditionStatus.FALSE:
            since = self._around.clock()
        else:
            since = datetime.fromisoformat(within["lastTransitionTime"])
        return since + timedelta(days=rights.plan.downgrade_grace_days)

    def _older(self, body: Manifest, rights: policy.Rights) -> list[policy.Share]:
        """Return what bots declared before this one claim."""
        mine = self._age(body)
        shares = []
        for key in self._cluster.objects.keys("BotDeployment", body["metadata"]["namespace"]):
            other = self._cluster.objects.get(key)
            if other is None or "deletionTimestamp" in other["metadata"]:
                continue
            if self._age(other) < mine:
                spec = BotDeploymentSpec.model_validate(other["spec"])
                shares.append(policy.share(key[2], spec, rights.plan))
        return shares

    def _age(self, body: Manifest) -> tuple[str, bool, str]:
        """Return what bots are ordered by: of one second, those that run come first, then names.

        One that may run keeps its place while its Deployment is away: else it would come back
        neither for this bot nor for the next.
        """
        meta = body["metadata"]
        within = condition_in(body.get("status") or {}, "WithinPlan")
        may_run = within is not None and within["status"] == ConditionStatus.TRUE
        return (
            meta["creationTimestamp"],
            self._deployment(body) is None and not may_run,
            meta["name"],
        )

    async def _missing_secrets(self, namespace: str, spec: BotDeploymentSpec) -> list[Finding]:
        """Return the referenced Secrets that do not exist; their content is never fetched."""
        missing = []
        for field, reference in _named_secrets(spec).items():
            if reference is None:
                continue
            try:
                ref = Ref("Secret", namespace, reference.name)
                await self._cluster.client.get(ref, metadata_only=True)
            except NotFoundError:
                text = (
                    f"Secret {reference.name} of spec.{field} does not exist in namespace "
                    f"{namespace}; create it there"
                )
                missing.append(Finding("SecretNotFound", text))
        return missing

    def _has_lost(self, body: Manifest, wanted: Iterable[Manifest]) -> bool:
        """Return whether a child is missing of a bot that has had its passes already."""
        known = self._cluster.children.get
        return "status" in body and any(known(ref_of(manifest)) is None for manifest in wanted)

    async def _apply(self, key: Key, wanted: Sequence[Manifest], progress: Progress) -> None:
        boundary = Boundary(KINDS, key[1])
        for mounted in (True, False):
            part = [m for m in wanted if (m["kind"] in MOUNTED_KINDS) is mounted]
            if not mounted and not progress.suspended and progress.lacks_mounts(key[2]):
                part = [m for m in part if m["kind"] not in RUNNING_KINDS]
            applied = await self._cluster.applier.apply(part, boundary)
            progress.failed |= applied.failed
            progress.changed |= bool(applied.changed)
        progress.changed |= bool(await self._cluster.applier.prune(key, wanted, boundary))

    async def _stop(self, key: Key, progress: Progress) -> None:
        """Stop a suspended bot whose present spec cannot be applied: it must not run on."""
        running = [r for r in self._cluster.children.owned_by(key) if r.kind in RUNNING_KINDS]
        for ref in sorted(running):
            await self._cluster.applier.delete(ref)
        progress.changed |= bool(running)

    def _held_replicas(self, body: Manifest) -> int | None:
        child = self._deployment(body)
        return 0 if child is None else child.status.get("heldReplicas")

    def _workload(self, body: Manifest) -> dict[str, Any]:
        child = self._deployment(body)
        return {} if child is None else child.status

    def _deployment(self, body: Manifest) -> Child | None:
        meta = body["metadata"]
        return self._cluster.children.get(Ref("Deployment", meta["namespace"], meta["name"]))

    async def _report(
        self, body: Manifest, spec: BotDeploymentSpec, tenant: TenantView | None, progress: Progress
    ) -> bool:
        name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
        repository = tenant.rights.bot_repository if tenant and tenant.rights else ""
        owner = "" if tenant is None else tenant.name
        domain = self._around.facilities.public_domain
        shown = endpoints(spec, name, owner, domain)
        progress.public_hosts = tuple(
            host_of(port, name, owner, domain) for port in public_ports(spec)
        )
        progress.backup_schedule = "" if spec.backup is None else spec.backup.schedule
        cron = self._cluster.children.get(Ref("CronJob", namespace, backup_name(name)))
        fields = {
            "replicas": progress.workload.get("replicas", 0),
            "readyReplicas": progress.workload.get("readyReplicas", 0),
            "selector": f"{lb.INSTANCE}={name},{lb.NAME}=bot",
            "image": policy.image_of(spec, repository) if repository else None,
            "endpoints": shown,
            "lastBackupTime": None if cron is None else cron.status.get("lastSuccessfulTime"),
            "usage": self._around.usage(
                body["metadata"]["uid"], (body.get("status") or {}).get("usage")
            ),
        }
        return await self._cluster.status.write(body, bot_verdicts(progress), fields)

    def _context(
        self, body: Manifest, spec: BotDeploymentSpec, tenant: TenantView
    ) -> manifests.Context:
        assert tenant.rights is not None  # noqa: S101 - judged before
        return manifests.Context(
            name=body["metadata"]["name"],
            namespace=body["metadata"]["namespace"],
            uid=body["metadata"]["uid"],
            api_version=API_VERSION,
            spec=spec,
            tenant=tenant.name,
            tenant_uid=tenant.uid,
            user_labels=tenant.user_labels,
            rights=tenant.rights,
            suspended=bool(tenant.suspended) or spec.suspend,
            gateway_url=self._around.gateway_url,
            usage_url=self._around.usage_url,
            master_key=self._around.master_key,
            facilities=self._around.facilities,
            held_replicas=self._held_replicas(body),
        )


def _named_secrets(spec: BotDeploymentSpec) -> dict[str, LocalReference | None]:
    return {
        "apiKeysSecretRef": spec.api_keys_secret_ref,
        "walletKeysSecretRef": spec.wallet_keys_secret_ref,
        "imagePullSecretRef": spec.image_pull_secret_ref,
    }
