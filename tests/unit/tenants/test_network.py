"""What a Tenant says of the network, by what the last probe recorded, and when it warns."""

from __future__ import annotations

from typing import Any

import pytest

from botplane.api.conditions import Finding
from botplane.tenants.network import network_verdict, news

RECORDS: dict[str, tuple[dict[str, Any] | None, str, str]] = {
    "no record": (None, "Unknown", "NotProbed"),
    "an empty record": ({}, "Unknown", "NotProbed"),
    "a record without its key": ({"data": {"probedTime": "x"}}, "Unknown", "NotProbed"),
    "null for data": ({"data": None}, "Unknown", "NotProbed"),
    "enforced": ({"data": {"networkPolicies": "Enforced"}}, "True", "PoliciesEnforced"),
    "ignored": ({"data": {"networkPolicies": "Ignored"}}, "False", "ProbeFailed"),
    "small letters prove nothing": (
        {"data": {"networkPolicies": "enforced"}}, "Unknown", "NotProbed",
    ),
    "an empty word proves nothing": ({"data": {"networkPolicies": ""}}, "Unknown", "NotProbed"),
    "a mebibyte proves nothing": (
        {"data": {"networkPolicies": "Enforced" * 2**17}}, "Unknown", "NotProbed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RECORDS)
def test_only_a_probe_that_did_not_get_through_proves_isolation(case: str) -> None:
    record, status, reason = RECORDS[case]

    verdict = network_verdict(record)

    assert (verdict.type, verdict.status, verdict.reason) == ("NetworkIsolation", status, reason)
    assert len(verdict.message) < 300


def test_a_record_that_nobody_understands_is_shown() -> None:
    verdict = network_verdict({"data": {"networkPolicies": "maybe"}})

    assert 'networkPolicies "maybe", not Enforced or Ignored' in verdict.message


def test_the_time_of_a_probe_changes_no_condition() -> None:
    first, again = (
        network_verdict({"data": {"networkPolicies": "Enforced", "probedTime": time}})
        for time in ("2026-10-01T12:00:00Z", "2026-10-02T12:00:00Z")
    )

    assert first == again


def status(value: str) -> dict[str, Any]:
    return {"conditions": [{"type": "NetworkIsolation", "status": value}]}


@pytest.mark.parametrize(
    ("recorded", "before", "warns"),
    [
        ("Ignored", status("True"), True),
        ("Ignored", status("Unknown"), True),
        ("Ignored", {}, True),
        ("Ignored", status("False"), False),
        ("Enforced", status("False"), False),
        ("maybe", status("True"), False),
    ],
)
def test_a_network_that_begins_to_ignore_policies_is_told_once(
    recorded: str, before: dict[str, Any], *, warns: bool
) -> None:
    verdict = network_verdict({"data": {"networkPolicies": recorded}})

    told = Finding(verdict.reason, verdict.message) if warns else None
    assert news(verdict, before) == told
