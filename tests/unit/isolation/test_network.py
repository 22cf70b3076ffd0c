"""What the caller of the network probe found, by its exit code."""

from __future__ import annotations

import pytest

from botplane.isolation.attacks import Verdict
from botplane.isolation.network import ENFORCED, OPEN, UNKNOWN, judged

PYTHON_FAILED, KILLED = 1, 137


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (ENFORCED, Verdict.REFUSED),
        (OPEN, Verdict.BREACH),
        (UNKNOWN, Verdict.SKIPPED),
        (PYTHON_FAILED, Verdict.SKIPPED),
        (KILLED, Verdict.SKIPPED),
    ],
)
def test_only_a_caller_that_reached_its_control_says_anything(code: int, verdict: Verdict) -> None:
    assert judged(code).verdict is verdict
