"""What a probe of the network found is told to tenants, to Prometheus, and to who comes new."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from botplane.clock import utc_now
from botplane.isolation.calls import Api, open_api
from botplane.isolation.network import ENFORCED, OPEN, UNKNOWN, judged, record
from tests.support.alerts import Alerts
from tests.support.controlplane import audit
from tests.support.installation import OPERATOR_USER
from tests.support.world import World, a_name, a_tenant, condition, tenant_key

RECORD = ("ConfigMap", "botplane-system", "network-isolation")
ALERT = "BotplaneNetworkPoliciesIgnored"
TWO_READINGS = 30
"""The operator reads the record every ten seconds."""


@pytest.fixture
def admin(world: World) -> Iterator[Api]:
    """An administrator; whatever is recorded, tenants have forgotten it afterwards."""
    yield open_api(str(world.installed.cluster.kubeconfigs["admin"]))
    world.delete(*RECORD)
    told = world.tenant()
    world.wait_for(tenant_key(told), "NetworkIsolation", "NotProbed")


def entry(tenant: dict[str, Any] | None) -> dict[str, Any]:
    """Return the whole condition, with the time since when it says so."""
    assert tenant is not None
    conditions: list[dict[str, Any]] = tenant["status"]["conditions"]
    return next(c for c in conditions if c["type"] == "NetworkIsolation")


def found(api: Api, code: int) -> bool:
    """Record what the exit code of a probe's caller says."""
    return record(api, "botplane-system", judged(code), utc_now())


def test_a_network_that_ignores_policies_is_told_and_fires_the_alert(
    world: World, admin: Api, tmp_path: Path
) -> None:
    tenant = world.tenant()
    since = time.time()
    scrapes = [scraped(world)]
    assert condition(world.read(*tenant_key(tenant)), "NetworkIsolation")[:2] == (
        "Unknown",
        "NotProbed",
    )

    world.installed.kill9("operator")
    assert found(admin, OPEN)
    world.installed.start("operator")
    body = world.wait_for(tenant_key(tenant), "NetworkIsolation", "ProbeFailed")
    scrapes.append(scraped(world))
    late = world.tenant()
    assert found(admin, ENFORCED)
    world.wait_for(tenant_key(tenant), "NetworkIsolation", "PoliciesEnforced")
    scrapes.append(scraped(world))

    _, reason, message = condition(body, "NetworkIsolation")
    assert condition(body, "Ready")[0] == "True"
    assert "a probe reached a pod" in message
    assert [events(world, name, reason) for name in (tenant, late)] == [[message], [message]]
    assert message in world.installed.log("operator")
    alerts = Alerts(tmp_path)
    fired = [alerts.fires(ALERT, scrapes[: n + 1], since) for n in range(len(scrapes))]
    assert fired == [False, True, False]


def test_a_probe_that_proves_nothing_takes_nothing_back(world: World, admin: Api) -> None:
    tenant = world.tenant()
    assert found(admin, ENFORCED)
    before = entry(world.wait_for(tenant_key(tenant), "NetworkIsolation", "PoliciesEnforced", 30))
    log = world.installed.cluster.audit_log
    if log is None:
        pytest.skip("the audit log of this cluster is not ours to read")
    since = audit.position(log)

    assert not found(admin, UNKNOWN)
    assert found(admin, ENFORCED)

    def readings() -> int:
        asked = audit.requests(log, user=OPERATOR_USER, since=since)
        return sum(request.name == RECORD[2] for request in asked)

    # Whatever the first reading called for is done before the second.
    world.eventually(lambda: readings() >= 2, "the record is read twice", TWO_READINGS)
    assert entry(world.read(*tenant_key(tenant))) == before


@pytest.fixture
def strict(world: World) -> Iterator[World]:
    """The operator in strict mode; afterwards others find it as it was."""
    with world.installed.operator_with(BOTPLANE_NETWORK_ISOLATION="Strict"):
        yield world


def test_where_isolation_must_be_proven_only_new_tenants_wait_for_it(
    world: World, admin: Api, strict: World
) -> None:
    early, late = a_name("early"), a_name("late")
    strict.create(a_tenant(early))
    waiting = strict.wait_for(tenant_key(early), "Ready", "NotProbed")
    assert strict.read("Namespace", "", f"tenant-{early}") is None
    assert condition(waiting, "Reconciling")[0] == "True"

    assert found(admin, ENFORCED)
    strict.wait_for(tenant_key(early), "Ready", "Provisioned")
    strict.bot(early, "one")
    assert found(admin, OPEN)
    strict.wait_for(tenant_key(early), "NetworkIsolation", "ProbeFailed")
    strict.create(a_tenant(late))
    strict.wait_for(tenant_key(late), "Ready", "ProbeFailed")

    assert strict.read("Namespace", "", f"tenant-{late}") is None
    assert condition(strict.read(*tenant_key(early)), "Ready")[:2] == ("True", "Provisioned")
    strict.delete("NetworkPolicy", f"tenant-{early}", "default-deny")
    strict.bot(early, "two")
    strict.eventually(
        lambda: strict.read("NetworkPolicy", f"tenant-{early}", "default-deny"), "it is repaired"
    )
    world.delete(*RECORD)
    strict.wait_for(tenant_key(late), "Ready", "NotProbed")


def scraped(world: World) -> str:
    """Return what /metrics of the operator answers."""
    url = f"http://127.0.0.1:{world.installed.ports['operator']}/metrics"
    with urllib.request.urlopen(url) as answer:
        return str(answer.read().decode())


def events(world: World, tenant: str, reason: str) -> list[str]:
    """Return the messages of a tenant's Warnings of a reason."""
    items: list[dict[str, Any]] = world.installed.get("events", "-n", "default")["items"]
    return [
        item["message"]
        for item in items
        if item["type"] == "Warning"
        and (item["involvedObject"]["name"], item["reason"]) == (tenant, reason)
    ]
