"""What a tenant may do at all, and the attacks that only ask whether something is allowed. Pure."""

from __future__ import annotations

from botplane.isolation.attacks import Attack, MayNot, Scene, Verdict

ANYBODY = frozenset(
    f"create {name}"
    for name in (
        "selfsubjectaccessreviews.authorization.k8s.io",
        "selfsubjectrulesreviews.authorization.k8s.io",
        "selfsubjectreviews.authentication.k8s.io",
    )
)
"""Every authenticated user may ask about himself."""

_SEE = ("get", "list", "watch")
_WRITE = ("create", "update", "patch", "delete")
MEMBER = frozenset(
    {f"{verb} botdeployments.botplane.io" for verb in (*_SEE, *_WRITE)}
    | {f"{verb} botdeployments.botplane.io/scale" for verb in ("get", "update", "patch")}
    | {f"{verb} configmaps" for verb in (*_SEE, *_WRITE)}
    | {f"{verb} secrets" for verb in _WRITE}
    | {
        f"{verb} {what}"
        for verb in _SEE
        for what in (
            "pods",
            "services",
            "events",
            "persistentvolumeclaims",
            "resourcequotas",
            "deployments.apps",
            "horizontalpodautoscalers.autoscaling",
        )
    }
    | {"get pods/log"}
)
"""All rights of the role Operator in its own namespace: a new one must be put here on purpose."""

ISOLATION_KINDS = (
    "resourcequotas",
    "limitranges",
    "serviceaccounts",
    "networkpolicies.networking.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
)


def access_attacks(scene: Scene) -> list[Attack]:
    """Return ISO-001 to ISO-004."""
    return [
        Attack(
            id="ISO-001",
            actor="A",
            title="every verb on every cluster-scoped resource",
            steps=(MayNot(namespace="", allowed=ANYBODY),),
        ),
        Attack(
            id="ISO-002",
            actor="A",
            title="every verb on every resource in namespaces of others and of the system",
            steps=tuple(MayNot(namespace=other) for other in scene.others),
        ),
        Attack(
            id="ISO-003",
            actor="A",
            title="more in the own namespace than the role Operator lists",
            steps=(
                MayNot(namespace=scene.namespace, allowed=MEMBER, granted=tuple(sorted(MEMBER))),
            ),
        ),
        Attack(
            id="ISO-004",
            actor="A",
            title="tenants and plans of others: list, or guess by name",
            steps=(
                MayNot(namespace="", only=("tenants.botplane.io", "plans.botplane.io")),
                MayNot(
                    namespace=scene.namespace,
                    only=("botdeployments.botplane.io",),
                    allowed=MEMBER,
                    granted=("list botdeployments.botplane.io",),
                ),
            ),
        ),
    ]


