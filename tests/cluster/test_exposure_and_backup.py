"""Public ports get a host, volumes are backed up, budgets and monitors stand where they should."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.world import World, a_bot, a_name, a_plan, bot_key, condition

PORTS = [
    {"name": "http", "containerPort": 8080, "exposure": "Public"},
    {"name": "admin", "containerPort": 9000},
]
POD_MONITOR = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "names": {"kind": "PodMonitor", "plural": "podmonitors"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


def test_a_public_port_gets_a_host_and_lets_only_the_ingress_controller_in(world: World) -> None:
    tenant = world.tenant()

    bot = world.bot(tenant, ports=PORTS)

    namespace = f"tenant-{tenant}"
    host = f"http.bot.{tenant}.bots.example"
    ingress = world.read("Ingress", namespace, "bot")
    assert ingress is not None
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == [host]
    assert {"name": "http", "url": f"https://{host}/"} in bot["status"]["endpoints"]
    assert condition(bot, "Exposed")[:2] == ("True", "Exposed")
    policy = world.read("NetworkPolicy", namespace, "bot")
    assert policy is not None
    reached = {
        (str(rule["from"][0]), rule["ports"][0]["port"]) for rule in policy["spec"]["ingress"]
    }
    controller = {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}
    assert reached == {
        (str({"podSelector": {}}), 9000),
        (str({"namespaceSelector": controller}), 8080),
    }


def test_a_port_that_is_no_longer_public_loses_its_host(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant, ports=PORTS)

    world.patch(*bot_key(tenant), {"spec": {"ports": PORTS[1:]}})

    ingress = ("Ingress", f"tenant-{tenant}", "bot")
    world.eventually(lambda: world.read(*ingress) is None, "the Ingress is gone")


def test_a_backup_is_made_by_schedule_and_its_time_is_shown(world: World) -> None:
    tenant = world.tenant()
    namespace = f"tenant-{tenant}"

    bot = world.bot(
        tenant, storage={"size": "1Gi"}, backup={"schedule": "0 3 * * *", "retention": 3}
    )

    assert condition(bot, "BackupScheduled")[:2] == ("True", "Scheduled")
    cron = world.read("CronJob", namespace, "bot.backup")
    assert cron is not None
    claim = world.read("PersistentVolumeClaim", namespace, "bot.backup")
    assert claim is not None
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    world.installed.kubectl("create", "job", "now", "--from=cronjob/bot.backup", "-n", namespace)
    job = world.eventually(lambda: _created_pods(world, namespace), "the job may make its pod")
    assert job["spec"]["containers"][0]["env"] == [{"name": "KEEP", "value": "3"}]
    at = "2026-11-24T03:00:05Z"
    world.patch_status("CronJob", namespace, "bot.backup", {"lastSuccessfulTime": at})
    world.eventually(
        lambda: (world.read(*bot_key(tenant)) or {}).get("status", {}).get("lastBackupTime") == at,
        "the time is shown",
    )


def test_a_bot_of_several_replicas_has_a_disruption_budget_and_a_single_one_has_none(
    world: World,
) -> None:
    tenant = world.tenant()
    world.bot(tenant, "many", replicas=2)
    world.bot(tenant, "one")

    budgets = {b["metadata"]["name"] for b in world.list("PodDisruptionBudget", f"tenant-{tenant}")}

    assert budgets == {"many"}


def test_a_class_that_the_plan_lacks_is_refused(world: World) -> None:
    tenant = world.tenant()

    world.create(a_bot(tenant, storage={"size": "1Gi", "storageClassName": "gold"}))

    body = world.wait_for(bot_key(tenant), "Ready", "StorageClassNotAllowed")
    assert "standard, fast-ssd" in body["status"]["conditions"][0]["message"]
    assert world.list("PersistentVolumeClaim", f"tenant-{tenant}") == []


@pytest.fixture
def pod_monitors(world: World) -> Iterator[None]:
    world.installed.stop("operator")
    world.installed.apply(POD_MONITOR)
    crd = "crd/podmonitors.monitoring.coreos.com"
    world.installed.kubectl("wait", "--for=condition=Established", crd)
    world.installed.start("operator")
    world.installed.wait_for_leader()
    yield
    world.installed.stop("operator")
    world.installed.kubectl("delete", crd)
    world.installed.start("operator")
    world.installed.wait_for_leader()


@pytest.mark.usefixtures("pod_monitors")
def test_a_pod_monitor_is_made_where_its_definition_exists(world: World) -> None:
    tenant = world.tenant()
    ports: list[dict[str, Any]] = [{"name": "metrics", "containerPort": 9100}]

    world.bot(tenant, ports=ports, metrics={"port": "metrics"})

    monitor = world.read("PodMonitor", f"tenant-{tenant}", "bot")
    assert monitor is not None
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")
    # What a bot tells cannot fill Prometheus, lead it elsewhere, or silence an alert of botplane.
    assert monitor["spec"]["sampleLimit"] == 10000
    assert endpoint["followRedirects"] is False
    (dropped,) = endpoint["metricRelabelings"]
    assert (dropped["sourceLabels"], dropped["action"]) == (["__name__"], "drop")
    assert re.fullmatch(dropped["regex"], "botplane_network_policies_enforced")

    world.patch(*bot_key(tenant), {"spec": {"metrics": None}})

    world.eventually(
        lambda: world.read("PodMonitor", f"tenant-{tenant}", "bot") is None, "the monitor is gone"
    )


def _created_pods(world: World, namespace: str) -> dict[str, Any] | None:
    pods = world.list("Pod", namespace)
    backups = [p for p in pods if p["metadata"]["labels"].get("app.kubernetes.io/name") == "backup"]
    return backups[0] if backups else None


def test_bots_that_use_up_their_plan_are_backed_up_all_the_same(world: World) -> None:
    plan = a_name("plan")
    size = {"cpu": "900m", "memory": "400Mi", "storage": "12Gi"}
    bot = {"maxCPU": "400m", "maxMemory": "200Mi", "maxStorage": "2Gi"}
    world.create(a_plan(plan, quota=size, maxBots=2, maxReplicas=1, bot=bot))
    tenant = world.tenant(planRef={"name": plan})
    namespace = f"tenant-{tenant}"
    half = {"cpu": "400m", "memory": "136Mi"}

    for name in ("one", "two"):
        world.bot(
            tenant,
            name,
            resources={"requests": half},
            storage={"size": "2Gi"},
            backup={"schedule": "0 3 * * *"},
        )
    for name in ("one", "two"):
        job = (name, f"--from=cronjob/{name}.backup", "-n", namespace)
        world.installed.kubectl("create", "job", *job)

    def backed_up() -> bool:
        pods = world.list("Pod", namespace)
        return {p["metadata"]["labels"].get("job-name") for p in pods} >= {"one", "two"}

    world.eventually(backed_up, "both backups have their pod")


def test_a_bot_whose_backup_has_no_room_beside_it_is_told_so(world: World) -> None:
    plan = a_name("plan")
    world.create(a_plan(plan, quota={"cpu": "1", "memory": "2Gi", "storage": "20Gi"}))
    tenant = world.tenant(planRef={"name": plan})

    world.create(
        a_bot(
            tenant,
            resources={"requests": {"cpu": "1", "memory": "1Gi"}},
            storage={"size": "1Gi"},
            backup={"schedule": "0 3 * * *"},
        )
    )

    body = world.wait_for(bot_key(tenant), "Ready", "QuotaExceeded")
    assert "asks for 1050m cpu" in condition(body, "Ready")[2]
