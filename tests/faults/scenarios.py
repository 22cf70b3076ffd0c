"""What users do, in a few lines each. Every scenario has a tenant, a plan and a text of its own."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.controlplane.waiting import until
from tests.support.world import World, a_bot, a_plan, a_tenant, bot_key, condition, path_of

PATIENCE = 90.0
PORTS = [{"name": "http", "containerPort": 8080, "exposure": "Public"}]
DELETABLE = {"protection": "Disabled", "retentionDays": 0}


@dataclass(frozen=True)
class Place:
    """One tenant's part of the world; `name` is in every name that belongs to it."""

    world: World
    name: str

    @property
    def namespace(self) -> str:
        return f"tenant-{self.name}"

    def plan(self, name: str = "", **spec: Any) -> str:
        """Declare a plan and return its name."""
        self.world.create(a_plan(name or self.name, **spec))
        return name or self.name

    def tenant(self, **spec: Any) -> None:
        """Declare the tenant."""
        plain = {"planRef": {"name": self.name}, "deletion": DELETABLE}
        self.world.create(a_tenant(self.name, **plain | spec))

    def bot(self, **spec: Any) -> None:
        """Declare the bot as soon as its namespace is there to take it."""
        body = a_bot(self.name, **spec)
        path = path_of("BotDeployment", self.namespace)

        def created() -> bool:
            try:
                self.world.api.create(path, body)
            except urllib.error.HTTPError as error:
                error.close()
                # The namespace, or what admission asks for in it, is still being made.
                if error.code not in {403, 404, 422}:
                    raise
                return False
            return True

        until(created, within=PATIENCE, what=f"a bot in {self.namespace}", every=0.1)

    def running(self) -> None:
        """Wait until the bot runs."""
        self.reason("Running")

    def reason(self, reason: str) -> None:
        """Wait until the bot's Ready has this reason for its present spec."""
        self.world.wait_for(bot_key(self.name), "Ready", reason, within=PATIENCE)

    def change(self, kind: str, **spec: Any) -> None:
        """Change the tenant, its plan or its bot."""
        where = (self.namespace, "bot") if kind == "BotDeployment" else ("", self.name)
        self.world.patch(kind, *where, {"spec": spec})

    def gone(self, kind: str, name: str) -> None:
        """Wait until an object does not exist."""
        space = "" if kind in {"Tenant", "Namespace"} else self.namespace
        self.world.eventually(
            lambda: self.world.read(kind, space, name) is None, f"{kind} {name} is gone", PATIENCE
        )

    def settled(self) -> bool:
        """Return whether every object says that nothing is under way."""
        tenant = self.world.read("Tenant", "", self.name)
        # What Postgres says of the account comes seconds later, and changes the status then.
        metered = tenant is None or condition(tenant, "WithinLimits")[0] == "True"
        bodies = [tenant, *self.bots()]
        return metered and all(_is_settled(body) for body in bodies if body is not None)

    def bots(self) -> list[dict[str, Any]]:
        """Return the bots."""
        if self.world.read("Namespace", "", self.namespace) is None:
            return []
        return self.world.list("BotDeployment", self.namespace)


def _is_settled(body: dict[str, Any]) -> bool:
    meta, status = body["metadata"], body.get("status", {})
    current = status.get("observedGeneration") == meta["generation"]
    waits = condition(body, "Reconciling")[0] == "True"
    return current and not waits and "deletionTimestamp" not in meta


def a_place_with_a_bot(at: Place) -> None:
    at.plan()
    at.tenant()
    at.bot(ports=PORTS)
    at.running()


def a_place(at: Place) -> None:
    at.plan()
    at.tenant()
    at.world.wait_for(("Tenant", "", at.name), "Ready", "True", within=PATIENCE)


def a_plan_only(at: Place) -> None:
    at.plan()


