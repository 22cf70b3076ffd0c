"""The conditions of a bot: all of them on every pass, and none of them a lie."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botplane.api.conditions import Finding, merge
from botplane.bots.status import Progress, bot_verdicts
from botplane.errors import Rejected, Retryable
from botplane.kube.resources import Ref
from tests.support import kstatus

NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
KNOWN = {
    "Ready", "WithinPlan", "ConfigurationReady", "WorkloadAvailable", "Exposed", "BackupScheduled",
    "Suspended",
}  # fmt: skip
RUNNING = {"replicas": 2, "readyReplicas": 2, "updatedReplicas": 2}
WAITING = Finding("TenantNotReady", "Tenant acme is not set up yet")
NO_SECRET = Finding("SecretNotFound", "Secret exchange-keys does not exist")
TOO_MANY = Finding("BotLimitReached", "This is bot 3")


def ref(kind: str) -> Ref:
    return Ref(kind, "tenant-acme", "arb-1")


def conditions(progress: Progress) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in merge([], bot_verdicts(progress), 1, NOON)}


def tools_see(progress: Progress) -> str:
    status = {"observedGeneration": 1, "conditions": list(conditions(progress).values())}
    body = {"kind": "BotDeployment", "metadata": {"generation": 1}, "status": status}
    return kstatus.compute(body).status


def stuck(type_: str, status: str) -> dict[str, Any]:
    return {"conditions": [{"type": type_, "status": status, "message": "exceeded quota"}]}


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "runs": ({"workload": RUNNING}, "Current", "Running"),
    "nothing observed yet": ({}, "InProgress", "PodsStarting"),
    "starts": ({"workload": RUNNING | {"readyReplicas": 1}}, "InProgress", "PodsStarting"),
    "not looked at": ({"workload": RUNNING | {"isBehind": True}}, "InProgress", "PodsStarting"),
    "rolls out": ({"workload": RUNNING | {"updatedReplicas": 1}}, "InProgress", "PodsStarting"),
    "pods are refused": (
        {"workload": RUNNING | stuck("ReplicaFailure", "True")}, "InProgress", "PodsNotCreated",
    ),
    "pods do not get ready": (
        {"workload": RUNNING | stuck("Progressing", "False")}, "InProgress", "PodsNotReady",
    ),
    "is suspended": ({"suspended": "spec.suspend is true"}, "Current", "Suspended"),
    "tenant is not set up": ({"waiting": WAITING}, "InProgress", "TenantNotReady"),
    "beyond the plan": ({"findings": [TOO_MANY]}, "Failed", "BotLimitReached"),
    "beyond the plan, and runs still": (
        {"findings": [TOO_MANY], "workload": RUNNING}, "Failed", "BotLimitReached",
    ),
    "no replica is wanted": ({"rests": True}, "Current", "ScaledToZero"),
    "the last replicas stop": (
        {"rests": True, "workload": {"replicas": 1, "readyReplicas": 0}},
        "InProgress", "PodsStarting",
    ),
    "secret is missing": ({"findings": [NO_SECRET]}, "Failed", "SecretNotFound"),
    "write is refused": (
        {"failed": {ref("Service"): Rejected("InvalidObject", "no")}, "workload": RUNNING},
        "Failed", "InvalidObject",
    ),
    "write has to wait": (
        {"failed": {ref("Service"): Retryable("APIServerError", "no")}, "workload": RUNNING},
        "InProgress", "APIServerError",
    ),
    "one is refused, one has to wait": (
        {"failed": {ref("Service"): Retryable("APIServerError", "no"),
                    ref("ConfigMap"): Rejected("Conflict", "no")}},
        "Failed", "Conflict",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_tools_and_people_see_the_same(case: str) -> None:
    given_, expected, reason = CASES[case]
    progress = Progress(**given_)

    assert tools_see(progress) == expected
    assert conditions(progress)["Ready"]["reason"] == reason


FINDINGS = st.sampled_from([NO_SECRET, TOO_MANY, WAITING])
ERRORS = st.sampled_from([Rejected("Conflict", "no"), Retryable("APIServerError", "no")])
COUNTS = st.integers(0, 3)
PROGRESS = st.builds(
    Progress,
    findings=st.lists(FINDINGS, max_size=2),
    waiting=st.none() | FINDINGS,
    failed=st.dictionaries(st.sampled_from(["ConfigMap", "Deployment"]).map(ref), ERRORS),
    suspended=st.sampled_from(["", "spec.suspend is true"]),
    workload=st.fixed_dictionaries(
        {}, optional={"replicas": COUNTS, "readyReplicas": COUNTS, "updatedReplicas": COUNTS}
    ),
)


@given(PROGRESS)
def test_every_condition_is_there_whatever_happened(progress: Progress) -> None:
    found = conditions(progress)

    abnormal = {"InProgress": {"Reconciling"}, "Failed": {"Stalled"}, "Current": set()}
    assert set(found) == KNOWN | abnormal[tools_see(progress)]
    assert len(bot_verdicts(progress)) == len(found)


@pytest.mark.parametrize(
    ("progress", "type_"),
    [
        (Progress(waiting=WAITING), "WithinPlan"),
        (Progress(findings=[Finding("TenantNotFound", "no tenant")]), "WithinPlan"),
        (Progress(waiting=WAITING), "ConfigurationReady"),
        (Progress(waiting=WAITING), "WorkloadAvailable"),
        (Progress(suspended="spec.suspend is true"), "WorkloadAvailable"),
    ],
    ids=["plan unread", "tenant unknown", "not looked at", "not applied", "nothing to run"],
)
def test_what_nobody_has_judged_is_unknown(progress: Progress, type_: str) -> None:
    assert conditions(progress)[type_]["status"] == "Unknown"


@pytest.mark.parametrize("kind", ["ConfigMap", "Secret"])
def test_a_configuration_that_was_not_written_is_not_in_place(kind: str) -> None:
    progress = Progress(failed={ref(kind): Rejected("Conflict", "exists")}, workload=RUNNING)

    condition = conditions(progress)["ConfigurationReady"]

    assert (condition["status"], condition["reason"]) == ("False", "Conflict")


@pytest.mark.parametrize(
    ("kind", "type_"),
    [("Ingress", "Exposed"), ("NetworkPolicy", "Exposed"), ("CronJob", "BackupScheduled")],
)
def test_what_was_asked_for_and_refused_is_not_said_to_be_there(kind: str, type_: str) -> None:
    wanted = Progress(public_hosts=("http.a.acme.example",), backup_schedule="0 3 * * *")
    assert conditions(wanted)[type_]["status"] == "True"
    name = "arb-1.backup" if kind == "CronJob" else "arb-1"
    wanted.failed = {Ref(kind, "tenant-acme", name): Rejected("InvalidObject", "no")}

    condition = conditions(wanted)[type_]

    assert (condition["status"], condition["reason"]) == ("False", "InvalidObject")


def test_without_a_volume_for_them_no_backups_are_said_to_be_made() -> None:
    volume = Ref("PersistentVolumeClaim", "tenant-acme", "arb-1.backup")
    refused = Progress(
        backup_schedule="0 3 * * *", failed={volume: Retryable("QuotaExceeded", "no")}
    )

    condition = conditions(refused)["BackupScheduled"]

    assert (condition["status"], condition["reason"]) == ("False", "QuotaExceeded")


def test_a_failed_write_is_tried_again_only_if_that_may_help() -> None:
    assert Progress(failed={ref("Service"): Rejected("Conflict", "no")}).retry is None
    waiting = Retryable("APIServerError", "no")
    assert Progress(failed={ref("Service"): waiting}).retry is waiting
