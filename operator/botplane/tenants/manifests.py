"""The objects of a tenant. Pure: names and values in, manifests out.

None of them carries an owner reference: garbage collection must never take isolation away from
workloads that still run, nor a namespace with its volumes when a CRD is deleted and made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address
from typing import Any

from botplane.api import backup
from botplane.api import labels as lb
from botplane.api.conditions import Finding
from botplane.api.tenant import MemberKind, MemberRole, TenantSpec
from botplane.api.types import Quantity
from botplane.kube.resources import Manifest
from botplane.tenants.policy import Entitlements

POD_SECURITY = "pod-security.kubernetes.io"
POD_SECURITY_VERSION = "v1.34"
PRIVATE_RANGES = (
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "198.18.0.0/15",
    "240.0.0.0/4",
)
DEVICES = ("nvidia.com/gpu", "amd.com/gpu")
"""What nodes may have beside what is sold; admission refuses the rest of that sort."""
NAT64 = int(IPv6Address("64:ff9b::"))
"""Where IPv4 is reached from networks of IPv6 alone (RFC 6052)."""
PRIVATE_RANGES_V6 = (
    "fc00::/7",
    "fe80::/10",
    *(
        f"{IPv6Address(NAT64 + int(block.network_address))}/{96 + block.prefixlen}"
        for block in map(IPv4Network, PRIVATE_RANGES)
    ),
)
ROLES = {
    MemberRole.VIEWER: "botplane:tenant-viewer",
    MemberRole.OPERATOR: "botplane:tenant-operator",
}


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that the builders need to know of one tenant."""

    name: str
    uid: str
    spec: TenantSpec
    rights: Entitlements
    suspended: bool
    operator_namespace: str
    operator_account: str
    bot_repository: str = ""
    """The operator's own bot images, which every tenant may run."""
    backup_image: str = ""
    """Image of backup jobs, which the operator makes but no bot may name."""
    public_domain: str = ""
    """Domain below which the tenant's hosts lie; empty: it has none."""

    @property
    def namespace(self) -> str:
        """The tenant's namespace."""
        return lb.tenant_namespace(self.name)


def namespace(context: Context) -> Manifest:
    """Return the namespace, with Pod Security in the very call that creates it."""
    security = {
        f"{POD_SECURITY}/{mode}{suffix}": value
        for mode in ("enforce", "audit", "warn")
        for suffix, value in (("", "restricted"), ("-version", POD_SECURITY_VERSION))
    }
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": context.namespace, "labels": child_labels(context) | security},
    }


def isolation(context: Context, quota: Manifest) -> list[Manifest]:
    """Return what must stand before anything may run: parameters, default-deny, quota, limits."""
    return [
        policy_parameters(context),
        network_policy(context, "default-deny", {"policyTypes": ["Ingress", "Egress"]}),
        quota,
        limit_range(context),
        default_account(context),
    ]


def allowances(context: Context) -> list[Manifest]:
    """Return what opens the closed namespace again: traffic that is allowed, access of people."""
    gateway = _peer(context.operator_namespace, {lb.NAME: "botplane-gateway"})
    web = _peer(context.operator_namespace, {lb.NAME: "botplane-web"})
    bots = {"podSelector": {"matchLabels": {lb.NAME: "bot"}}}
    dns = _peer("kube-system", {"k8s-app": "kube-dns"})
    ports = [{"protocol": p, "port": 53} for p in ("UDP", "TCP")]
    internet = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(PRIVATE_RANGES)}},
        {"ipBlock": {"cidr": "::/0", "except": list(PRIVATE_RANGES_V6)}},
    ]
    https = [{"protocol": "TCP", "port": 443}]
    return [
        network_policy(context, "allow-dns", _egress([dns], ports)),
        network_policy(context, "allow-gateway", _services(gateway, web)),
        network_policy(context, "allow-internet", _egress(internet, https)),
        network_policy(context, "allow-bots", _egress([bots], None)),
        *access(context),
    ]


def access(context: Context) -> list[Manifest]:
    """Return the role bindings of the tenant's members and of the operator itself."""
    operator = {
        "kind": "ServiceAccount",
        "name": context.operator_account,
        "namespace": context.operator_namespace,
    }
    bindings = [
        _role_binding(context, "botplane-operator", "botplane:tenant-namespace", [operator])
    ]
    for role, cluster_role in ROLES.items():
        subjects = [
            _subject(context, m.kind, m.name) for m in context.spec.members if m.role is role
        ]
        if subjects:
            bindings.append(
                _role_binding(context, f"tenant-{role.value.lower()}s", cluster_role, subjects)
            )
    return bindings


