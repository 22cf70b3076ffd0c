"""Conditions, judged by what waiting tools make of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botplane.api.conditions import ConditionStatus, Outcome, Verdict, merge, summarize
from tests.support import kstatus

NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(minutes=5)
WORDS = st.sampled_from(["Accepted", "BillingReady", "Isolated", "QuotaApplied", "Zoned"])
TEXTS = st.sampled_from(["", "Well", "é" * 1500])
VERDICTS = st.lists(
    st.builds(Verdict, WORDS, st.sampled_from(ConditionStatus), WORDS, TEXTS),
    unique_by=lambda v: v.type,
    max_size=8,
)


def an_object(conditions: list[dict[str, Any]], generation: int = 3) -> dict[str, Any]:
    status = {"observedGeneration": generation, "conditions": conditions}
    return {"kind": "Tenant", "metadata": {"generation": generation}, "status": status}


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome.READY, kstatus.Status.CURRENT),
        (Outcome.IN_PROGRESS, kstatus.Status.IN_PROGRESS),
        (Outcome.STALLED, kstatus.Status.FAILED),
    ],
)
def test_tools_wait_succeed_or_give_up_as_the_outcome_says(
    outcome: Outcome, expected: kstatus.Status
) -> None:
    verdicts = summarize(outcome, "Provisioned", "Why it is so")

    conditions = merge([], verdicts, 3, NOON)

    assert kstatus.compute(an_object(conditions)).status is expected


def test_the_text_of_a_stalled_object_is_what_the_tool_prints() -> None:
    verdicts = summarize(Outcome.STALLED, "PlanNotFound", 'Plan "gold" does not exist')

    conditions = merge([], verdicts, 3, NOON)

    assert kstatus.compute(an_object(conditions)).message == 'Plan "gold" does not exist'


@given(st.sampled_from(Outcome), st.sampled_from(Outcome), VERDICTS)
def test_no_trace_of_the_last_outcome_is_left(
    first: Outcome, second: Outcome, others: list[Verdict]
) -> None:
    before = merge([], [*summarize(first, "First", "first"), *others], 3, NOON)

    after = merge(before, summarize(second, "Second", "second"), 3, LATER)

    abnormal = {"Ready": set(), "InProgress": {"Reconciling"}, "Stalled": {"Stalled"}}
    assert {c["type"] for c in after} == {"Ready"} | abnormal[second.value]


@given(VERDICTS, VERDICTS)
def test_the_time_of_a_transition_moves_only_with_the_status(
    first: list[Verdict], second: list[Verdict]
) -> None:
    before = merge([], first, 1, NOON)

    after = merge(before, second, 2, LATER)

    old = {c["type"]: c["status"] for c in before}
    for condition in after:
        kept = old.get(condition["type"]) == condition["status"]
        assert condition["lastTransitionTime"] == (
            "2026-10-01T12:00:00Z" if kept else "2026-10-01T12:05:00Z"
        )


def test_a_new_reason_alone_is_not_a_transition() -> None:
    before = merge([], summarize(Outcome.STALLED, "PlanNotFound", "no plan"), 1, NOON)

    after = merge(before, summarize(Outcome.STALLED, "CurrencyMismatch", "euro"), 2, LATER)

    assert after == [
        {
            "type": "Ready",
            "status": "False",
            "observedGeneration": 2,
            "lastTransitionTime": "2026-10-01T12:00:00Z",
            "reason": "CurrencyMismatch",
            "message": "euro",
        },
        {
            "type": "Stalled",
            "status": "True",
            "observedGeneration": 2,
            "lastTransitionTime": "2026-10-01T12:00:00Z",
            "reason": "CurrencyMismatch",
            "message": "euro",
        },
    ]


@given(VERDICTS)
def test_ready_stands_first_and_every_message_fits_the_schema(verdicts: list[Verdict]) -> None:
    conditions = merge([], [*verdicts, *summarize(Outcome.READY, "Well", "well")], 1, NOON)

    assert conditions[0]["type"] == "Ready"
    assert [c["type"] for c in conditions[1:]] == sorted(c["type"] for c in conditions[1:])
    assert all(len(c["message"]) <= 1024 for c in conditions)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"generation": 1, "deletionTimestamp": "2026-10-01T12:00:00Z"}, "Terminating"),
        ({"generation": 1}, "InProgress"),
    ],
    ids=["deleted", "not visited yet"],
)
def test_the_port_of_kstatus_knows_the_states_before_and_after_ours(
    body: dict[str, Any], expected: str
) -> None:
    unvisited = {"kind": "Tenant", "metadata": body, "status": {"observedGeneration": -1}}

    assert kstatus.compute(unvisited).status == expected
