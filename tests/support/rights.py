"""What our service accounts may do, and what they did: rules against the audit log.

A session with `BOTPLANE_RIGHTS_TO=<folder>` leaves there what was used. The suite runs as several
sessions, so a last one, with `BOTPLANE_RIGHTS_FROM`, adds that up and compares.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
ACCOUNTS = ("botplane-operator", "botplane-metering")


class Right(NamedTuple):
    """One verb on one resource."""

    verb: str
    group: str
    resource: str


ASKED_BY_ADMISSION = {
    Right("create", "rbac.authorization.k8s.io", "rolebindings"): Right(
        "bind", "rbac.authorization.k8s.io", "clusterroles"
    ),
    Right("create", "apps", "deployments"): Right(
        "update", "botplane.io", "botdeployments/finalizers"
    ),
}
"""Rights that a call needs besides its own; the audit log has no line of them."""


@dataclass
class Use:
    """What an account used, and what it was refused."""

    used: set[Right] = field(default_factory=set)
    refused: Counter[Right] = field(default_factory=Counter)


def roles() -> dict[str, dict[str, Any]]:
    """Return our roles by kind and name."""
    return {
        f"{body['kind']} {body['metadata']['name']}": body
        for body in _documents()
        if body["kind"] in {"ClusterRole", "Role"}
    }


def granted_to(account: str) -> set[Right]:
    """Return all rights of an account, in whatever namespace."""
    bound = {
        f"{body['roleRef']['kind']} {body['roleRef']['name']}"
        for body in _documents()
        if body["kind"].endswith("RoleBinding")
        and any(subject["name"] == account for subject in body["subjects"])
    }
    if account == "botplane-operator":
        # Bound by the operator itself, in each tenant namespace.
        bound.add("ClusterRole botplane:tenant-namespace")
    known = roles()
    return {
        Right(verb, group, resource)
        for name in bound
        for rule in known[name]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used_by(log: Path, account: str) -> Use:
    """Return what an account used, and how often it was refused which right."""
    use = Use()
    for event in _events(log, account):
        target, code = event["objectRef"], event.get("responseStatus", {}).get("code", 0)
        path = "/".join(p for p in (target["resource"], target.get("subresource")) if p)
        right = Right(event["verb"], target.get("apiGroup", ""), path)
        if event.get("annotations", {}).get("authorization.k8s.io/decision") != "allow":
            use.refused[right] += 1
            continue
        use.used.add(right)
        if right.verb == "patch" and code == 201:
            # Server-side apply of what does not exist needs the right to create it.
            use.used.add(right._replace(verb="create"))
    use.used |= {more for right, more in ASKED_BY_ADMISSION.items() if right in use.used}
    return use


def record(log: Path, folder: Path) -> None:
    """Leave what the accounts used in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for account in ACCOUNTS:
        use = used_by(log, account)
        refused = [[*right, count] for right, count in sorted(use.refused.items())]
        content[account] = {"used": sorted(use.used), "refused": refused}
    (folder / f"{uuid.uuid4().hex}.json").write_text(json.dumps(content, indent=1))


def recorded(folder: Path, account: str) -> Use:
    """Return what the sessions that left their record in a folder used together."""
    total = Use()
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())[account]
        total.used |= {Right(*right) for right in content["used"]}
        for *right, count in content["refused"]:
            total.refused[Right(*right)] += count
    return total


def _events(log: Path, account: str) -> Iterator[dict[str, Any]]:
    user = f"system:serviceaccount:botplane-system:{account}"
    mark = json.dumps(user).encode()
    with log.open("rb") as lines:
        for line in lines:
            if mark not in line or not line.endswith(b"\n"):
                continue
            event = json.loads(line)
            if event["user"]["username"] == user and "objectRef" in event:
                yield event


def _documents() -> list[dict[str, Any]]:
    text = (ROOT / "manifests/install/rbac.yaml").read_text()
    return [body for body in yaml.safe_load_all(text) if body]
