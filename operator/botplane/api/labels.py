"""Every label, annotation and finalizer name that botplane writes or reads."""

from typing import Final

GROUP: Final = "botplane.io"
FIELD_MANAGER: Final = "botplane"

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY_VALUE: Final = "botplane"
PART_OF: Final = "app.kubernetes.io/part-of"
NAME: Final = "app.kubernetes.io/name"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"

TENANT: Final = f"{GROUP}/tenant"
"""Name of the Tenant; on its namespace and on everything in it that botplane wrote."""

TENANT_UID: Final = f"{GROUP}/tenant-uid"
"""Uid of the Tenant object: the identity that bills carry. A re-created tenant is a new one."""

BOT: Final = f"{GROUP}/bot"
"""Name of the BotDeployment; on its children and on its pods."""

BOT_UID: Final = f"{GROUP}/bot-uid"
"""Uid of the BotDeployment; on its pods and claims, read by metering."""

APPLIED_HASH: Final = f"{GROUP}/applied-hash"
"""Annotation on every child: hash of the manifest that was applied last."""

CONFIG_HASH: Final = f"{GROUP}/config-hash"
"""Annotation on the pod template: a changed configuration rolls the pods."""

METERING_FINALIZER: Final = f"{GROUP}/metering"
"""In the pod template and on claims: they stay until their last second is in Postgres."""

PLAN_FINALIZER: Final = f"{GROUP}/plan"
"""On a Plan: it stays while a tenant uses it."""

TENANT_FINALIZER: Final = f"{GROUP}/tenant"
"""On Tenant: bots stop, usage settles and the account closes before the object goes."""

SUSPEND: Final = f"{GROUP}/suspend"
"""Annotation on a Tenant: an administrator's reason to stop its bots, beside `spec.suspend`."""

RETAIN_UNTIL: Final = f"{GROUP}/retain-until"
"""Annotation on the namespace of a deleted Tenant: when it may be purged, RFC 3339."""

LEGAL_HOLD: Final = f"{GROUP}/legal-hold"
"""Annotation on the namespace of a deleted Tenant: why it is not purged, whatever its retention."""

BOT_CONTAINER: Final = "bot"
"""Name of the container whose running time is the meter `bot_seconds`."""

TENANT_NAMESPACE_PREFIX: Final = "tenant-"


def tenant_namespace(tenant: str) -> str:
    """Return the namespace of a tenant: predictable, so that Git can name it."""
    return f"{TENANT_NAMESPACE_PREFIX}{tenant}"
