"""Addresses of Kubernetes objects: which path a kind lives at."""

from __future__ import annotations

from typing import Any, NamedTuple

Manifest = dict[str, Any]
"""A Kubernetes object as JSON."""


class Resource(NamedTuple):
    """A kind as the API server serves it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def root(self) -> str:
        """Path that all objects of this API version live under."""
        return (
            f"/api/{self.api_version}" if self.api_version == "v1" else f"/apis/{self.api_version}"
        )

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of the collection when no name is given."""
        parts = [self.root]
        if namespace and self.namespaced:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


class Ref(NamedTuple):
    """The identity of one object by name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.namespace}/{self.name}"
            if self.namespace
            else f"{self.kind} {self.name}"
        )


def _resource(api_version: str, kind: str, plural: str, *, namespaced: bool = True) -> Resource:
    return Resource(api_version, kind, plural, namespaced)


RESOURCES: dict[str, Resource] = {
    r.kind: r
    for r in (
        _resource("botplane.io/v1alpha1", "Tenant", "tenants", namespaced=False),
        _resource("botplane.io/v1alpha1", "Plan", "plans", namespaced=False),
        _resource("botplane.io/v1alpha1", "BotDeployment", "botdeployments"),
        _resource("v1", "Namespace", "namespaces", namespaced=False),
        _resource("v1", "ResourceQuota", "resourcequotas"),
        _resource("v1", "LimitRange", "limitranges"),
        _resource("v1", "ConfigMap", "configmaps"),
        _resource("v1", "Secret", "secrets"),
        _resource("v1", "Service", "services"),
        _resource("v1", "ServiceAccount", "serviceaccounts"),
        _resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
        _resource("v1", "Pod", "pods"),
        _resource("v1", "Node", "nodes", namespaced=False),
        _resource("v1", "Event", "events"),
        _resource("apps/v1", "Deployment", "deployments"),
        _resource("batch/v1", "CronJob", "cronjobs"),
        _resource("monitoring.coreos.com/v1", "PodMonitor", "podmonitors"),
        _resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        _resource("networking.k8s.io/v1", "Ingress", "ingresses"),
        _resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
        _resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
        _resource("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
        _resource("coordination.k8s.io/v1", "Lease", "leases"),
    )
}
"""Every kind that the operator reads or writes. A name is unique: we use one version of each."""


def ref_of(manifest: Manifest) -> Ref:
    """Return the identity of a manifest."""
    meta = manifest["metadata"]
    return Ref(manifest["kind"], meta.get("namespace", ""), meta["name"])
