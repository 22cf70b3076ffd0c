"""What a tenant may have: its plan, lowered at will and raised as far as the plan lets it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from botplane.tenants.policy import (
    deletion_blocked,
    deletion_held,
    entitlements,
    plan_findings,
    plan_not_found,
    spec_findings,
)
from tests.support.declared import a_plan, a_tenant

CEILED = {"overrideCeilings": {"maxBots": 20, "maxReplicas": 8}}


@pytest.mark.parametrize(
    ("overrides", "plan", "bots", "replicas", "reasons"),
    [
        ({}, {}, 10, 4, []),
        ({"maxBots": 3, "maxReplicas": 1}, {}, 3, 1, []),
        ({"maxBots": 0}, {}, 0, 4, []),
        ({"maxBots": 12}, {}, 10, 4, ["OverrideNotAllowed"]),
        ({"maxBots": 12, "maxReplicas": 6}, CEILED, 12, 6, []),
        ({"maxBots": 20}, CEILED, 20, 4, []),
        ({"maxBots": 21}, CEILED, 20, 4, ["OverrideNotAllowed"]),
        (
            {"maxBots": 99, "maxReplicas": 99},
            CEILED,
            20,
            8,
            ["OverrideNotAllowed", "OverrideNotAllowed"],
        ),
        ({"maxBots": 7}, {"overrideCeilings": {"maxBots": 5}}, 7, 4, []),
    ],
    ids=[
        "none",
        "lower",
        "to nothing",
        "higher without a ceiling",
        "higher below the ceilings",
        "up to the ceiling",
        "beyond the ceiling",
        "both beyond",
        "a ceiling below the plan takes nothing away",
    ],
)
def test_overrides(
    overrides: dict[str, int], plan: dict[str, Any], bots: int, replicas: int, reasons: list[str]
) -> None:
    spec, offer = a_tenant(overrides=overrides), a_plan(**plan)

    rights = entitlements(spec, offer)

    assert (rights.max_bots, rights.max_replicas) == (bots, replicas)
    assert [f.reason for f in plan_findings(spec, offer, 0)] == reasons


@pytest.mark.parametrize(
    ("wanted", "granted", "reasons"),
    [
        ([], ("registry.example/sniperforge",), []),
        (["registry.example/sniperforge/acme"], ("registry.example/sniperforge/acme",), []),
        (["evil.example"], (), ["RegistryNotAllowed"]),
        (
            ["evil.example", "registry.example/sniperforge"],
            ("registry.example/sniperforge",),
            ["RegistryNotAllowed"],
        ),
        (["registry.example"], (), ["RegistryNotAllowed"]),
        (["registry.example/sniperforge-evil"], (), ["RegistryNotAllowed"]),
    ],
    ids=["the plan's", "a part of the plan's", "another", "one of two", "wider", "alike"],
)
def test_registries_are_granted_within_the_plans(
    wanted: list[str], granted: tuple[str, ...], reasons: list[str]
) -> None:
    spec, plan = a_tenant(configuration={"imageRegistries": wanted}), a_plan()

    assert entitlements(spec, plan).image_registries == granted
    assert [f.reason for f in plan_findings(spec, plan, 0)] == reasons


@pytest.mark.parametrize(("bots", "reasons"), [(10, []), (11, ["BotLimitReached"])])
def test_bots_beyond_the_limit_are_told(bots: int, reasons: list[str]) -> None:
    assert [f.reason for f in plan_findings(a_tenant(), a_plan(), bots)] == reasons


@pytest.mark.parametrize(
    ("billing", "reasons"),
    [
        ({}, []),
        ({"timeZone": "Europe/Madrid"}, []),
        ({"currency": "EUR"}, ["CurrencyMismatch"]),
        ({"timeZone": "Europe/Madrit"}, ["UnknownTimeZone"]),
        ({"timeZone": "Europe"}, ["UnknownTimeZone"]),
        ({"currency": "EUR", "timeZone": "Mars"}, ["CurrencyMismatch", "UnknownTimeZone"]),
    ],
    ids=["default", "zone", "currency", "misspelt zone", "folder of zones", "both"],
)
def test_what_must_be_changed_before_anything_is_set_up(
    billing: dict[str, str], reasons: list[str]
) -> None:
    assert [f.reason for f in spec_findings(a_tenant(billing=billing), a_plan())] == reasons


def test_a_missing_plan_is_told_with_those_that_exist() -> None:
    assert plan_not_found("gold", ["starter", "professional"]).message == (
        'Plan "gold" does not exist (plans: professional, starter); create it or change '
        "spec.planRef.name"
    )


@pytest.mark.parametrize(
    ("deletion", "named"),
    [
        ({}, "spec.deletion.protection is Enabled; set it to Disabled"),
        ({"protection": "Disabled"}, None),
        ({"protection": "Disabled", "legalHold": "case 47"}, "spec.deletion.legalHold is case 47;"),
    ],
    ids=["protected", "open", "on hold"],
)
def test_a_tenant_that_may_not_go_is_held_and_told_why(
    deletion: dict[str, Any], named: str | None
) -> None:
    held = deletion_held(a_tenant(deletion=deletion))

    assert (held is None) if named is None else (held is not None and named in held.message)


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ([("a", None, [])], None),
        ([("a", 5, ["example.com/x"])], None),
        ([("a", 15, [])], "Deletion waits for Pod a"),
        (
            [("b", 15, ["botplane.io/metering", "example.com/x"]), ("a", 15, []), ("c", 5, [])],
            "Deletion waits for Pod a, Pod b (finalizers: botplane.io/metering, example.com/x)",
        ),
        ([(n, 60, []) for n in "edcba"], "Deletion waits for Pod a, Pod b, Pod c and 2 more"),
    ],
)
def test_what_holds_up_a_deletion_longer_than_it_takes_is_named(
    left: list[tuple[str, int | None, list[str]]], message: str | None
) -> None:
    now = datetime(2026, 10, 1, 12, tzinfo=UTC)

    def meta(name: str, asked: int | None, finalizers: list[str]) -> dict[str, Any]:
        at = now - timedelta(seconds=asked or 0)
        gone = {} if asked is None else {"deletionTimestamp": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
        return {"name": name, "finalizers": finalizers} | gone

    found = deletion_blocked("Pod", [meta(*each) for each in left], now)

    assert (None if found is None else found.message) == message
