"""Whatever metering sees of a pod, in whatever order: the truth, or less of it, never more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from botplane.metering.evidence import read_pod
from botplane.metering.policy import Fate, Interval, Quality, Sight, settle
from tests.unit.metering.pods import NOON, a_pod, at, ended, running, waiting

Look = tuple[dict[str, Any], float]


@dataclass(frozen=True, kw_only=True)
class History:
    """The runs of a pod in seconds after noon, and each status with a time when it was true."""

    runs: list[tuple[int, int]]
    looks: list[Look]

    @property
    def final(self) -> Look:
        return self.looks[-1]


@st.composite
def histories(draw: st.DrawFn) -> History:
    runs: list[tuple[int, int]] = []
    looks: list[Look] = [(a_pod(phase="Pending"), 0)]
    now = 0
    for restart in range(draw(st.integers(1, 5))):
        start = now + draw(st.integers(0, 50))
        end = start + draw(st.integers(0, 500))
        last = runs[-1] if runs else None
        seen = draw(st.integers(start, end))
        looks.append((a_pod(running(start, restart=restart, last=last)), seen))
        looks.append((a_pod(waiting(restart=restart, last=(start, end))), end))
        runs.append((start, end))
        now = end
    looks.pop()
    start, end = runs[-1]
    last = runs[-2] if len(runs) > 1 else None
    over = a_pod(ended(start, end, restart=len(runs) - 1, last=last), deleted=end, phase="Failed")
    looks.append((over, end + draw(st.integers(0, 60))))
    return History(runs=runs, looks=looks)


def watched(looks: list[Look], **sight: Any) -> list[Interval]:
    rows: dict[tuple[str, int, int], Interval] = {}
    for pod, seen in looks:
        settlement = settle(read_pod(pod), rows.values(), Sight(at=at(seen), **sight))
        rows |= {(row.container, row.restart, row.seg): row for row in settlement.intervals}
    return list(rows.values())


def billed(rows: list[Interval]) -> dict[int, tuple[float, float]]:
    spans = {}
    for row in rows:
        assert row.ended_at is not None
        spans[row.restart] = (
            (row.started_at - NOON).total_seconds(),
            (row.ended_at - NOON).total_seconds(),
        )
    return spans


@given(histories(), st.data())
def test_every_status_in_order_any_number_of_times_is_the_truth(
    history: History, data: st.DataObject
) -> None:
    looks = [look for look in history.looks for _ in range(data.draw(st.integers(1, 3)))]

    rows = watched(looks)

    assert billed(rows) == dict(enumerate(history.runs))
    assert {row.quality for row in rows} == {Quality.EXACT}


@given(histories(), st.data())
def test_any_part_in_any_order_bills_no_second_that_was_not_run(
    history: History, data: st.DataObject
) -> None:
    looks = data.draw(st.lists(st.sampled_from(history.looks), max_size=12))

    rows = watched([*looks, history.final])

    for row, (start, end) in ((row, billed([row])[row.restart]) for row in rows):
        true_start, true_end = history.runs[row.restart]
        assert start == true_start
        assert end <= true_end
        assert row.quality is not Quality.EXACT or end == true_end
    newest = len(history.runs) - 1
    assert billed(rows)[newest] == history.runs[newest]


@given(histories(), st.data())
def test_settling_again_changes_nothing(history: History, data: st.DataObject) -> None:
    looks = data.draw(st.lists(st.sampled_from(history.looks), max_size=8))
    rows = watched([*looks, history.final])
    pod, seen = history.final

    again = settle(read_pod(pod), rows, Sight(at=at(seen)))

    assert again.intervals == ()


@given(histories(), st.data())
def test_a_pod_that_vanishes_at_any_moment_is_billed_no_second_too_many(
    history: History, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(history.looks)))
    looks = history.looks[:cut]
    pod, seen = looks[-1]

    rows = watched(looks)
    gone = settle(read_pod(pod), rows, Sight(at=at(seen), fate=Fate.GONE))
    final = {(row.restart, row.seg): row for row in [*rows, *gone.intervals]}

    for restart, (start, end) in billed(list(final.values())).items():
        assert start == history.runs[restart][0]
        assert end <= history.runs[restart][1]
