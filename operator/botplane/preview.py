"""What a tenant would break under another plan, read from the cluster and judged as ever."""

from __future__ import annotations

from botplane.api import labels as lb
from botplane.api.conditions import Finding
from botplane.api.plan import PlanSpec
from botplane.api.tenant import TenantSpec
from botplane.bots.policy import Rights
from botplane.bots.preview import effects
from botplane.errors import Rejected
from botplane.kube.client import KubeClient
from botplane.kube.errors import NotFoundError
from botplane.kube.resources import Manifest, Ref
from botplane.runtime.connection import connect
from botplane.settings import Settings
from botplane.tenants import policy as tenant_policy


async def preview(tenant: str, plan: str, settings: Settings) -> list[tuple[str, Finding]]:
    """Return what would be wrong, by tenant or bot; nothing is written.

    Raises:
        Rejected: The tenant or the plan does not exist.
        Retryable: The API server does not answer.
    """
    connection = await connect()
    try:
        client = KubeClient(connection.server, connection.session)
        spec = TenantSpec.model_validate((await _read(client, "Tenant", tenant))["spec"])
        offer = PlanSpec.model_validate((await _read(client, "Plan", plan))["spec"])
        bots = await client.list("BotDeployment", namespace=lb.tenant_namespace(tenant))
    finally:
        await connection.session.close()
    wanted = spec.model_copy(update={"plan_ref": spec.plan_ref.model_copy(update={"name": plan})})
    granted = tenant_policy.entitlements(wanted, offer)
    rights = Rights(
        plan_name=plan,
        plan=offer,
        max_bots=granted.max_bots,
        max_replicas=granted.max_replicas,
        image_registries=granted.image_registries,
        bot_repository=settings.bot_repository,
    )
    of_tenant = [
        *tenant_policy.spec_findings(wanted, offer),
        *tenant_policy.plan_findings(wanted, offer, len(bots)),
    ]
    of_bots = effects(bots, rights, settings.public_domain)
    return [(f"tenant {tenant}", f) for f in of_tenant] + [
        (f"bot {e.bot}", e.finding) for e in of_bots
    ]


async def _read(client: KubeClient, kind: str, name: str) -> Manifest:
    try:
        return await client.get(Ref(kind, "", name))
    except NotFoundError as error:
        raise Rejected(f"{kind}NotFound", f"{kind} {name} does not exist") from error