def policy_parameters(context: Context) -> Manifest:
    """Return the ConfigMap that admission policies take this tenant's limits from."""
    plan, domain = context.rights.plan, context.public_domain
    data = {
        "tenant": context.name,
        "state": "Suspended" if context.suspended else "Active",
        "maxBots": str(context.rights.max_bots),
        "maxReplicas": str(context.rights.max_replicas),
        "imageRegistries": ",".join(context.rights.image_registries),
        "imageDigests": plan.image_digests,
        "botRepository": context.bot_repository,
        "systemImages": context.backup_image,
        "storageClasses": ",".join(plan.storage_classes),
        "maxCPU": plan.bot.max_cpu.canonical,
        "maxMemory": plan.bot.max_memory.canonical,
        "maxStorage": plan.bot.max_storage.canonical,
        "priorityClass": plan.priority_class_name or "",
        "domain": f"{context.name}.{domain}" if domain else "",
    }
    return _namespaced(context, "v1", "ConfigMap", "tenant-policy") | {"data": data}


def resource_quota(context: Context) -> Manifest:
    """Return the quota: everything that can be used up is counted, what is not sold is zero.

    Every bot may have a backup: a second volume, and a job beside its replicas. Limits have room
    for it; what it requests is part of the bot's share of the plan. A kind that the cluster does
    not serve, such as volume snapshots, would never be counted: admission refuses those.
    """
    plan, rights = context.rights.plan, context.rights
    replicas = rights.max_bots * rights.max_replicas
    pods_at_once = max(replicas + rights.max_bots, 1)
    cpu, memory = Quantity(plan.quota.cpu.times(2)), Quantity(plan.quota.memory.times(2))
    hard: dict[str, str | int] = {
        "requests.cpu": plan.quota.cpu.canonical,
        "requests.memory": plan.quota.memory.canonical,
        "limits.cpu": cpu.plus(backup.CPU_LIMIT.value * rights.max_bots),
        "limits.memory": memory.plus(backup.MEMORY_LIMIT.value * rights.max_bots),
        "requests.storage": plan.quota.storage.canonical,
        "requests.ephemeral-storage": f"{pods_at_once}Gi",
        "limits.ephemeral-storage": f"{pods_at_once}Gi",
        "persistentvolumeclaims": 2 * rights.max_bots,
        "pods": 0 if context.suspended else replicas * 2,
        # `pods` forgets those that ended; what failed or waits for metering is bounded, too.
        "count/pods": 10 * pods_at_once,
        "services": rights.max_bots,
        "services.nodeports": 0,
        "services.loadbalancers": 0,
        "count/secrets": 50 + 2 * rights.max_bots,
        "count/configmaps": 50 + 2 * rights.max_bots,
        "count/deployments.apps": rights.max_bots,
        "count/replicasets.apps": 12 * max(rights.max_bots, 1),
        "count/statefulsets.apps": 0,
        "count/jobs.batch": 4 * rights.max_bots,
        "count/cronjobs.batch": rights.max_bots,
        "count/ingresses.networking.k8s.io": rights.max_bots,
        "count/horizontalpodautoscalers.autoscaling": rights.max_bots,
        f"count/botdeployments.{lb.GROUP}": rights.max_bots,
        **{f"requests.{device}": 0 for device in DEVICES},
        **{
            f"{storage_class}.storageclass.storage.k8s.io/requests.storage": (
                plan.quota.storage.canonical
            )
            for storage_class in plan.storage_classes
        },
    }
    text = {key: str(value) for key, value in hard.items()}
    return _namespaced(context, "v1", "ResourceQuota", "plan") | {"spec": {"hard": text}}


def ratcheted(quota: Manifest, used: Mapping[str, str]) -> Manifest:
    """Return the quota, nowhere below what is in use: what runs must be able to be replaced.

    A quota of no pods stands as it is: suspended means that nothing may come back.

    Args:
        quota: The quota as the plan says.
        used: What the API server counts now, by the same keys.
    """
    hard = dict(quota["spec"]["hard"])
    for key, value in used.items():
        if key in hard and hard[key] != "0" and Quantity(value).value > Quantity(hard[key]).value:
            hard[key] = value
    return quota | {"spec": {"hard": hard}}


