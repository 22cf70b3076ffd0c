"""Whether a bot may run, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from botplane.api.conditions import Finding
from botplane.api.plan import PlanSpec
from botplane.bots.policy import Facts, Rights, Share, findings, image_of, share, sizing
from tests.support.declared import REPOSITORY, a_bot, a_plan, rights_of

SMALL_PLAN = a_plan(
    maxBots=2,
    maxReplicas=2,
    quota={"cpu": "4", "memory": "8Gi", "storage": "20Gi"},
    bot={"maxCPU": "2", "maxMemory": "2Gi", "maxStorage": "10Gi"},
)
NO_STORAGE = a_plan(storageClasses=[])
FIXED_PLAN = a_plan(imageDigests="Required")


def judge(spec: dict[str, Any], rights: Rights, before: Sequence[Share] = ()) -> list[Finding]:
    domain = "bots.example"
    return findings(Facts(spec=a_bot(**spec), rights=rights, older=before, public_domain=domain))


def a_share(name: str, cpu: str, memory: int, storage: int) -> Share:
    sizes = {"memory": Decimal(memory), "storage": Decimal(storage)}
    return Share(name=name, cpu=Decimal(cpu), **sizes)


def older(count: int, cpu: str = "1", memory: int = 2**30, storage: int = 0) -> list[Share]:
    return [a_share(f"bot-{n}", cpu, memory, storage) for n in range(count)]


def resources(kind: str, **amounts: str) -> dict[str, Any]:
    return {"resources": {kind: amounts}}


def scaled(most: int) -> dict[str, Any]:
    return {"autoscaling": {"maxReplicas": most, "targetCPUPercent": 70}}


BACKED_UP = {"storage": {"size": "1Gi"}, "backup": {"schedule": "0 3 * * *"}}
DIGEST = "sha256:" + "0" * 64
CASES: dict[str, tuple[dict[str, Any], PlanSpec, list[Share], list[str]]] = {
    "asks for nothing": ({}, SMALL_PLAN, [], []),
    "second of two": ({}, SMALL_PLAN, older(1), []),
    "third of two": ({}, SMALL_PLAN, older(2), ["BotLimitReached"]),
    "as many replicas as allowed": ({"replicas": 2}, SMALL_PLAN, [], []),
    "a replica too many": ({"replicas": 3}, SMALL_PLAN, [], ["ReplicaLimitReached"]),
    "no replicas": ({"replicas": 0}, SMALL_PLAN, [], []),
    "may scale too far": (scaled(3), SMALL_PLAN, [], ["ReplicaLimitReached"]),
    "replicas are not read while it scales": (
        {"replicas": 9} | scaled(2), SMALL_PLAN, [], [],
    ),
    "largest replica": (resources("limits", cpu="2", memory="2Gi"), SMALL_PLAN, [], []),
    "too much cpu": (resources("limits", cpu="2001m"), SMALL_PLAN, [], ["BotTooLarge"]),
    "too much memory": (resources("limits", memory="2049Mi"), SMALL_PLAN, [], ["BotTooLarge"]),
    "request above its limit": (
        {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
        SMALL_PLAN, [], ["RequestAboveLimit"],
    ),
    "fills the quota to the last core": (
        resources("requests", cpu="2") | {"replicas": 1}, SMALL_PLAN, older(1, "2"), [],
    ),
    "goes beyond the quota by a thousandth": (
        resources("requests", cpu="2"), SMALL_PLAN, older(1, "2.001"), ["QuotaExceeded"],
    ),
    "goes beyond the quota once it has scaled": (
        resources("requests", cpu="2") | scaled(2), SMALL_PLAN, older(1, "1"), ["QuotaExceeded"],
    ),
    "volume as large as allowed": ({"storage": {"size": "10Gi"}}, SMALL_PLAN, [], []),
    "volume too large": ({"storage": {"size": "11Gi"}}, SMALL_PLAN, [], ["BotTooLarge"]),
    "volumes use up the quota": (
        {"storage": {"size": "10Gi"}}, SMALL_PLAN, older(1, storage=11 * 2**30), ["QuotaExceeded"],
    ),
    "class of the plan": (
        {"storage": {"size": "1Gi", "storageClassName": "fast-ssd"}}, SMALL_PLAN, [], [],
    ),
    "class of another plan": (
        {"storage": {"size": "1Gi", "storageClassName": "slow"}},
        SMALL_PLAN, [], ["StorageClassNotAllowed"],
    ),
    "a backup takes twice the volume again": (
        {"storage": {"size": "7Gi"}, "backup": {"schedule": "0 3 * * *"}},
        SMALL_PLAN, [], ["QuotaExceeded"],
    ),
    "asks for nothing of a plan with less than the default": (
        {}, a_plan(bot={"maxCPU": "0.1", "maxMemory": "128Mi"}), [], [],
    ),
    "a backup has room beside its bot": (
        BACKED_UP | resources("requests", cpu="1.95"), SMALL_PLAN, older(1, "2"), [],
    ),
    "a backup has no room beside its bot": (
        BACKED_UP | resources("requests", cpu="1.951"), SMALL_PLAN, older(1, "2"),
        ["QuotaExceeded"],
    ),
    "plan without classes": (
        {"storage": {"size": "1Gi"}}, NO_STORAGE, [], ["StorageClassNotAllowed"],
    ),
    "small configuration": ({"runtimeConfig": {"a": "x" * 65000}}, SMALL_PLAN, [], []),
    "large configuration": (
        {"runtimeConfig": {"a": "x" * 65536}}, SMALL_PLAN, [], ["ConfigurationTooLarge"],
    ),
    "a tag where digests are demanded": (
        {"image": "registry.example/sniperforge/grid:1"}, FIXED_PLAN, [], ["ImageNotAllowed"],
    ),
    "a version where digests are demanded": ({}, FIXED_PLAN, [], ["ImageNotAllowed"]),
    "a digest where digests are demanded": (
        {"image": f"registry.example/sniperforge/grid:1@{DIGEST}"}, FIXED_PLAN, [], [],
    ),
    "everything is wrong": (
        {"image": "evil.example/x:1", "replicas": 9} | resources("limits", cpu="9"),
        SMALL_PLAN, older(2, "2"),
        ["ImageNotAllowed", "BotLimitReached", "ReplicaLimitReached", "BotTooLarge",
         "QuotaExceeded"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bot_may_run_or_is_told_why_not(case: str) -> None:
    spec, plan, before, expected = CASES[case]

    found = judge(spec, rights_of(plan), before)

    assert [finding.reason for finding in found] == expected
    assert all(finding.message for finding in found)


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("registry.example/sniperforge/grid:1.9.0", True),
        (f"registry.example/sniperforge/grid@{DIGEST}", True),
        (f"registry.example/sniperforge/a/b:1@{DIGEST}", True),
        ("registry.example/sniperforge:1", True),
        ("sniperforge/bot:2.4.1", True),
        ("registry.example/sniperforge-evil/grid:1", False),
        ("registry.example/sniperforge/../evil/grid:1", False),
        ("registry.example/other/grid:1", False),
        ("registry.example.evil.com/sniperforge/grid:1", False),
        ("evil.example/registry.example/sniperforge/grid:1", False),
        ("registry.example:5000/sniperforge/grid:1", False),
        ("sniperforge/bot-evil:1", False),
    ],
)
def test_an_image_comes_from_a_registry_of_the_plan(image: str, *, allowed: bool) -> None:
    assert (judge({"image": image}, rights_of(a_plan())) == []) is allowed


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("registry.example/any/grid:1", True),
        ("registry.example/grid:1", True),
        ("registry.example:5000/any/grid:1", False),
        ("registry.example:1/grid", False),
    ],
)
def test_another_port_of_an_allowed_host_is_another_registry(image: str, *, allowed: bool) -> None:
    rights = rights_of(a_plan(imageRegistries=["registry.example"]))

    assert (judge({"image": image}, rights) == []) is allowed


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, ("250m", "256Mi", "500m", "512Mi")),
        (resources("requests", cpu="1", memory="1Gi"), ("1", "1Gi", "2", "2Gi")),
        (resources("requests", cpu="3", memory="6Gi"), ("3", "6Gi", "4", "8Gi")),
        (resources("limits", cpu="100m", memory="64Mi"), ("100m", "64Mi", "100m", "64Mi")),
        (resources("limits", cpu="4"), ("250m", "256Mi", "4", "512Mi")),
    ],
    ids=[
        "nothing: the plan's default, twice that as limit",
        "requests: twice that as limit",
        "large requests: the plan's maximum as limit",
        "limits below the default lower the request",
        "one limit",
    ],
)
def test_size(spec: dict[str, Any], expected: tuple[str, str, str, str]) -> None:
    size = sizing(a_bot(**spec), a_plan())

    assert (size.cpu, size.memory, size.cpu_limit, size.memory_limit) == expected


def test_the_share_of_a_bot_is_that_of_its_largest_scale() -> None:
    spec = a_bot(**resources("requests", cpu="500m", memory="1Gi"), **scaled(4))

    claimed = share("grid-1", spec, a_plan())

    assert claimed == a_share("grid-1", "2", 4 * 2**30, 0)


def test_the_message_tells_what_is_free() -> None:
    found = judge(resources("requests", cpu="2"), rights_of(SMALL_PLAN), older(1, "3"))

    assert found[0].message == (
        "The bot asks for 2 cpu at full scale and 1 of the tenant's 4 are free; lower its "
        "resources or replicas, or change the tenant's plan"
    )


def test_the_image_is_the_operators_own_unless_one_is_named() -> None:
    assert image_of(a_bot(), REPOSITORY) == "sniperforge/bot:2.4.1"
    assert image_of(a_bot(image="registry.example/x/y:1"), REPOSITORY) == "registry.example/x/y:1"
