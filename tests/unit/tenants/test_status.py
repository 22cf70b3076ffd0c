"""The conditions of a tenant: all of them on every pass, and none of them a lie."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botplane.api.conditions import Finding, merge
from botplane.errors import Rejected, Retryable
from botplane.kube.resources import Ref
from botplane.tenants.network import ENFORCED, NOT_PROBED, PROBE_FAILED
from botplane.tenants.policy import Suspension
from botplane.tenants.status import Progress, tenant_verdicts
from tests.support import kstatus

NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
KNOWN = {
    "Ready", "NamespaceReady", "QuotaApplied", "IsolationReady", "AccessReady", "BillingReady",
    "WithinPlan", "WithinLimits", "Suspended", "CapacityReserved", "NetworkIsolation",
}  # fmt: skip
NO_PLAN = Finding("PlanNotFound", 'Plan "gold" does not exist')
TOO_MANY = Finding("BotLimitReached", "11 bots are declared and 10 are allowed")
TOO_HIGH = Finding("OverrideNotAllowed", "spec.overrides.maxBots is 99")
LATER, NEVER = Retryable("APIServerError", "later"), Rejected("Conflict", "exists")
NO_ROOM = Finding("InsufficientCapacity", "The nodes cannot hold it")
BY_USER = Suspension("User", "spec.suspend is true")
SPACE = Ref("Namespace", "", "tenant-acme")


def ref(kind: str) -> Ref:
    return Ref(kind, "tenant-acme", "x")


def conditions(progress: Progress) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in merge([], tenant_verdicts(progress), 1, NOON)}


def tools_see(progress: Progress) -> str:
    status = {"observedGeneration": 1, "conditions": list(conditions(progress).values())}
    body = {"kind": "Tenant", "metadata": {"generation": 1}, "status": status}
    return kstatus.compute(body).status


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "all is well": ({}, "Current", "Provisioned"),
    "suspended": ({"suspended": (BY_USER,)}, "Current", "Suspended"),
    "no plan": ({"blocked": NO_PLAN}, "Failed", "PlanNotFound"),
    "more bots than allowed fails the bots, not the tenant": (
        {"beyond_plan": [TOO_MANY]}, "Current", "Provisioned",
    ),
    "an override too high": ({"beyond_plan": [TOO_HIGH]}, "Failed", "OverrideNotAllowed"),
    "quota not computed": ({"quota_computed": False}, "InProgress", "QuotaNotComputed"),
    "billing is away": ({"billing": LATER}, "InProgress", "APIServerError"),
    "billing refuses": ({"billing": NEVER}, "Failed", "Conflict"),
    "a write is refused": ({"failed": {ref("RoleBinding"): NEVER}}, "Failed", "Conflict"),
    "a write has to wait": ({"failed": {SPACE: LATER}}, "InProgress", "APIServerError"),
    "a network that ignores policies fails no tenant that is there": (
        {"network": PROBE_FAILED}, "Current", "Provisioned",
    ),
    "a strict cluster without room": (
        {"capacity": NO_ROOM, "waits_for": NO_ROOM}, "InProgress", "InsufficientCapacity",
    ),
    "a strict cluster whose network nobody probed": (
        {"waits_for": Finding(NOT_PROBED.reason, NOT_PROBED.message)}, "InProgress", "NotProbed",
    ),
    "one refused, one has to wait": (
        {"failed": {SPACE: LATER}, "billing": NEVER}, "Failed", "Conflict",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_tools_and_people_see_the_same(case: str) -> None:
    given_, expected, reason = CASES[case]
    progress = Progress(**given_)

    assert tools_see(progress) == expected
    assert conditions(progress)["Ready"]["reason"] == reason


KINDS = ["Namespace", "ConfigMap", "NetworkPolicy", "ResourceQuota", "LimitRange", "RoleBinding"]
ERRORS = st.sampled_from([LATER, NEVER])
PROGRESS = st.builds(
    Progress,
    failed=st.dictionaries(st.sampled_from(KINDS).map(ref), ERRORS, max_size=3),
    blocked=st.none() | st.just(NO_PLAN),
    billing=st.none() | ERRORS,
    quota_computed=st.booleans(),
    beyond_plan=st.lists(st.sampled_from([TOO_MANY, TOO_HIGH]), max_size=2),
    suspended=st.sampled_from([(), (BY_USER,)]),
    network=st.sampled_from([NOT_PROBED, ENFORCED, PROBE_FAILED]),
    capacity=st.none() | st.just(NO_ROOM),
    waits_for=st.none() | st.just(NO_ROOM),
)


@given(PROGRESS)
def test_every_condition_is_there_whatever_happened(progress: Progress) -> None:
    found = conditions(progress)

    abnormal = {"InProgress": {"Reconciling"}, "Failed": {"Stalled"}, "Current": set()}
    assert set(found) == KNOWN | abnormal[tools_see(progress)]
    assert len(tenant_verdicts(progress)) == len(found)


@pytest.mark.parametrize(
    ("kind", "type_"),
    [
        ("ResourceQuota", "QuotaApplied"),
        ("LimitRange", "QuotaApplied"),
        ("NetworkPolicy", "IsolationReady"),
        ("ConfigMap", "IsolationReady"),
        ("RoleBinding", "AccessReady"),
        ("ServiceAccount", "AccessReady"),
    ],
)
def test_one_failed_write_fails_its_own_condition_and_no_other(kind: str, type_: str) -> None:
    found = conditions(Progress(failed={ref(kind): NEVER}))

    false = {t for t, c in found.items() if c["status"] == "False"}
    assert false == {"Ready", type_, "Suspended"}


def test_without_a_namespace_the_other_steps_have_not_been_tried() -> None:
    found = conditions(Progress(failed={SPACE: LATER}))

    steps = ("NamespaceReady", "QuotaApplied", "IsolationReady", "AccessReady")
    assert [found[t]["status"] for t in steps] == ["False", "Unknown", "Unknown", "Unknown"]


def test_nobody_is_within_a_plan_that_does_not_exist() -> None:
    assert conditions(Progress(blocked=NO_PLAN))["WithinPlan"]["status"] == "Unknown"


def test_all_that_is_beyond_the_plan_is_named_and_no_quota_is_said_to_be_the_plans() -> None:
    found = conditions(
        Progress(
            beyond_plan=[Finding("BotLimitReached", "3 bots"), Finding("OverrideNotAllowed", "9")],
            quota_excess=Finding("QuotaOverPlan", "cpu 5 of 2"),
        )
    )

    within = found["WithinPlan"]
    assert (within["status"], within["reason"]) == ("False", "BotLimitReached")
    assert within["message"] == "3 bots. 9. cpu 5 of 2"
    assert found["QuotaApplied"]["status"] == "True"
    assert "beyond" in found["QuotaApplied"]["message"]


def test_a_retry_is_asked_for_only_if_it_may_help() -> None:
    assert Progress(billing=LATER).retry is LATER
    assert Progress(failed={SPACE: LATER}).retry is LATER
    assert Progress(billing=NEVER, failed={SPACE: NEVER}).retry is None
