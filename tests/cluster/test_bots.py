"""A BotDeployment becomes a workload, follows every change, or says what keeps it from running."""

from __future__ import annotations

import pytest

from tests.support.world import World, a_bot, a_name, a_plan, bot_key, condition, tenant_key


def test_a_bot_runs_restricted_metered_and_with_its_own_account(world: World) -> None:
    tenant = world.tenant()

    bot = world.bot(
        tenant,
        runtimeConfig={"pair": "SOL/USDC"},
        ports=[{"name": "http", "containerPort": 8080}],
        healthCheck={"port": "http"},
    )

    namespace = f"tenant-{tenant}"
    pod = world.list("Pod", namespace)[0]
    assert pod["metadata"]["finalizers"] == ["botplane.io/metering"]
    assert pod["spec"]["serviceAccountName"] == "bot"
    assert pod["spec"]["automountServiceAccountToken"] is False
    container = pod["spec"]["containers"][0]
    assert container["image"] == "sniperforge/bot:1.0.0"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["requests"]["cpu"] == "250m"
    config = world.read("ConfigMap", namespace, "bot")
    assert config is not None
    assert config["data"]["config.json"] == '{"pair":"SOL/USDC"}'
    assert bot["status"]["endpoints"] == [
        {"name": "http", "url": f"http://bot.{namespace}.svc:8080"}
    ]
    assert bot["status"]["readyReplicas"] == 1


def test_kubectl_scale_works_and_its_status_follows(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant)

    world.installed.kubectl("scale", "bot", "bot", "-n", f"tenant-{tenant}", "--replicas=3")

    def ready() -> bool:
        body = world.read(*bot_key(tenant))
        return body is not None and body["status"]["readyReplicas"] == 3

    world.eventually(ready, "three replicas are ready")


def test_a_changed_configuration_rolls_the_pods_and_a_changed_image_too(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant, runtimeConfig={"levels": 1})
    namespace = f"tenant-{tenant}"

    def running() -> tuple[str, str]:
        pods = [p for p in world.list("Pod", namespace) if p["status"].get("phase") == "Running"]
        if len(pods) != 1:
            return "", ""
        return pods[0]["metadata"]["name"], pods[0]["spec"]["containers"][0]["image"]

    first = running()
    world.patch(*bot_key(tenant), {"spec": {"runtimeConfig": {"levels": 2}}})
    second = world.eventually(
        lambda: running() if running() not in {first, ("", "")} else None, "rolled", 30
    )
    world.patch(*bot_key(tenant), {"spec": {"version": "1.0.1"}})
    world.eventually(lambda: running()[1] == "sniperforge/bot:1.0.1", "the new image runs")

    assert second != first


def test_the_autoscaler_owns_the_replicas(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant, autoscaling={"minReplicas": 1, "maxReplicas": 4, "targetCPUPercent": 70})
    namespace = f"tenant-{tenant}"

    world.patch("Deployment", namespace, "bot", {"spec": {"replicas": 3}})
    world.patch(*bot_key(tenant), {"spec": {"runtimeConfig": {"touched": True}}})

    world.eventually(lambda: "touched" in _configuration(world, namespace), "the pass has been")
    assert _wanted(world, namespace) == 3


def test_no_replica_stops_when_an_autoscaler_takes_over(world: World) -> None:
    tenant = world.tenant()
    namespace = f"tenant-{tenant}"
    world.bot(tenant, replicas=3)
    pods = {pod["metadata"]["uid"] for pod in world.list("Pod", namespace)}
    scaling = {"minReplicas": 2, "maxReplicas": 4, "targetCPUPercent": 70}

    world.patch(*bot_key(tenant), {"spec": {"replicas": None, "autoscaling": scaling}})

    scaler = ("HorizontalPodAutoscaler", namespace, "bot")
    world.eventually(lambda: world.read(*scaler), "it is there")
    world.wait_for(bot_key(tenant), "Ready", "True")
    assert {pod["metadata"]["uid"] for pod in world.list("Pod", namespace)} == pods

    # What it decides is its own, also for a pass that has something else to write.
    world.installed.kubectl("scale", "deployment", "bot", "-n", namespace, "--replicas=4")
    world.patch(*bot_key(tenant), {"spec": {"runtimeConfig": {"touched": True}}})
    world.eventually(lambda: "touched" in _configuration(world, namespace), "the pass has been")
    assert _wanted(world, namespace) == 4

    world.patch(*bot_key(tenant), {"spec": {"suspend": True}})
    world.eventually(lambda: _wanted(world, namespace) == 0, "it is stopped")
    world.patch(*bot_key(tenant), {"spec": {"suspend": False}})
    world.eventually(lambda: _wanted(world, namespace) != 0, "it is started")
    assert _wanted(world, namespace) == 2


