"""Calls of the API server as somebody else: impersonated, dry, and with the reason of a refusal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration

from botplane.errors import Rejected, Retryable
from botplane.isolation.attacks import Actor, Call, Json

CONCURRENT_CALLS: Final = 8
TIMEOUT_SECONDS: Final = 30
REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
DISCOVERY: Final = (
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
)
SYSTEM: Final = {
    Actor.DEPUTY: ("botplane-system", "botplane-operator"),
    Actor.METERING: ("botplane-system", "botplane-metering"),
    Actor.CONTROLLER: ("kube-system", "replicaset-controller"),
    Actor.COLLECTOR: ("kube-system", "generic-garbage-collector"),
    Actor.NAMESPACES: ("kube-system", "namespace-controller"),
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the API server said."""

    status: int
    message: str
    body: Json


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One resource that the API server serves, as `name.group/subresource`."""

    name: str
    group: str
    plural: str
    subresource: str
    namespaced: bool
    verbs: tuple[str, ...]


class Api:
    """An API server, and who calls it."""

    def __init__(
        self,
        settings: Configuration,
        users: Mapping[Actor, str],
        http: urllib3.PoolManager | None = None,
    ) -> None:
        self._settings = settings
        self._users = users
        self._http: urllib3.PoolManager = http or ApiClient(settings).rest_client.pool_manager

    def acting(self, users: Mapping[Actor, str]) -> Api:
        """Return the same server with names for the actors that are people."""
        return Api(self._settings, users, self._http)

    def user(self, actor: Actor) -> str:
        """Return the name of an actor."""
        return self._users[actor]

    def attempt(self, call: Call) -> Answer:
        """Make a call as its actor and return the answer; nothing is written.

        Raises:
            Retryable: The API server did not answer.
        """
        reads = call.connects
        joint = "&" if "?" in call.path else "?"
        path = call.path if reads else f"{call.path}{joint}dryRun=All"
        return self.send(call if reads else replace(call, path=path), self._as(call.actor))

    def send(self, call: Call, headers: Mapping[str, str] | None = None) -> Answer:
        """Make a call as it is.

        Raises:
            Retryable: The API server did not answer.
        """
        kind = "merge-patch+json" if call.method == "PATCH" else "json"
        sent = {"Accept": "application/json", "User-Agent": "botplane-isolation-check"}
        auth: Mapping[str, Any] = self._settings.auth_settings()
        sent |= {way["key"]: way["value"] for way in auth.values()}
        sent |= {"Content-Type": f"application/{kind}", **(headers or {})}
        try:
            reply = self._http.request(
                call.method,
                f"{self._settings.host}{call.path}",
                body=None if call.body is None else json.dumps(call.body).encode(),
                headers=sent,
                timeout=TIMEOUT_SECONDS,
                retries=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Retryable("ApiServerUnavailable", str(error)[:200]) from error
        return _answer(reply.status, reply.data)

    def read(self, path: str) -> Json | None:
        """Return a document, or None when it does not exist.

        Raises:
            Rejected: The API server refuses.
        """
        answer = self.send(Call(actor=Actor.ADMIN, method="GET", path=path))
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status != HTTPStatus.OK:
            raise Rejected("ReadRefused", f"GET {path}: {answer.message}")
        return answer.body

    def may(self, actor: Actor, verb: str, resource: Resource, namespace: str) -> bool:
        """Return whether an actor is allowed something, by an access review."""
        attributes = {
            "verb": verb,
            "group": resource.group,
            "resource": resource.plural,
            "subresource": resource.subresource,
            "namespace": namespace,
        }
        review = {
            "user": self._users[actor],
            "groups": ["system:authenticated"],
            "resourceAttributes": attributes,
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": review,
        }
        answer = self.send(Call(actor=Actor.ADMIN, method="POST", path=REVIEWS, body=body))
        if answer.status != HTTPStatus.CREATED:
            raise Rejected("ReviewRefused", answer.message)
        return bool(answer.body["status"].get("allowed"))

    def resources(self) -> list[Resource]:
        """Return everything that the API server serves, subresources too."""
        found: dict[str, Resource] = {}
        for root in ("/api", "/apis"):
            call = Call(actor=Actor.ADMIN, method="GET", path=root)
            for group in self.send(call, {"Accept": DISCOVERY}).body.get("items", ()):
                for resource in _resources(group):
                    found.setdefault(resource.name, resource)
        return list(found.values())

    def _as(self, actor: Actor) -> dict[str, str]:
        if actor is Actor.ADMIN:
            return {}
        if actor in SYSTEM:
            namespace, account = SYSTEM[actor]
            return {"Impersonate-User": f"system:serviceaccount:{namespace}:{account}"}
        return {"Impersonate-User": self._users[actor]}


def open_api(kubeconfig: str | None = None) -> Api:
    """Return access to a cluster.

    Args:
        kubeconfig: Path; None takes `KUBECONFIG`, the pod's own account, or the user's default.

    Raises:
        Rejected: There is no cluster.
    """
    settings = Configuration()
    from_pod: Callable[..., None] = config.load_incluster_config
    from_file: Callable[..., None] = config.load_kube_config
    named = kubeconfig is not None or "KUBECONFIG" in os.environ
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and not named:
            from_pod(client_configuration=settings)
        else:
            from_file(kubeconfig, client_configuration=settings)
    except config.ConfigException as error:
        raise Rejected("NoCluster", str(error)) from error
    settings.connection_pool_maxsize = CONCURRENT_CALLS
    return Api(settings, {})


def _resources(group: Json) -> list[Resource]:
    name = group["metadata"].get("name", "")
    found = []
    for version in group["versions"]:
        for resource in version.get("resources", ()):
            parts: Sequence[Json] = (resource, *resource.get("subresources", ()))
            for part in parts:
                subresource = part.get("subresource", "")
                full = f"{resource['resource']}.{name}" if name else resource["resource"]
                found.append(
                    Resource(
                        name=f"{full}/{subresource}" if subresource else full,
                        group=name,
                        plural=resource["resource"],
                        subresource=subresource,
                        namespaced=resource["scope"] == "Namespaced",
                        verbs=tuple(part["verbs"]),
                    )
                )
    return found


def _answer(status: int, data: bytes) -> Answer:
    try:
        body = json.loads(data)
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    text = str(body.get("message") or data[:300].decode("utf-8", "replace"))
    return Answer(
        status=status, message=text if status >= HTTPStatus.BAD_REQUEST else "", body=body
    )
