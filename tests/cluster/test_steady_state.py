"""A converged cluster is left alone: counted by the API server's audit log, not by us."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.controlplane import audit
from tests.support.installation import OPERATOR_USER
from tests.support.world import World, bot_key

# Less than a minute: two writes a minute apart are within their promise.
IDLE_SECONDS = 50


@pytest.fixture
def converged(world: World) -> str:
    if world.installed.cluster.audit_log is None:
        pytest.skip("the audit log of this cluster is not ours to read")
    tenant = world.tenant(members=[{"kind": "User", "name": "ana", "role": "Viewer"}])
    world.bot(
        tenant,
        "one",
        ports=[{"name": "http", "containerPort": 8080}],
        healthCheck={"port": "http"},
        runtimeConfig={"text": "emoji 😀, \u2028, \u2029, \x7f, \x85, \x9f, \ufeff and \uffff"},
    )
    world.bot(tenant, "two", autoscaling={"maxReplicas": 3, "targetMemoryPercent": 80})
    world.eventually(lambda: _shows_usage(world, tenant), "usage is shown")
    return tenant


@pytest.mark.usefixtures("converged")
def test_a_restarted_operator_writes_nothing(world: World) -> None:
    world.installed.stop("operator")
    log = world.installed.cluster.audit_log
    assert log is not None
    since = audit.position(log)

    world.installed.start("operator")

    world.installed.wait_for_leader()
    quiet_for(world, 6)
    assert writes(world, since, usage=False) == Counter()


@pytest.mark.usefixtures("converged")
def test_an_idle_operator_writes_only_usage_and_what_it_foresees(world: World) -> None:
    month = _ten_days_into_its_month(world)
    log = world.installed.cluster.audit_log
    assert log is not None
    since = audit.position(log)

    quiet_for(world, IDLE_SECONDS)

    made = writes(world, since, usage=True)
    print(f"\nwrites in {IDLE_SECONDS} idle seconds: {dict(made) or 'none'}")
    assert {subresource for _, subresource, _ in made} <= {"status"}
    assert max(made.values(), default=0) <= 1, "more than one a minute and object"
    world.eventually(lambda: "forecast" in _usage(world, month), "the forecast is shown")


def _ten_days_into_its_month(world: World) -> str:
    """Return a tenant of whom enough is known: nothing is foreseen on the first day."""
    now = datetime.now(UTC)
    start, anchor = now - timedelta(days=70), now - timedelta(days=10)
    billing = {
        "subscriptionStartTime": f"{start:%Y-%m-%dT00:00:00Z}",
        "anchorDay": min(anchor.day, 28),
    }
    tenant = world.tenant(billing=billing)
    world.eventually(lambda: _usage(world, tenant), "usage is shown")
    return tenant


def _usage(world: World, tenant: str) -> dict[str, Any]:
    body = world.read("Tenant", "", tenant) or {}
    usage: dict[str, Any] = body["status"].get("usage", {})
    return usage


def quiet_for(world: World, seconds: float) -> None:
    """Let time pass: what must not happen can only be waited out."""
    end = time.monotonic() + seconds
    world.eventually(lambda: time.monotonic() > end, "time has passed", seconds + 5)


def writes(world: World, since: int, *, usage: bool) -> Counter[tuple[str, str, str]]:
    """Count the operator's writes by resource, subresource and object, without its lease."""
    log = world.installed.cluster.audit_log
    assert log is not None
    return Counter(
        (request.resource, request.subresource, f"{request.namespace}/{request.name}")
        for request in audit.requests(log, user=OPERATOR_USER, since=since)
        if request.is_write
        and request.resource != "leases"
        and (usage or request.subresource != "status")
    )


def _shows_usage(world: World, tenant: str) -> bool:
    bodies = [
        world.read("Tenant", "", tenant),
        *(world.read(*bot_key(tenant, n)) for n in ("one", "two")),
    ]
    return all(body is not None and "usage" in body["status"] for body in bodies)