def test_a_bot_is_not_ready_for_a_change_that_kubernetes_has_not_looked_at(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant)
    cluster = world.installed.cluster
    cluster.kill9("kube-controller-manager")
    try:
        world.patch(*bot_key(tenant), {"spec": {"replicas": 3}})

        body = world.wait_for(bot_key(tenant), "WorkloadAvailable", "PodsStarting")
        assert condition(body, "Ready")[:2] == ("False", "PodsStarting")
    finally:
        cluster.restart("kube-controller-manager")
    world.wait_for(bot_key(tenant), "Ready", "True")


def test_a_bot_without_replicas_is_ready_for_who_waits_for_it(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant)

    world.installed.kubectl("scale", "bot", "bot", "-n", f"tenant-{tenant}", "--replicas=0")

    world.wait_for(bot_key(tenant), "Ready", "ScaledToZero")
    world.installed.kubectl("wait", "--for=condition=Ready", "bot/bot", "-n", f"tenant-{tenant}")


def _wanted(world: World, namespace: str) -> int:
    deployment = world.read("Deployment", namespace, "bot")
    assert deployment is not None
    return int(deployment["spec"]["replicas"])


def _configuration(world: World, namespace: str) -> str:
    config = world.read("ConfigMap", namespace, "bot")
    assert config is not None
    return str(config["data"]["config.json"])


def test_an_autoscaler_that_is_no_longer_wanted_goes(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant, autoscaling={"maxReplicas": 4, "targetCPUPercent": 70})
    scaler = ("HorizontalPodAutoscaler", f"tenant-{tenant}", "bot")
    assert world.read(*scaler) is not None

    world.patch(*bot_key(tenant), {"spec": {"autoscaling": None, "replicas": 2}})

    world.eventually(lambda: world.read(*scaler) is None, "the autoscaler is gone")


@pytest.mark.parametrize("field", ["walletKeysSecretRef", "imagePullSecretRef"])
def test_a_missing_secret_is_named_and_its_arrival_is_noticed(world: World, field: str) -> None:
    tenant = world.tenant()
    namespace = f"tenant-{tenant}"

    bot = a_bot(tenant)
    bot["spec"][field] = {"name": "wallet"}
    world.create(bot)

    body = world.wait_for(bot_key(tenant), "ConfigurationReady", "SecretNotFound")
    assert "wallet" in body["status"]["conditions"][0]["message"]
    assert world.list("Deployment", namespace) == []
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"key": "k"}}
    world.create(secret | {"metadata": {"name": "wallet", "namespace": namespace}})
    world.wait_for(bot_key(tenant), "Ready", "Running")
    [pod] = world.list("Pod", namespace)
    pulled_with = pod["spec"].get("imagePullSecrets", [])
    assert pulled_with == ([{"name": "wallet"}] if field == "imagePullSecretRef" else [])


def test_the_bot_beyond_the_limit_waits_and_runs_when_there_is_room(world: World) -> None:
    plan = a_name("plan")
    world.create(a_plan(plan, maxBots=2, quota={"cpu": "8", "memory": "16Gi"}))
    tenant = world.tenant(planRef={"name": plan}, overrides={"maxBots": 1})
    world.bot(tenant, "one")
    world.patch("Tenant", "", tenant, {"spec": {"overrides": {"maxBots": 2}}})
    world.eventually(lambda: _limit(world, tenant) == 2, "the limit is 2")
    world.eventually(lambda: _created(world, a_bot(tenant, "two")), "there is room for two")
    world.wait_for(bot_key(tenant, "two"), "Ready", "Running")
    world.patch("Tenant", "", tenant, {"spec": {"overrides": {"maxBots": 1}}})

    body = world.wait_for(bot_key(tenant, "two"), "Ready", "BotLimitReached")

    assert "allows 1" in body["status"]["conditions"][0]["message"]
    world.wait_for(tenant_key(tenant), "WithinPlan", "BotLimitReached")
    world.delete(*bot_key(tenant, "one"))
    world.wait_for(bot_key(tenant, "two"), "Ready", "Running")


