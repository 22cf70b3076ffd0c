"""Every row of the attack list and of the benchmark, with the operator running and killed."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from botplane.isolation import documents, probe
from botplane.isolation.attacks import Outcome, Scene, Verdict
from tests.isolation.conftest import Stage
from tests.support.installation import BOTPLANE, ROOT

SCENE = Scene(
    tenant="a",
    namespace="tenant-a",
    image="registry.example/bot:1",
    bot="bot",
    pod="bot-1",
    service="bot",
    storage_class="standard",
    host_domain="a.bots.example",
)
ROWS = documents.all_attacks(SCENE)
RUN = [(row.id, row.title) for row in ROWS if row.steps]
NOT_RUN = [row for row in ROWS if not row.steps]


@pytest.mark.parametrize("row", RUN, ids=[f"{id_} {title}" for id_, title in RUN])
def test_the_attack_is_refused(
    outcomes: dict[tuple[str, str], Outcome], row: tuple[str, str]
) -> None:
    outcome = outcomes[row]

    assert outcome.details == ()
    assert outcome.verdict in {Verdict.REFUSED, Verdict.DEVIATES}
    assert outcome.calls > 0


def test_no_row_is_left_out_and_what_is_not_run_says_why() -> None:
    assert len({(row.id, row.title) for row in ROWS}) == len(ROWS)
    assert {row.id for row in ROWS} >= {f"ISO-MTB-{number:02}" for number in range(1, 24)}
    assert all(row.verdict and row.reason for row in NOT_RUN)


def test_the_policies_have_no_type_errors(stage: Stage) -> None:
    policies = stage.world.installed.get("validatingadmissionpolicies")["items"]

    warnings = [
        (policy["metadata"]["name"], warning["warning"])
        for policy in policies
        for warning in policy["status"].get("typeChecking", {}).get("expressionWarnings", ())
    ]

    assert len(policies) == 19
    assert warnings == []


def test_the_command_attacks_and_leaves_nothing_behind(stage: Stage) -> None:
    installed = stage.world.installed
    kept = installed.get("roles,rolebindings", "-n", f"tenant-{stage.attacker}")["items"]

    done = subprocess.run(
        [BOTPLANE, "isolation-check", "--tenant", stage.attacker, "-o", "json"],
        env=os.environ | {"KUBECONFIG": str(installed.cluster.kubeconfigs["admin"])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert {row["verdict"] for row in rows} >= {"refused", "not offered"}
    assert [row for row in rows if row["verdict"] == "BREACH"] == []
    left = installed.get("roles,rolebindings", "-n", f"tenant-{stage.attacker}")["items"]
    assert [o["metadata"]["name"] for o in left] == [o["metadata"]["name"] for o in kept]


def test_without_its_policies_the_list_finds_the_breaches(stage: Stage) -> None:
    installed = stage.world.installed
    bindings = installed.get("validatingadmissionpolicybindings")["items"]
    names = [
        b["metadata"]["name"] for b in bindings if b["metadata"]["name"].startswith("botplane")
    ]
    installed.kubectl("delete", "validatingadmissionpolicybindings", *names)

    try:

        def breaches() -> set[str] | None:
            found = probe.check(stage.api, stage.attacker)
            ids = {o.attack.id for o in found if o.verdict is Verdict.BREACH}
            return ids if "ISO-036" in ids else None

        found = stage.world.eventually(breaches, "the policies are gone")
    finally:
        installed.kubectl("apply", "--server-side", "-f", str(ROOT / "manifests" / "install"))

    assert found >= {
        "ISO-010", "ISO-011", "ISO-012", "ISO-013", "ISO-020", "ISO-021", "ISO-023", "ISO-030",
        "ISO-031", "ISO-032", "ISO-034", "ISO-035", "ISO-036", "ISO-041", "ISO-042", "ISO-054",
        "ISO-056", "ISO-057", "ISO-058", "ISO-060", "ISO-062", "ISO-063", "ISO-075", "ISO-100",
        "ISO-101", "ISO-120", "ISO-124", "ISO-MTB-02", "ISO-MTB-19",
    }  # fmt: skip

    def whole() -> bool:
        return all(outcome.is_good for outcome in probe.check(stage.api, stage.attacker))

    stage.world.eventually(whole, "the policies are back")
