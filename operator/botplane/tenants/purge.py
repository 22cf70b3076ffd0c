"""What is left of tenants that are gone: namespaces after retention, open accounts. The shell."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import structlog

from botplane.api import labels as lb
from botplane.kube.errors import ConflictError, NotFoundError
from botplane.kube.observe import Key
from botplane.kube.resources import Manifest, Ref
from botplane.runtime.cluster import Cluster
from botplane.tenants.reconcile import Accounts

log = structlog.get_logger()

FEW = 3
"""Accounts that may be all there are, and all abandoned."""


def is_due(namespace: Manifest, tenants: frozenset[str], now: datetime) -> bool:
    """Return whether a namespace is kept for a tenant that is gone, and no longer than now.

    A legal hold keeps it beyond that, whatever it says.

    Args:
        namespace: As listed.
        tenants: Uids of all tenants that exist.
        now: Time of the decision.
    """
    meta = namespace["metadata"]
    annotations = meta.get("annotations", {})
    until = annotations.get(lb.RETAIN_UNTIL, "")
    if lb.LEGAL_HOLD in annotations:
        return False
    if meta.get("labels", {}).get(lb.TENANT_UID) in tenants or "deletionTimestamp" in meta:
        return False
    try:
        return bool(until) and datetime.fromisoformat(until) <= now
    except (ValueError, TypeError):
        log.warning("Retention was not understood", namespace=meta["name"], until=until)
        return False


async def purge(cluster: Cluster, now: datetime) -> list[str]:
    """Delete the namespaces whose retention is over and return their names."""
    listed = await cluster.client.list(
        "Namespace", selector=f"{lb.MANAGED_BY}={lb.MANAGED_BY_VALUE}", metadata_only=True
    )
    tenants = frozenset(cluster.objects.uid(key) for key in cluster.objects.keys("Tenant"))
    purged = []
    for namespace in listed:
        if not is_due(namespace, tenants, now):
            continue
        meta = namespace["metadata"]
        name = meta["name"]
        try:
            # Unchanged since it was listed: somebody may put it on hold at this very moment.
            await cluster.client.delete(
                Ref("Namespace", "", name), meta["uid"], meta["resourceVersion"]
            )
        except (NotFoundError, ConflictError):
            continue
        log.info("Purged namespace", namespace=name)
        purged.append(name)
    return purged


async def close_abandoned(cluster: Cluster, accounts: Accounts) -> list[Key]:
    """Close the accounts of tenants of which neither Tenant nor namespace is left.

    Somebody took the finalizer off, or deleted a namespace that was left behind: no pass comes any
    more that would close the account, and it would be charged and hold its name for ever. Where
    most accounts are so, the database is rather that of another cluster, and none is closed.

    Returns:
        The keys of the tenants whose names are free now: another may wait for one.
    """
    there = frozenset(cluster.objects.uid(key) for key in cluster.objects.keys("Tenant"))
    accounts_open = await accounts.open()
    abandoned = [
        (uid, name)
        for uid, name in accounts_open.items()
        if str(uid) not in there and await _is_abandoned(cluster, uid, name)
    ]
    if len(abandoned) > max(FEW, len(accounts_open) // 2):
        log.error(
            "No account was closed: is this the database of another cluster?",
            open=len(accounts_open),
            without_tenant_here=len(abandoned),
        )
        return []
    for uid, name in abandoned:
        await accounts.close(uid)
        log.info("Closed account", tenant=name, uid=str(uid))
    return [Key("Tenant", "", name) for _, name in abandoned]


async def _is_abandoned(cluster: Cluster, uid: UUID, name: str) -> bool:
    tenant, space = Ref("Tenant", "", name), Ref("Namespace", "", lb.tenant_namespace(name))
    return not (await _is(cluster, tenant, str(uid)) or await _is(cluster, space, str(uid)))


async def _is(cluster: Cluster, ref: Ref, tenant_uid: str) -> bool:
    """Return whether an object exists and is this tenant, or its namespace."""
    try:
        meta = (await cluster.client.get(ref, metadata_only=True))["metadata"]
    except NotFoundError:
        return False
    return tenant_uid in {meta["uid"], meta.get("labels", {}).get(lb.TENANT_UID)}