UNPROVED: tuple[tuple[str, str, str, Verdict, str], ...] = (
    (
        "ISO-022", "X", "quota, deny policy or role binding deleted by hand",
        Verdict.ELSEWHERE, "tests/cluster/test_drift.py: back in milliseconds",
    ),
    (
        "ISO-034", "A", "an image by tag instead of digest",
        Verdict.ELSEWHERE, "tests/isolation/test_boundaries.py: where the plan demands digests",
    ),
    (
        "ISO-043", "C", "a host of another by upper case, trailing dot or look-alike letters",
        Verdict.NOT_OFFERED, "hosts are generated; no field of a bot holds one",
    ),
    (
        "ISO-044", "A", "two tenants claim one custom domain",
        Verdict.NOT_OFFERED, "custom domains do not exist",
    ),
    (
        "ISO-053", "C", "a URL that the operator would call",
        Verdict.NOT_OFFERED, "no field of a tenant holds an address that botplane dials",
    ),
    (
        "ISO-055", "C", "a bot that crashes its reconcile pass",
        Verdict.ELSEWHERE, "tests/unit/runtime: one key fails alone, with backoff",
    ),
    (
        "ISO-064", "A", "the old volume of a deleted tenant",
        Verdict.NEEDS_NODE, "a storage driver deletes it; the class must have reclaimPolicy Delete",
    ),
    (
        "ISO-070", "P", "another tenant's pod, service or host",
        Verdict.NEEDS_NODE, "network policies are enforced by the node's network",
    ),
    (
        "ISO-071", "P", "metadata service, kubelet, etcd, API server",
        Verdict.NEEDS_NODE, "network policies are enforced by the node's network",
    ),
    (
        "ISO-072", "P", "ports of the operator, of metering, of Postgres",
        Verdict.NEEDS_NODE, "network policies are enforced by the node's network",
    ),
    (
        "ISO-073", "P", "/var/run/secrets/kubernetes.io",
        Verdict.NEEDS_NODE, "the API side, no token in the pod, is ISO-031",
    ),
    (
        "ISO-074", "P", "root file system, setuid, mount, raw socket, ptrace",
        Verdict.NEEDS_NODE, "the API side, the security context, is ISO-030 and ISO-036",
    ),
    (
        "ISO-076", "X", "a network that does not enforce policies",
        Verdict.NEEDS_NODE, "isolation-check --probe-image tries it with pods",
    ),
    (
        "ISO-077", "P", "traffic while a namespace is being deleted",
        Verdict.NEEDS_NODE, "bots stop before the namespace goes: tests/cluster/test_tenants.py",
    ),
    (
        "ISO-083", "X", "a namespace adopted from one side only",
        Verdict.NOT_OFFERED, "a namespace that exists is never taken: ISO-080",
    ),
    (
        "ISO-091", "X", "the operator killed at each step of suspension",
        Verdict.ELSEWHERE, "tests/faults",
    ),
    (
        "ISO-093", "X", "one of two reasons of suspension is cleared",
        Verdict.ELSEWHERE, "tests/cluster/test_lifecycle.py: resumes when the last is gone",
    ),
    (
        "ISO-094", "X", "a plan lowered below use, then a node drained",
        Verdict.ELSEWHERE, "tests/cluster/test_lifecycle.py: kills nothing, lets nothing grow",
    ),
    (
        "ISO-096", "X", "more sold than the cluster has",
        Verdict.ELSEWHERE, "tests/cluster/test_lifecycle.py: new tenants wait, or are told",
    ),
    (
        "ISO-102", "X", "uninstalling with live tenants",
        Verdict.NOT_OFFERED, "there is no chart yet; policies are files of their own and stay",
    ),
    (
        "ISO-103", "X", "a namespace held by a foreign finalizer",
        Verdict.ELSEWHERE, "tests/cluster/test_lifecycle.py: the Tenant names what holds it up",
    ),
    (
        "ISO-104", "X", "a purge or an erasure before its time, or under a legal hold",
        Verdict.ELSEWHERE, "tests/cluster/test_lifecycle.py, tests/postgres/test_records.py",
    ),
    (
        "ISO-105", "X", "Postgres down while tenants change",
        Verdict.ELSEWHERE, "tests/cluster/test_outages.py",
    ),
    (
        "ISO-113", "X", "a reconcile loop that stalls",
        Verdict.ELSEWHERE, "tests/unit/runtime: /livez fails",
    ),
    (
        "ISO-114", "A", "a thousand changes a minute by one tenant",
        Verdict.ELSEWHERE, "tests/unit/runtime: changes of one key become one pass",
    ),
    (
        "ISO-123", "C", "a write outside of the tenant's namespace",
        Verdict.ELSEWHERE, "tests/unit/kube: the allow-table of the choke point",
    ),
)  # fmt: skip


def unproved_attacks() -> list[Attack]:
    """Return the rows that are not run here, each with the reason."""
    return [
        Attack(id=id_, actor=actor, title=title, verdict=verdict, reason=reason)
        for id_, actor, title, verdict, reason in UNPROVED
    ]
