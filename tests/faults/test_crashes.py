"""The operator is killed before and after each of its writes; the world comes out the same."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxied import ProxiedOperator
from tests.faults.rehearsal import WHOLE, Outcome, Point, Reference, Stage, points_of, sample
from tests.support.installation import Installation
from tests.support.world import World

SAMPLED = 6
AT_ONCE = 12
"""Each point holds one of the operator's sixteen workers until all have come to theirs."""
AGAIN_AT_ONCE = 4
"""A status that is written often is written less often while many workers are held."""
LEAST_REACHED = 0.9


@pytest.fixture(scope="module")
def stage(
    botplane: Installation, proxied: ProxiedOperator, undisturbed: dict[str, Reference]
) -> Stage:
    return Stage(World(botplane), proxied, undisturbed)


def test_killed_at_any_write_it_ends_where_it_would_have_ended(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    known = stage.references()
    only = os.environ.get("BOTPLANE_SCENARIO", "")
    every = [point for point in points_of(known) if only in {"", point.scenario}]
    chosen = every if WHOLE or only else sample(every, SAMPLED)
    began = time.monotonic()

    outcomes: list[Outcome] = []
    with capsys.disabled():
        for batch in batches(chosen):
            found = stage.killed(batch)
            outcomes += found
            print(f"\n{time.monotonic() - began:4.0f} s: {_told(outcomes)}", end="", flush=True)
            for outcome in found:
                print(f"\n  {outcome.point}: {outcome.faults}" * bool(outcome.faults), end="")
        for batch in batches([o.point for o in outcomes if not o.reached], AGAIN_AT_ONCE):
            # Such a write came sooner or later than the rule was there for: once more.
            outcomes = [o for o in outcomes if o.faults or o.point not in batch]
            outcomes += stage.killed(batch)
        took = time.monotonic() - began
        print(f"\n{len(every)} points in {len(known)} scenarios; {_told(outcomes)}, {took:.0f} s")
        for outcome in outcomes:
            print(f"  not met: {outcome.point}\n" * (not outcome.reached), end="")
    failed = {str(outcome.point): outcome.faults for outcome in outcomes if outcome.faults}
    assert not failed, "\n".join(f"{point}\n    {faults}" for point, faults in failed.items())
    reached = sum(outcome.reached for outcome in outcomes)
    assert reached >= LEAST_REACHED * len(outcomes)


def batches(points: list[Point], at_once: int = AT_ONCE) -> Iterator[list[Point]]:
    """Yield points that are tried side by side, each with a tenant of its own."""
    for start in range(0, len(points), at_once):
        yield points[start : start + at_once]


def _told(outcomes: list[Outcome]) -> str:
    reached = sum(outcome.reached for outcome in outcomes)
    passed = sum(not outcome.faults for outcome in outcomes)
    return f"{len(outcomes)} tried, {reached} killed there, {passed} ended the same"