def test_a_scale_beyond_the_plan_is_told_and_what_runs_keeps_running(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant, replicas=2)

    world.patch(*bot_key(tenant), {"spec": {"replicas": 9}})

    body = world.wait_for(bot_key(tenant), "WithinPlan", "ReplicaLimitReached")
    assert (
        "spec.replicas is 9 and plan professional allows 6"
        in body["status"]["conditions"][0]["message"]
    )
    deployment = world.read("Deployment", f"tenant-{tenant}", "bot")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 2


def test_a_bot_beyond_the_quota_is_told_with_the_numbers(world: World) -> None:
    plan = a_name("plan")
    world.create(a_plan(plan, quota={"cpu": "1", "memory": "1Gi"}))
    tenant = world.tenant(planRef={"name": plan})
    world.bot(tenant, "small", resources={"requests": {"cpu": "600m", "memory": "256Mi"}})

    world.create(a_bot(tenant, "large", resources={"requests": {"cpu": "500m", "memory": "256Mi"}}))

    body = world.wait_for(bot_key(tenant, "large"), "Ready", "QuotaExceeded")
    message = body["status"]["conditions"][0]["message"]
    assert "asks for 500m cpu" in message
    assert "400m of the tenant's 1 are free" in message
    assert world.read("Deployment", f"tenant-{tenant}", "large") is None


def test_a_bot_that_a_quota_refuses_runs_once_there_is_room(world: World) -> None:
    tenant = world.tenant()
    namespace = f"tenant-{tenant}"
    full = {"hard": {"count/deployments.apps": "0"}}
    meta = {"name": "full", "namespace": namespace}
    world.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": full})
    world.eventually(
        lambda: (world.read("ResourceQuota", namespace, "full") or {})["status"].get("used"),
        "Kubernetes counts",
    )
    world.create(a_bot(tenant))
    body = world.wait_for(bot_key(tenant), "Ready", "QuotaExceeded")

    world.delete("ResourceQuota", namespace, "full")

    world.wait_for(bot_key(tenant), "Ready", "Running")
    assert "count/deployments.apps" in condition(body, "Ready")[2]


def test_an_image_from_elsewhere_is_refused(world: World) -> None:
    tenant = world.tenant()

    world.create(a_bot(tenant, image="evil.example/bot:1"))

    body = world.wait_for(bot_key(tenant), "Ready", "ImageNotAllowed")
    assert "registry.example/sniperforge" in body["status"]["conditions"][0]["message"]


def test_a_bot_outside_of_a_tenants_namespace_says_so(world: World) -> None:
    name = a_name("stray")
    body = a_bot("x", name)
    body["metadata"]["namespace"] = "default"

    world.create(body)

    world.wait_for(("BotDeployment", "default", name), "Ready", "TenantNotFound")
    world.delete("BotDeployment", "default", name)


def test_a_foreign_object_of_the_same_name_is_not_taken(world: World) -> None:
    tenant = world.tenant()
    namespace = f"tenant-{tenant}"
    foreign = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "bot", "namespace": namespace},
        "data": {"mine": "yes"},
    }
    world.create(foreign)

    world.create(a_bot(tenant))

    body = world.wait_for(bot_key(tenant), "Ready", "Conflict")
    assert "ConfigMap" in body["status"]["conditions"][0]["message"]
    config = world.read("ConfigMap", namespace, "bot")
    assert config is not None
    assert config["data"] == {"mine": "yes"}
    assert world.list("Pod", namespace) == []


def test_a_deleted_bot_takes_its_objects_along_once_its_time_is_metered(world: World) -> None:
    tenant = world.tenant()
    world.bot(tenant, ports=[{"name": "http", "containerPort": 8080}])
    namespace = f"tenant-{tenant}"

    world.delete(*bot_key(tenant))

    def left() -> list[str]:
        kinds = ("Deployment", "Service", "Secret", "Pod")
        return [kind for kind in kinds if world.list(kind, namespace)]

    world.eventually(lambda: not left(), "nothing is left")


def _limit(world: World, tenant: str) -> int:
    body = world.read(*tenant_key(tenant))
    return int(body["status"]["bots"]["limit"]) if body else 0


def _created(world: World, body: dict[str, object]) -> bool:
    """Try to create: the quota that allows it takes effect with a delay."""
    try:
        world.create(body)
    except OSError:
        return False
    return True
