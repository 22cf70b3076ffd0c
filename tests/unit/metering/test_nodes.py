"""Until when a pod is known to run, by the Leases of its kubelet: times are seconds after noon.

Each story is a list of looks: when it was looked, and when the Lease was last renewed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import pytest

from botplane.metering.evidence import Pod, read_pod
from botplane.metering.nodes import Nodes
from tests.unit.metering.pods import a_pod, at, running

Looks = Sequence[tuple[float, float | None]]
CREATED = -5

STEADY = [(now, now - 3) for now in range(0, 70, 10)]
CUT_AT_30_BACK_AT_3600 = [*STEADY[:4], (3601, 3600.5)]

STORIES: dict[str, tuple[Looks, float, float]] = {
    "nobody has looked yet": ([], 0, CREATED),
    "the first look finds a kubelet that may have come back just now": ([(0, -3)], 0, CREATED),
    "it has had no time to tell": ([(0, -3), (10, 7), (20, 17)], 20, CREATED),
    "it has had time to tell since what was first seen": (STEADY[:4], 30, -3),
    "a steady kubelet, half a minute later": (STEADY, 60, 27),
    "a node that is dark already when we start": ([(3600, -600)], 3600, -600),
    "a node that went dark": ([*STEADY[:4], *((n, 27) for n in range(40, 100, 10))], 90, 27),
    "power is back and the old status still shows": (CUT_AT_30_BACK_AT_3600, 3601, 27),
    "power is back while metering starts again": ([(3601, 3600.5)], 3601, CREATED),
    "power is back for half a minute": ([(3601, 3600.5), (3631, 3630)], 3631, 3600.5),
    "the API did not answer": ([(0, -3), (10, None), (20, None), (30, None)], 30, -3),
    "a kubelet whose clock is a minute ahead": ([(0, 60), (10, 70), (20, 80), (30, 90)], 30, 60),
}


def looked(looks: Looks) -> tuple[Nodes, Callable[[float], None]]:
    """Return the nodes after all looks, and what moves the clock."""
    clock = {"now": 0.0}
    answer: dict[str, datetime] | None = None
    nodes = Nodes(lambda: answer, lambda: clock["now"])
    for now, renewed in looks:
        clock["now"] = now
        answer = None if renewed is None else {"n1": at(renewed)}
        nodes.look()
    return nodes, lambda now: clock.update(now=now)


def a_running_pod() -> Pod:
    return read_pod(a_pod(running(0)))


@pytest.mark.parametrize("name", STORIES)
def test_a_status_proves_no_more_than_its_kubelet_had_time_to_tell(name: str) -> None:
    looks, now, proven = STORIES[name]
    nodes, go_to = looked(looks)
    go_to(now)

    assert nodes.proves_until(a_running_pod(), at(now)) == at(proven)


def test_a_node_without_a_lease_and_a_claim_are_known_as_they_are_shown() -> None:
    nodes, _ = looked(STEADY)
    elsewhere = read_pod(a_pod(running(0), spec={"nodeName": "virtual"}))
    unbound = read_pod(a_pod(running(0), spec={"nodeName": None}))

    assert nodes.proves_until(elsewhere, at(60)) is None
    assert nodes.proves_until(unbound, at(60)) is None


def test_who_vanished_may_have_run_until_the_last_renewal() -> None:
    nodes, _ = looked(STEADY)
    unseen, _ = looked([])

    assert nodes.alive_until(a_running_pod()) == at(57)
    assert unseen.alive_until(a_running_pod()) == at(CREATED)
