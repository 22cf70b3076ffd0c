"""From applied to existing: beside the same objects written straight, one after the other."""

from __future__ import annotations

import asyncio
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from botplane.api.bot_deployment import BotDeploymentSpec
from botplane.api.crd import API_VERSION
from botplane.api.plan import PlanSpec
from botplane.api.tenant import TenantSpec
from botplane.bots import manifests as bot_manifests
from botplane.bots.policy import Rights
from botplane.bots.templates import Templates
from botplane.kube.errors import NotFoundError
from botplane.kube.resources import Manifest, Ref, ref_of
from botplane.tenants import manifests as tenant_manifests
from botplane.tenants.policy import entitlements
from tests.bench.client import BenchClient
from tests.bench.rows import Row
from tests.support.controlplane.waiting import until
from tests.support.declared import FACILITIES
from tests.support.fixtures import PLANS
from tests.support.installation import MASTER_KEY, ROOT, Installation
from tests.support.world import a_bot, a_name, a_tenant

ROUNDS = 30
WARM_UP = 5
MEMBERS = [
    {"kind": "User", "name": "ana", "role": "Operator"},
    {"kind": "User", "name": "ben", "role": "Viewer"},
]
BOT = {
    "runtimeConfig": {"pair": "SOL/USDC"},
    "ports": [{"name": "http", "containerPort": 8080}],
    "healthCheck": {"port": "http"},
    "autoscaling": {"maxReplicas": 3, "targetCPUPercent": 70},
}


async def tenants(client: BenchClient) -> Row:
    """Tenant applied until all of its objects exist, p50."""
    floor, measured = [], []
    for number in range(ROUNDS + WARM_UP):
        direct = await _timed_writes(client, tenant_objects(a_name("floor")))
        name = a_name("bench")
        wanted = [ref_of(m) for m in tenant_objects(name)]
        took = await _timed_arrival(client, a_tenant(name, members=MEMBERS), wanted)
        if number >= WARM_UP:
            floor.append(direct)
            measured.append(took)
    size = len(tenant_objects("x"))
    return _row(f"Tenant applied -> its {size} objects exist, p50 of {ROUNDS}", floor, measured)


async def bots(client: BenchClient) -> Row:
    """BotDeployment applied until its Deployment exists, p50."""
    direct_home, home = a_name("floor"), a_name("bench")
    for name in (direct_home, home):
        await client.create(a_tenant(name, overrides={"maxBots": 20}))
        await client.arrival("RoleBinding", f"tenant-{name}", "botplane-operator")
    await asyncio.sleep(3)
    floor, measured = [], []
    for number in range(12):
        direct = await _timed_writes(client, _bot_objects(direct_home, f"bot-{number}"))
        body = a_bot(home, f"bot-{number}", **BOT)
        deployment = Ref("Deployment", f"tenant-{home}", f"bot-{number}")
        took = await _timed_arrival(client, body, [deployment])
        await client.delete(Ref("BotDeployment", *deployment[1:]), (await _uid(client, body)))
        if number >= 2:
            floor.append(direct)
            measured.append(took)
    size = len(_bot_objects("x", "x"))
    what = f"BotDeployment applied -> Deployment exists (of {size}), p50 of 10"
    return _row(what, floor, measured)


async def drift(client: BenchClient) -> Row:
    """A deleted NetworkPolicy until it is back, p50."""
    name = a_name("bench")
    namespace = f"tenant-{name}"
    await client.create(a_tenant(name))
    await client.arrival("RoleBinding", namespace, "botplane-operator")
    ref, took = Ref("NetworkPolicy", namespace, "default-deny"), []
    for _ in range(ROUNDS):
        there = await client.get(ref)
        started = asyncio.get_running_loop().time()
        await client.delete(ref, there["metadata"]["uid"])
        while not await replaced(client, ref, there["metadata"]["uid"]):
            pass
        took.append(asyncio.get_running_loop().time() - started)
    what = f"NetworkPolicy deleted by hand -> back, p50 of {ROUNDS}"
    return Row(what=what, floor=None, measured=statistics.median(took), bar=0.2)


