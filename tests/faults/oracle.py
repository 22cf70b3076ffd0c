"""What a tenant's part of the world looks like, without what chance and time put into it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

from tests.support.controlplane import audit
from tests.support.installation import MASTER_KEY, OPERATOR_USER
from tests.support.world import NAMESPACED, World

KINDS = tuple(kind for kind in NAMESPACED if kind not in {"Pod", "Job", "PodMonitor"})
CLUSTER_KINDS = ("Tenant", "Namespace", "Plan")
CHANCE = frozenset(
    {
        "uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "selfLink",
        "clusterIP", "clusterIPs", "volumeName", "lastTransitionTime", "message", "usage",
        "observedGeneration", "revision", "lastUpdateTime", "kubectl.kubernetes.io/restartedAt",
    }
)  # fmt: skip
STATUS_OF = frozenset({"Tenant", "BotDeployment", "Deployment"})
HASHES = ("botplane.io/applied-hash", "botplane.io/config-hash")
MADE_BY_KUBERNETES = frozenset({"ConfigMap kube-root-ca.crt"})
EITHER_MAKES = frozenset({("serviceaccounts", "default")})
"""Made by Kubernetes or by us, whoever is first."""
State = dict[str, Any]


def end_state(world: World, token: str) -> State:
    """Return all objects of a tenant, normalised."""
    bodies = [
        body | {"kind": kind}
        for kind in CLUSTER_KINDS
        if (body := world.read(kind, "", f"tenant-{token}" if kind == "Namespace" else token))
    ]
    if any(body["kind"] == "Namespace" for body in bodies):
        for kind in KINDS:
            bodies += [body | {"kind": kind} for body in world.list(kind, f"tenant-{token}")]
    uids = {body["metadata"]["uid"]: _title(body, token) for body in bodies}
    found = {_title(body, token): _normal(body, token, uids) for body in bodies}
    return {title: body for title, body in found.items() if title not in MADE_BY_KUBERNETES}


def difference(expected: State, found: State) -> list[str]:
    """Return what differs, as lines to read; nothing for equal states."""
    lines = [f"missing: {title}" for title in expected.keys() - found.keys()]
    lines += [f"too much: {title}" for title in found.keys() - expected.keys()]
    for title in expected.keys() & found.keys():
        lines += [f"{title}{line}" for line in _different(expected[title], found[title], "")]
    return sorted(lines)


class Changes(NamedTuple):
    """What the operator created and deleted for a tenant."""

    done: Counter[str]
    unsure: Counter[str]
    """What was under way when the operator was killed: it may have been done, answered by 504."""

    def difference(self, expected: Changes) -> list[str]:
        """Return what was done too often and too seldom, as lines to read."""
        more = self.done - expected.done
        less = expected.done - self.done - self.unsure
        lines = [f"too often: {dict(more)}"] * bool(more)
        return [*lines, *[f"too seldom: {dict(less)}"] * bool(less)]


def changes(world: World, token: str, since: int) -> Changes:
    """Count what the operator created and deleted for a tenant, from the audit log."""
    log = world.installed.cluster.audit_log
    assert log is not None
    return counted(audit.requests(log, user=OPERATOR_USER, since=since), token)


def counted(requests: Iterable[audit.Request], token: str) -> Changes:
    """Count what was created and deleted for a tenant.

    Who has lost the answer to a DELETE asks again: of what is going already that changes nothing.
    """
    counts: Counter[str] = Counter()
    unsure: Counter[str] = Counter()
    going: set[str] = set()
    for request in requests:
        if token not in f"{request.namespace}/{request.name}" or request.resource == "events":
            continue
        if (request.resource, request.name) in EITHER_MAKES:
            continue
        what = f"{request.resource} {request.name}".replace(token, "NAME")
        if request.code == HTTPStatus.GATEWAY_TIMEOUT and not request.subresource:
            unsure[f"{'delete' if request.verb == 'delete' else 'create'} {what}"] += 1
        elif request.is_write and request.code == 201:
            counts[f"create {what}"] += 1
            going.discard(what)
        elif request.verb == "delete" and request.code < 300 and what not in going:
            counts[f"delete {what}"] += 1
            going.add(what)
    return Changes(counts, unsure)


def _title(body: dict[str, Any], token: str) -> str:
    return f"{body['kind']} {body['metadata']['name']}".replace(token, "NAME")


def _normal(body: dict[str, Any], token: str, uids: dict[str, str]) -> Any:
    kind, meta = body["kind"], body["metadata"]
    kept = {k: v for k, v in body.items() if k != "status" or kind in STATUS_OF}
    if kind == "Secret":
        kept["data"] = {k: _key(v, k, meta) for k, v in body.get("data", {}).items()}
    if kind == "Deployment":
        status = body.get("status", {})
        kept["status"] = {k: status.get(k, 0) for k in ("replicas", "readyReplicas")}
    text = json.dumps(_without_chance(kept))
    for uid, title in uids.items():
        text = text.replace(uid, f"uid of {title}")
    return json.loads(text.replace(token, "NAME"))


def _key(value: str, name: str, meta: dict[str, Any]) -> str:
    """Return what a secret value is: the key that its owner must get, or the hash of another."""
    raw = base64.b64decode(value)
    for owner in meta.get("ownerReferences", ()):
        extracted = hmac.new(b"botplane/v1", MASTER_KEY.encode(), hashlib.sha256).digest()
        for purpose in (name, name.removesuffix("-key")):
            info = f"{purpose}/{owner['uid']}/0\x01".encode()
            secret = hmac.new(extracted, info, hashlib.sha256).hexdigest()
            if raw.decode() in {secret, f"{owner['uid']}.{secret}"}:
                return f"issued for {purpose}"
    return hashlib.sha256(raw).hexdigest()


def _without_chance(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {k: _without_chance(v) for k, v in node.items() if k not in CHANCE}
        return {k: "a hash" if k in HASHES else v for k, v in kept.items()}
    if isinstance(node, list):
        return [_without_chance(item) for item in node]
    return node


def _different(expected: Any, found: Any, path: str) -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted(expected.keys() | found.keys())
        return [
            line
            for key in keys
            for line in _different(expected.get(key), found.get(key), f"{path}.{key}")
        ]
    return [] if expected == found else [f"{path}: {found!r} instead of {expected!r}"]
