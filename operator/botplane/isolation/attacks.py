"""What an attack is: calls that must be refused for the right reason, beside one that works. Pure.

Every call is a dry run, so that the list may be run against a cluster with real tenants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Json = Mapping[str, Any]

OK = frozenset({200, 201})
CONNECTED = frozenset({404})
"""Admission let a connection pass to a pod that does not exist."""
FORBIDDEN = frozenset({403})
INVALID = frozenset({400, 422})


class Actor(StrEnum):
    """Who makes a call."""

    TENANT = "A"
    """A member of the tenant with the role Operator."""
    GRANTED = "A+"
    """The same, who was by mistake given every right in the namespace."""
    DEPUTY = "C"
    """The operator, misled by what a tenant declared."""
    CONTROLLER = "K"
    """Kubernetes' own controller that makes pods."""
    COLLECTOR = "G"
    """Kubernetes' own garbage collector, which may change everything."""
    NAMESPACES = "N"
    """Kubernetes' own controller of namespaces."""
    METERING = "M"
    ADMIN = "X"
    """Who runs the check; has the verb bypass."""


class Verdict(StrEnum):
    """What is known about an attack."""

    REFUSED = "refused"
    BREACH = "BREACH"
    SKIPPED = "skipped"
    NEEDS_NODE = "needs a real node"
    NOT_OFFERED = "not offered"
    ELSEWHERE = "tested elsewhere"
    DEVIATES = "deviates"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request to the API server."""

    actor: Actor
    method: str
    path: str
    body: Json | None = None

    @property
    def connects(self) -> bool:
        """Whether it opens a connection to a pod, which cannot be a dry run."""
        return self.method == "GET"


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Calls that must be refused, each with a reason that matches."""

    calls: tuple[Call, ...]
    reason: str
    statuses: frozenset[int] = FORBIDDEN


@dataclass(frozen=True, kw_only=True)
class Works:
    """The positive control: the same by the right principal, or the harmless form of it."""

    call: Call
    statuses: frozenset[int] = OK


@dataclass(frozen=True, kw_only=True)
class MayNot:
    """Access reviews of every verb of every resource: none but these may be allowed.

    Attributes:
        namespace: Empty for cluster-scoped resources.
        only: The resources to review; all when empty.
        allowed: What everybody may do, as `verb resource`.
        granted: The positive control: what the tenant must be able to do, as `verb resource`.
    """

    namespace: str
    only: tuple[str, ...] = ()
    allowed: frozenset[str] = frozenset()
    granted: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Holds:
    """A document of the API server that must satisfy a judge, who returns what is wrong."""

    call: Call
    judge: Callable[[Json], str]


Step = Refused | Works | MayNot | Holds


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One row of the list."""

    id: str
    actor: str
    title: str
    steps: tuple[Step, ...] = ()
    verdict: Verdict | None = None
    """Known without running anything."""
    reason: str = ""
    """Why it is not run."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one attack."""

    attack: Attack
    verdict: Verdict
    calls: int = 0
    details: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether nothing speaks against the isolation."""
        return self.verdict is not Verdict.BREACH


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The tenant that is attacked from, and what there is around it."""

    tenant: str
    namespace: str
    image: str
    """One that the tenant may run."""
    bot: str = ""
    pod: str = ""
    service: str = ""
    storage_class: str = ""
    """One that the tenant may use."""
    others: tuple[str, ...] = ("default", "kube-system")
    """Namespaces that are none of the tenant's business."""
    host_domain: str = ""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Texts about other tenants that no answer may contain."""

    def path(self, plural: str, name: str = "", api: str = "/api/v1") -> str:
        """Return the path of a collection or an object in the tenant's namespace."""
        return f"{api}/namespaces/{self.namespace}/{plural}/{name}".rstrip("/")

    def bots(self, name: str = "") -> str:
        """Return the path of bots, or of one."""
        return self.path("botdeployments", name, "/apis/botplane.io/v1alpha1")


def create(actor: Actor, path: str, body: Json) -> Call:
    """Return a call that creates an object."""
    return Call(actor=actor, method="POST", path=path, body=body)


def patch(actor: Actor, path: str, change: Json) -> Call:
    """Return a call that changes an object by a merge patch."""
    return Call(actor=actor, method="PATCH", path=path, body=change)


def delete(actor: Actor, path: str) -> Call:
    """Return a call that deletes an object or a collection."""
    return Call(actor=actor, method="DELETE", path=path)


def vap(policy: str, text: str = "") -> str:
    """Return the pattern of a denial by one of our admission policies."""
    return f"ValidatingAdmissionPolicy '{policy}' with binding '[a-z-]+' denied request: .*{text}"
