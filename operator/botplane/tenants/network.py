"""What a Tenant is told of the network: whether it was seen to enforce policies. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from botplane.api import network
from botplane.api.conditions import ConditionStatus, Finding, Verdict, condition_in
from botplane.kube.resources import Manifest

NOT_PROBED: Final = Verdict.waits(
    "NetworkIsolation",
    "NotProbed",
    f"Nobody has tried yet whether the network enforces NetworkPolicies; run {network.COMMAND}",
)
ENFORCED: Final = Verdict.holds(
    "NetworkIsolation",
    "PoliciesEnforced",
    "The network enforces NetworkPolicies, as the last probe found",
)
PROBE_FAILED: Final = Verdict.fails(
    "NetworkIsolation",
    Finding(
        "ProbeFailed",
        "The network ignores NetworkPolicies: a probe reached a pod that they close. Install a "
        f"network plugin that enforces them, then run {network.COMMAND}",
    ),
)
SHOWN_CHARACTERS: Final = 64


def network_verdict(record: Manifest | None) -> Verdict:
    """Return the condition that the recorded outcome of the last probe makes.

    Args:
        record: The ConfigMap `network-isolation`; None when there is none.
    """
    data: dict[str, Any] = (record or {}).get("data") or {}
    found = data.get(network.POLICIES)
    if found is None:
        return NOT_PROBED
    if found == network.ENFORCED:
        return ENFORCED
    if found == network.IGNORED:
        return PROBE_FAILED
    return Verdict.waits(
        "NetworkIsolation",
        "NotProbed",
        f'ConfigMap {network.RECORD} says {network.POLICIES} "{found[:SHOWN_CHARACTERS]}", not '
        f"{network.ENFORCED} or {network.IGNORED}; run {network.COMMAND}",
    )


def news(verdict: Verdict, status: Mapping[str, Any]) -> Finding | None:
    """Return what to warn of when the condition fails and did not in a Tenant's status."""
    before = condition_in(status, verdict.type)
    failed = before is not None and before["status"] == ConditionStatus.FALSE
    if verdict.status is not ConditionStatus.FALSE or failed:
        return None
    return Finding(verdict.reason, verdict.message)
