"""What our service accounts may do is what they did: computed from the audit log of the session.

Runs last (see `tests/faults/conftest.py`), and only when the session had all tests that make the
operator and metering work: what half of them use says nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.installation import ROOT, Installation

ACCOUNTS = ("botplane-operator", "botplane-metering")
USING = ("tests/cluster", "tests/faults")
RIGHTS_OF_ADMISSION = {
    # Asked by admission in the course of another call, so that the audit log has no line of it.
    ("create", "rbac.authorization.k8s.io", "rolebindings"): (
        ("bind", "rbac.authorization.k8s.io", "clusterroles"),
    ),
    ("create", "apps", "deployments"): (("update", "botplane.io", "botdeployments/finalizers"),),
}


class Right(NamedTuple):
    """One verb on one resource."""

    verb: str
    group: str
    resource: str


@pytest.fixture
def audit_log(botplane: Installation, request: pytest.FixtureRequest) -> Path:
    log = botplane.cluster.audit_log
    if log is None:
        pytest.skip("the audit log of this cluster is not ours to read")
    run = {item.path for item in request.session.items}
    wanted = {path for folder in USING for path in (ROOT / folder).glob("test_*.py")}
    if missing := wanted - run:
        pytest.skip(f"needs a session with {len(missing)} more modules of {', '.join(USING)}")
    return log


@pytest.mark.parametrize("account", ACCOUNTS)
def test_what_is_granted_is_used_and_what_is_used_is_granted(audit_log: Path, account: str) -> None:
    granted = granted_to(account)
    used, refused = used_by(audit_log, account)

    unused = sorted(granted - used)
    # A role that was bound a moment ago takes effect with a delay; what is granted passes later.
    missing = sorted(set(refused) - granted)
    transient = sum(count for right, count in refused.items() if right in granted)
    print(f"\n{account}: {len(granted)} rights, {len(unused)} unused, {len(missing)} missing")
    print(f"{transient} calls came before their role took effect")
    assert unused == []
    assert missing == []
    assert used <= granted


def test_no_right_is_a_wildcard() -> None:
    rules = [rule for role in roles().values() for rule in role["rules"]]

    fields = ("apiGroups", "resources", "verbs")

    assert not [rule for rule in rules if any("*" in rule[field] for field in fields)]


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


def used_by(log: Path, account: str) -> tuple[set[Right], Counter[Right]]:
    """Return the rights that an account used, and how often it was refused which."""
    used: set[Right] = set()
    refused: Counter[Right] = Counter()
    for event in _events(log, account):
        target, code = event["objectRef"], event.get("responseStatus", {}).get("code", 0)
        path = "/".join(p for p in (target["resource"], target.get("subresource")) if p)
        right = Right(event["verb"], target.get("apiGroup", ""), path)
        if event.get("annotations", {}).get("authorization.k8s.io/decision") != "allow":
            refused[right] += 1
            continue
        used.add(right)
        if right.verb == "patch" and code == 201:
            # Server-side apply of what does not exist needs the right to create it.
            used.add(right._replace(verb="create"))
    implied = {
        Right(*right)
        for use, rights in RIGHTS_OF_ADMISSION.items()
        if Right(*use) in used
        for right in rights
    }
    return used | implied, refused


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