async def handover(client: BenchClient, installed: Installation) -> Row:
    """The leader of two is stopped until the other one has written; one is left."""
    name = a_name("bench")
    installed.start_second_operator()
    waits = partial(installed.answers, "operator-second", "readyz")
    await asyncio.to_thread(until, waits, within=60, what="the second one waits")
    started = asyncio.get_running_loop().time()
    await asyncio.to_thread(installed.stop, "operator")
    await client.create(a_tenant(name))
    took = await client.arrival("RoleBinding", f"tenant-{name}", "botplane-operator") - started
    installed.start("operator")
    installed.stop("operator-second")
    installed.wait_for_leader()
    return Row(what="leader stopped -> the next one writes", floor=None, measured=took, bar=3.0)


async def _timed_writes(client: BenchClient, manifests: list[Manifest]) -> float:
    started = asyncio.get_running_loop().time()
    for manifest in manifests:
        await client.apply(manifest)
    return asyncio.get_running_loop().time() - started


async def _timed_arrival(client: BenchClient, body: Manifest, wanted: list[Ref]) -> float:
    started = asyncio.get_running_loop().time()
    await client.create(body)
    return max([await client.arrival(*ref) for ref in wanted]) - started


async def replaced(client: BenchClient, ref: Ref, uid: str) -> bool:
    """Return whether an object of another uid is there."""
    try:
        return bool((await client.get(ref, metadata_only=True))["metadata"]["uid"] != uid)
    except NotFoundError:
        return False


async def _uid(client: BenchClient, body: Manifest) -> str:
    return str((await client.get(ref_of(body), metadata_only=True))["metadata"]["uid"])


def _row(what: str, floor: list[float], measured: list[float]) -> Row:
    return Row(
        what=what, floor=statistics.median(floor), measured=statistics.median(measured), bar=2.0
    )


def _plan() -> PlanSpec:
    professional = next(p for p in PLANS if p["metadata"]["name"] == "professional")
    return PlanSpec.model_validate(professional["spec"])


def tenant_objects(name: str) -> list[Manifest]:
    """Return the objects of a tenant, without what makes them ours to reconcile."""
    spec = TenantSpec.model_validate(a_tenant(name, members=MEMBERS)["spec"])
    context = tenant_manifests.Context(
        name=name,
        uid="00000000-0000-0000-0000-000000000000",
        spec=spec,
        rights=entitlements(spec, _plan()),
        suspended=False,
        operator_namespace="botplane-system",
        operator_account="botplane-operator",
    )
    quota = tenant_manifests.resource_quota(context)
    groups = (tenant_manifests.isolation(context, quota), tenant_manifests.allowances(context))
    made = [tenant_manifests.namespace(context), *groups[0], *groups[1]]
    # Not ours to reconcile: the floor is written beside the operator, not through it.
    return [_unmanaged(manifest) for manifest in made]


def _bot_objects(tenant: str, name: str) -> list[Manifest]:
    plan = _plan()
    context = bot_manifests.Context(
        name=name,
        namespace=f"tenant-{tenant}",
        uid="00000000-0000-0000-0000-000000000000",
        api_version=API_VERSION,
        spec=BotDeploymentSpec.model_validate(a_bot(tenant, name, **BOT)["spec"]),
        tenant=tenant,
        tenant_uid="00000000-0000-0000-0000-000000000000",
        user_labels={},
        rights=Rights(
            plan_name="professional",
            plan=plan,
            max_bots=plan.max_bots,
            max_replicas=plan.max_replicas,
            image_registries=(),
            bot_repository="sniperforge/bot",
        ),
        suspended=False,
        gateway_url="http://gateway",
        usage_url="http://web",
        master_key=MASTER_KEY.encode(),
        facilities=FACILITIES,
    )
    return [_unmanaged(m) for m in bot_manifests.desired(context, _templates())]


def _templates(folder: Path = ROOT / "templates" / "k8s") -> Templates:
    return Templates(folder)


def _unmanaged(manifest: Manifest) -> Manifest:
    meta: dict[str, Any] = {k: v for k, v in manifest["metadata"].items() if k != "ownerReferences"}
    meta["labels"] = {k: v for k, v in meta["labels"].items() if "botplane.io" not in k}
    meta["labels"].pop("app.kubernetes.io/managed-by", None)
    return {**manifest, "metadata": meta}