def quota_excess(quota: Manifest, raised: Manifest) -> Finding | None:
    """Return what to tell when the quota could not fall to the plan."""
    before, after = quota["spec"]["hard"], raised["spec"]["hard"]
    beyond = [f"{key} {after[key]} of {before[key]}" for key in before if after[key] != before[key]]
    if not beyond:
        return None
    return Finding(
        "QuotaOverPlan",
        f"In use beyond the plan: {', '.join(sorted(beyond))}. The quota falls as use falls; "
        "make bots smaller or fewer, or change the plan",
    )


def limit_range(context: Context) -> Manifest:
    """Return the defaults and bounds of containers and volumes."""
    bot = context.rights.plan.bot
    limits: list[dict[str, Any]] = [
        {
            "type": "Container",
            "default": {
                "cpu": bot.max_cpu.canonical,
                "memory": bot.max_memory.canonical,
                "ephemeral-storage": "1Gi",
            },
            "defaultRequest": {
                "cpu": bot.usual_cpu.canonical,
                "memory": bot.usual_memory.canonical,
                "ephemeral-storage": "64Mi",
            },
            "max": {"cpu": bot.max_cpu.canonical, "memory": bot.max_memory.canonical},
            # What asks for nothing would not count.
            "min": {"cpu": "1m", "memory": "1Mi"},
        }
    ]
    if bot.max_storage.value:
        largest = bot.max_storage.times(backup.SIZE_FACTOR)
        limits.append({"type": "PersistentVolumeClaim", "max": {"storage": largest}})
    return _namespaced(context, "v1", "LimitRange", "plan") | {"spec": {"limits": limits}}


def default_account(context: Context) -> Manifest:
    """Return the namespace's default account, without a token: bots have their own."""
    account = _namespaced(context, "v1", "ServiceAccount", "default")
    return account | {"automountServiceAccountToken": False}


def network_policy(context: Context, name: str, rules: dict[str, Any]) -> Manifest:
    """Return a NetworkPolicy for all pods of the namespace."""
    policy = _namespaced(context, "networking.k8s.io/v1", "NetworkPolicy", name)
    return policy | {"spec": {"podSelector": {}, **rules}}


def child_labels(context: Context) -> dict[str, str]:
    """Return the labels of every object of this tenant."""
    propagated = {
        f"user.{lb.GROUP}/{key}": value
        for key, value in context.spec.configuration.propagate_labels.items()
    }
    return propagated | {
        lb.MANAGED_BY: lb.MANAGED_BY_VALUE,
        lb.PART_OF: "botplane",
        lb.TENANT: context.name,
        lb.TENANT_UID: context.uid,
    }


def _namespaced(context: Context, api_version: str, kind: str, name: str) -> Manifest:
    meta = {"name": name, "namespace": context.namespace, "labels": child_labels(context)}
    return {"apiVersion": api_version, "kind": kind, "metadata": meta}


def _peer(namespace: str, pod_labels: dict[str, str]) -> dict[str, Any]:
    return {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": pod_labels},
    }


def _egress(to: list[dict[str, Any]], ports: list[dict[str, Any]] | None) -> dict[str, Any]:
    rule: dict[str, Any] = {"to": to} if ports is None else {"to": to, "ports": ports}
    return {"policyTypes": ["Egress"], "egress": [rule]}


def _services(gateway: dict[str, Any], web: dict[str, Any]) -> dict[str, Any]:
    """Return the rules for what bots call of botplane: RPC, and the reporting of usage."""
    rpc, usage = ({"protocol": "TCP", "port": port} for port in (8545, 8090))
    rules = [{"to": [gateway], "ports": [rpc]}, {"to": [web], "ports": [usage]}]
    return {"policyTypes": ["Egress"], "egress": rules}


def _subject(context: Context, kind: MemberKind, name: str) -> dict[str, str]:
    if kind is MemberKind.SERVICE_ACCOUNT:
        return {"kind": kind.value, "name": name, "namespace": context.namespace}
    return {"kind": kind.value, "name": name, "apiGroup": "rbac.authorization.k8s.io"}


def _role_binding(
    context: Context, name: str, role: str, subjects: Iterable[dict[str, str]]
) -> Manifest:
    binding = _namespaced(context, "rbac.authorization.k8s.io/v1", "RoleBinding", name)
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    return binding | {"roleRef": reference, "subjects": list(subjects)}
