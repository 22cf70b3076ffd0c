"""What the oracle of the fault tests counts as created and deleted, from the audit log."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from tests.faults.oracle import Changes, counted
from tests.support.controlplane import audit
from tests.support.installation import OPERATOR_USER

NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
ONCE = Changes(Counter({"create secrets bot": 1, "delete configmaps old": 1}), Counter())


def asked(verb: str, resource: str, name: str, code: int, subresource: str = "") -> audit.Request:
    return audit.Request(
        user=OPERATOR_USER,
        verb=verb,
        resource=resource,
        subresource=subresource,
        namespace="tenant-acme",
        name=name,
        code=code,
        arrived_at=NOON,
        at=NOON,
    )


MADE = asked("patch", "secrets", "bot", 201)
KEPT = asked("patch", "secrets", "bot", 200)
LOST = asked("patch", "secrets", "bot", 504)
GONE = asked("delete", "configmaps", "old", 200)
GOING_LOST = asked("delete", "configmaps", "old", 504)
CASES: dict[str, tuple[list[audit.Request], list[str]]] = {
    "as undisturbed": ([MADE, GONE], []),
    "asked twice for what is going": ([MADE, GONE, GONE], []),
    "killed while it was made, and it was made": ([LOST, KEPT, GONE], []),
    "killed while it was made, and it was not": ([LOST, MADE, GONE], []),
    "killed while it was deleted, and it was": ([MADE, GOING_LOST], []),
    "made twice": ([MADE, MADE, GONE], ["too often: {'create secrets bot': 1}"]),
    "killed and made twice": (
        [LOST, MADE, MADE, GONE], ["too often: {'create secrets bot': 1}"],
    ),
    "never made": ([KEPT, GONE], ["too seldom: {'create secrets bot': 1}"]),
    "a lost status makes nothing": (
        [asked("patch", "secrets", "bot", 504, "status"), GONE],
        ["too seldom: {'create secrets bot': 1}"],
    ),
    "another was lost": (
        [asked("patch", "services", "bot", 504), GONE],
        ["too seldom: {'create secrets bot': 1}"],
    ),
    "never deleted": ([MADE], ["too seldom: {'delete configmaps old': 1}"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_was_done_too_often_or_too_seldom_is_seen(case: str) -> None:
    requests, wrong = CASES[case]

    assert counted(requests, "acme").difference(ONCE) == wrong
