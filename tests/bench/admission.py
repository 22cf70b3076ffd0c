"""What admission policies cost: writes into a tenant's namespace beside one without them."""

from __future__ import annotations

import asyncio
import ssl
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from botplane.kube.client import KubeClient
from botplane.kube.errors import ConflictError
from botplane.kube.resources import Manifest, Ref
from tests.bench.client import BenchClient
from tests.bench.rows import Row
from tests.support.controlplane.cluster import Cluster
from tests.support.world import a_name, a_tenant

CHANGES = 6
ROUNDS = 40
BAR = 1.3
MEMBER = "ana@bench.example"
COPIED = (("ResourceQuota", "plan"), ("LimitRange", "plan"))
"""A tenant's namespace has these for itself; their cost is not that of the policies."""


async def admission(client: BenchClient, cluster: Cluster, connections: int) -> Row:
    """Secrets and ConfigMaps written by a member over some connections; p50 of one write.

    Both namespaces have the same quota, limits, Pod Security and role; one is no tenant's, so
    that no policy looks at it. Short rounds alternate: a busy machine is busy for both.
    """
    tenant, plain = a_name("bench"), a_name("floor")
    members = [{"kind": "User", "name": MEMBER, "role": "Operator"}]
    await client.create(a_tenant(tenant, members=members))
    await client.arrival("RoleBinding", f"tenant-{tenant}", "tenant-operators")
    await _twin(client, f"tenant-{tenant}", plain)
    await asyncio.sleep(2)
    floor, measured = [], []
    async with _as_member(cluster, connections) as member:
        for _ in range(ROUNDS):
            floor.append(await _round(member, plain, connections))
            measured.append(await _round(member, f"tenant-{tenant}", connections))
    over = f"{connections} connection{'s' if connections > 1 else ''}"
    return Row(
        what=f"Write of a tenant's member, policies on, {over}, p50 of {ROUNDS}",
        floor=statistics.median(floor),
        measured=statistics.median(measured),
        bar=BAR,
    )


async def _twin(client: BenchClient, namespace: str, plain: str) -> None:
    """Make a namespace that is like a tenant's for everybody but the policies."""
    space = await client.get(Ref("Namespace", "", namespace))
    labels = {k: v for k, v in space["metadata"]["labels"].items() if "pod-security" in k}
    await client.create(_object("v1", "Namespace", {"name": plain, "labels": labels}))
    for kind, name in COPIED:
        there = await client.get(Ref(kind, namespace, name))
        meta = {"name": name, "namespace": plain}
        await client.create(_object("v1", kind, meta) | {"spec": there["spec"]})
    group = "rbac.authorization.k8s.io"
    reference = {"apiGroup": group, "kind": "ClusterRole", "name": "botplane:tenant-operator"}
    subjects = [{"kind": "User", "name": MEMBER, "apiGroup": group}]
    binding = _object(f"{group}/v1", "RoleBinding", {"name": "members", "namespace": plain})
    await client.create(binding | {"roleRef": reference, "subjects": subjects})


async def _round(client: KubeClient, namespace: str, connections: int) -> float:
    """Return the seconds of one write when each connection makes, changes, deletes one object."""

    async def one(number: int) -> None:
        manifest = _object_of(namespace, number)
        meta = (await _created(client, manifest))["metadata"]
        ref = Ref(manifest["kind"], namespace, meta["name"])
        for change in range(CHANGES):
            value = {"op": "add", "path": "/metadata/labels", "value": {"n": str(change)}}
            await client.json_patch(ref, [value])
        await client.delete(ref, meta["uid"])

    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(one(number) for number in range(connections)))
    took = asyncio.get_running_loop().time() - started
    return took / (connections * (CHANGES + 2))


async def _created(client: KubeClient, manifest: Manifest) -> Manifest:
    """Create an object; a quota that was counted at the same time is asked again."""
    while True:
        try:
            return await client.create(manifest)
        except ConflictError:
            continue


def _object_of(namespace: str, number: int) -> Manifest:
    kind = "Secret" if number % 2 else "ConfigMap"
    meta = {"name": a_name(f"write-{number}"), "namespace": namespace}
    return _object("v1", kind, meta) | {"data": {"key": "dmFsdWU="}}


@asynccontextmanager
async def _as_member(cluster: Cluster, connections: int) -> AsyncIterator[KubeClient]:
    context = ssl.create_default_context(cafile=str(cluster.ca))
    connector = aiohttp.TCPConnector(limit=connections, ssl=context)
    headers = {
        "Authorization": f"Bearer {cluster.tokens['admin']}",
        "Impersonate-User": MEMBER,
    }
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield KubeClient(cluster.server, session)


def _object(api_version: str, kind: str, meta: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": meta}