def create(at: Place) -> None:
    at.tenant(members=[{"kind": "User", "name": "ana", "role": "Operator"}])
    at.bot(
        ports=PORTS,
        storage={"size": "1Gi"},
        backup={"schedule": "0 3 * * *"},
        autoscaling={"maxReplicas": 3, "targetCPUPercent": 70},
    )


def scale(at: Place) -> None:
    at.change("BotDeployment", replicas=3)


def image(at: Place) -> None:
    at.change("BotDeployment", version="2.0.0", runtimeConfig={"levels": 2})


def quota_up_and_down(at: Place) -> None:
    at.change("Plan", quota={"cpu": "12", "memory": "24Gi"})
    quota = ("ResourceQuota", at.namespace, "plan")
    at.world.eventually(lambda: _cpu(at.world.read(*quota)) == "12", "quota is up", PATIENCE)
    at.change("Plan", quota={"cpu": "6", "memory": "12Gi"})


def suspend(at: Place) -> None:
    at.change("Tenant", suspend=True)


def resume(at: Place) -> None:
    at.change("Tenant", suspend=False)


def a_suspended_place(at: Place) -> None:
    a_place_with_a_bot(at)
    suspend(at)
    at.reason("Suspended")


def plan_change(at: Place) -> None:
    bigger = at.plan(f"{at.name}-big", quota={"cpu": "16", "memory": "32Gi"}, maxBots=7)
    at.change("Tenant", planRef={"name": bigger})


def delete(at: Place) -> None:
    at.world.delete("Tenant", "", at.name)
    at.gone("Tenant", at.name)
    at.gone("Namespace", at.namespace)


def re_create(at: Place) -> None:
    at.world.delete(*bot_key(at.name))
    for kind in ("BotDeployment", "ConfigMap", "Secret", "Service", "Deployment"):
        at.gone(kind, "bot")
    at.bot(ports=[], replicas=2)


def conflict(at: Place) -> None:
    foreign = {"name": "bot", "namespace": at.namespace}
    at.world.create({"kind": "ConfigMap", "apiVersion": "v1", "metadata": foreign})
    at.bot()
    at.reason("Conflict")
    at.world.delete("ConfigMap", at.namespace, "bot")
    at.running()


def drift(at: Place) -> None:
    at.world.delete("NetworkPolicy", at.namespace, "default-deny")
    at.world.delete("Service", at.namespace, "bot")
    at.world.patch("ConfigMap", at.namespace, "bot", {"data": {"config.json": "not so"}})
    at.world.patch("ResourceQuota", at.namespace, "plan", {"spec": {"hard": {"pods": "1"}}})


def secret_appears(at: Place) -> None:
    at.bot(apiKeysSecretRef={"name": "exchange"})
    at.reason("SecretNotFound")
    named = {"name": "exchange", "namespace": at.namespace}
    at.world.create({"kind": "Secret", "apiVersion": "v1", "metadata": named})
    at.running()


def _cpu(quota: dict[str, Any] | None) -> str:
    return "" if quota is None else str(quota["spec"]["hard"]["requests.cpu"])


@dataclass(frozen=True)
class Scenario:
    """What is there before, and what happens then."""

    act: Callable[[Place], None]
    prepare: Callable[[Place], None]

    @property
    def name(self) -> str:
        return self.act.__name__.replace("_", "-")


SCENARIOS = {
    s.name: s
    for s in (
        Scenario(create, a_plan_only),
        Scenario(scale, a_place_with_a_bot),
        Scenario(image, a_place_with_a_bot),
        Scenario(quota_up_and_down, a_place_with_a_bot),
        Scenario(suspend, a_place_with_a_bot),
        Scenario(resume, a_suspended_place),
        Scenario(plan_change, a_place_with_a_bot),
        Scenario(delete, a_place_with_a_bot),
        Scenario(re_create, a_place_with_a_bot),
        Scenario(conflict, a_place),
        Scenario(drift, a_place_with_a_bot),
        Scenario(secret_appears, a_place),
    )
}
