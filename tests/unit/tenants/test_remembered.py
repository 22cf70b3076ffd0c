"""What an operator keeps to that has not heard from Postgres yet."""

from __future__ import annotations

from botplane.api.conditions import ConditionStatus, Verdict
from botplane.tenants.accounts import AccountState, remembered


def test_who_is_suspended_for_money_stays_so() -> None:
    status = {
        "suspendedFor": ["User", "SpendLimit", "PaymentOverdue"],
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Suspended", "message": "stopped"},
            {"type": "WithinLimits", "status": "False", "reason": "R", "message": "m"},
        ],
        "usage": {"cost": "1.00"},
    }

    # What the user asks for is read from the spec, and only there.
    assert remembered(status) == AccountState(
        holds=frozenset({"SpendLimit", "PaymentOverdue"}),
        limits=Verdict("WithinLimits", ConditionStatus.FALSE, "R", "m"),
        usage={"cost": "1.00"},
    )


def test_of_a_tenant_that_was_never_seen_nothing_is_remembered() -> None:
    assert remembered({"observedGeneration": -1}) == AccountState()
