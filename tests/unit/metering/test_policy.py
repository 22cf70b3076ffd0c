"""What a pod's status proves, case by case: times are seconds after noon."""

from __future__ import annotations

from typing import Any

import pytest

from botplane.metering.evidence import read_pod
from botplane.metering.policy import (
    Fate,
    Gap,
    Interval,
    Sight,
    is_lost,
    is_suspect,
    may_release,
    settle,
)
from tests.unit.metering.pods import (
    NOON,
    a_pod,
    at,
    ended,
    running,
    termination,
    waiting,
)


def watched(*pods: dict[str, Any], seen: float = 1000, **sight: Any) -> list[Interval]:
    """Settle a pod as often as it was seen, and return the rows that are stored then."""
    rows: dict[tuple[str, int, int], Interval] = {}
    for pod in pods:
        settlement = settle(read_pod(pod), rows.values(), Sight(at=at(seen), **sight))
        rows |= {(row.container, row.restart, row.seg): row for row in settlement.intervals}
    return [rows[key] for key in sorted(rows)]


def story(rows: list[Interval]) -> list[tuple[Any, ...]]:
    """Return container restart, segment, start, end, reason and quality of each row."""
    return [
        (
            row.restart,
            row.seg,
            (row.started_at - NOON).total_seconds(),
            None if row.ended_at is None else (row.ended_at - NOON).total_seconds(),
            row.reason,
            row.quality,
        )
        for row in rows
    ]


CASES: dict[str, tuple[list[dict[str, Any]], list[tuple[Any, ...]]]] = {
    "never started": ([a_pod(waiting(), phase="Pending")], []),
    "no status yet": ([a_pod(phase="Pending")], []),
    "runs": ([a_pod(running(0))], [(0, 0, 0, None, None, None)]),
    "ended": ([a_pod(ended(0, 60))], [(0, 0, 0, 60, "terminated", "exact")]),
    "seen running, then ended": (
        [a_pod(running(0)), a_pod(ended(0, 60))],
        [(0, 0, 0, 60, "terminated", "exact")],
    ),
    "ended in the second it started": (
        [a_pod(ended(5, 5))],
        [(0, 0, 5, 5, "terminated", "exact")],
    ),
    "a late repetition does not open it again": (
        [a_pod(ended(0, 60)), a_pod(running(0))],
        [(0, 0, 0, 60, "terminated", "exact")],
    ),
    "restarted once": (
        [a_pod(running(0)), a_pod(running(70, restart=1, last=(0, 60)))],
        [(0, 0, 0, 60, "terminated", "exact"), (1, 0, 70, None, None, None)],
    ),
    "waits to be restarted: the last run has the number of the count": (
        [a_pod(running(0)), a_pod(waiting(last=(0, 60)))],
        [(0, 0, 0, 60, "terminated", "exact")],
    ),
    "restarted and ended, never seen before": (
        [a_pod(ended(70, 90, restart=1, last=(0, 60)))],
        [(0, 0, 0, 60, "terminated", "exact"), (1, 0, 70, 90, "terminated", "exact")],
    ),
    "a restart jump bills until last seen, and nothing unseen": (
        [a_pod(running(0)), a_pod(running(1200, restart=3, last=(1100, 1190)))],
        [
            (0, 0, 0, 1000, "restarted", "bounded"),
            (2, 0, 1100, 1190, "terminated", "exact"),
            (3, 0, 1200, None, None, None),
        ],
    ),
    "the kubelet lost the end": (
        [a_pod(running(0)), a_pod(waiting(restart=1, last=(None, None)))],
        [(0, 0, 0, 1000, "reconciled", "estimated")],
    ),
    "a known end outlives a status that the kubelet lost": (
        [a_pod(ended(0, 60)), a_pod(waiting(restart=1, last=(None, None)))],
        [(0, 0, 0, 60, "terminated", "exact")],
    ),
    "a late look at a run before the newest does not open it": (
        [a_pod(running(70, restart=2, last=(50, 60))), a_pod(running(0))],
        [(1, 0, 50, 60, "terminated", "exact"), (2, 0, 70, None, None, None)],
    ),
    "the kubelet lost the end of a run nobody saw": (
        [a_pod(ended(None, None, restart=0), phase="Failed")],
        [],
    ),
    "a clock that stepped back bills no second twice": (
        [a_pod(running(0)), a_pod(running(40, restart=1, last=(0, 60)))],
        [(0, 0, 0, 60, "terminated", "exact"), (1, 0, 60, None, None, None)],
    ),
    "an end before the start is an empty estimate": (
        [a_pod(ended(60, 50))],
        [(0, 0, 60, 60, "terminated", "estimated")],
    ),
    "a start in the far future is not believed": ([a_pod(running(90_000))], []),
    "a failed pod whose container claims to run": (
        [a_pod(running(0)), a_pod(running(0), phase="Failed")],
        [(0, 0, 0, 1000, "reconciled", "estimated")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_intervals(case: str) -> None:
    pods, expected = CASES[case]

    assert story(watched(*pods)) == expected


def test_an_open_run_of_a_lost_node_ends_when_its_lease_was_last_renewed() -> None:
    pod = a_pod(running(0), deleted=400)

    rows = watched(pod, seen=900, fate=Fate.NODE_LOST, node_seen_at=at(340))

    assert story(rows) == [(0, 0, 0, 340, "node_lost", "bounded")]


def test_a_run_is_seen_no_later_than_its_nodes_lease() -> None:
    pod = read_pod(a_pod(running(0)))

    (row,) = settle(pod, [], Sight(at=at(900), node_seen_at=at(340))).intervals

    assert row.last_seen_at == at(340)


def test_an_open_run_of_a_lost_node_without_a_lease_ends_with_the_wish_to_delete() -> None:
    rows = watched(a_pod(running(0), deleted=400, grace=30), seen=900, fate=Fate.NODE_LOST)

    assert story(rows) == [(0, 0, 0, 400, "node_lost", "bounded")]


def test_a_late_end_from_a_node_that_came_back_replaces_the_bound() -> None:
    pod = read_pod(a_pod(running(0), deleted=400))
    lost = settle(pod, [], Sight(at=at(900), fate=Fate.NODE_LOST, node_seen_at=at(340)))

    back = settle(read_pod(a_pod(ended(0, 405), deleted=400)), lost.intervals, Sight(at=at(910)))

    assert story(list(back.intervals)) == [(0, 0, 0, 405, "terminated", "exact")]


def test_a_vanished_pod_is_billed_until_its_deletion_was_asked_for() -> None:
    rows = watched(a_pod(running(0), deleted=400, grace=30), seen=900, fate=Fate.GONE)

    assert story(rows) == [(0, 0, 0, 400, "pod_gone", "bounded")]


def test_a_pod_deleted_by_force_on_a_dead_node_is_billed_until_its_last_lease() -> None:
    rows = watched(
        a_pod(running(0), deleted=400, grace=0), seen=900, fate=Fate.GONE, node_seen_at=at(340)
    )

    assert story(rows) == [(0, 0, 0, 340, "pod_gone", "bounded")]


def test_a_vanished_pod_without_deletion_is_billed_until_it_was_last_seen() -> None:
    seen = settle(read_pod(a_pod(running(0))), [], Sight(at=at(300)))

    gone = settle(read_pod(a_pod(running(0))), seen.intervals, Sight(at=at(900), fate=Fate.GONE))

    assert story(list(gone.intervals)) == [(0, 0, 0, 300, "pod_gone", "bounded")]


def test_a_vanished_pod_that_had_told_its_end_is_exact() -> None:
    rows = watched(a_pod(ended(0, 60), deleted=50), fate=Fate.GONE)

    assert story(rows) == [(0, 0, 0, 60, "terminated", "exact")]


def test_a_resize_cuts_the_interval_at_the_status_that_showed_it() -> None:
    small = a_pod(running(0))
    large = a_pod(
        running(0, resources={"requests": {"cpu": "2", "memory": "1Gi"}}),
        managedFields=[{"subresource": "status", "time": "2026-10-01T12:01:40Z"}],
    )
    over = a_pod(ended(0, 300, resources={"requests": {"cpu": "2", "memory": "1Gi"}}))

    rows = watched(small, large, large, over)

    assert story(rows) == [
        (0, 0, 0, 100, "resized", "exact"),
        (0, 1, 100, 300, "terminated", "exact"),
    ]
    assert [row.size.cpu_milli for row in rows] == [500, 2000]


def test_runs_nobody_saw_are_a_gap_with_its_bounds() -> None:
    seen = settle(read_pod(a_pod(running(0))), [], Sight(at=at(100)))
    pod = read_pod(a_pod(running(500, restart=3, last=(400, 490))))

    settlement = settle(pod, seen.intervals, Sight(at=at(600)))

    assert settlement.gaps == (
        Gap(container="bot", first=1, last=1, started_at=at(100), ended_at=at(400)),
    )


def test_native_sidecars_count_and_init_containers_do_not() -> None:
    requests = {"requests": {"cpu": "100m", "memory": "64Mi"}}
    pod = a_pod(
        running(10),
        spec={
            "initContainers": [
                {"name": "prepare", "resources": requests},
                {"name": "proxy", "resources": requests, "restartPolicy": "Always"},
            ]
        },
    )
    pod["status"]["initContainerStatuses"] = [
        {"name": "prepare", "restartCount": 0, "state": termination(0, 5)},
        {**running(6), "name": "proxy"},
    ]

    rows = watched(pod)

    assert [(row.container, row.size.cpu_milli) for row in rows] == [
        ("bot", 500),
        ("proxy", 100),
    ]


RELEASES: dict[str, tuple[dict[str, Any], Fate, bool]] = {
    "runs": (a_pod(running(0)), Fate.PRESENT, False),
    "ended but not deleted": (
        a_pod(ended(0, 5), phase="Succeeded"),
        Fate.PRESENT,
        False,
    ),
    "deleted and still running": (a_pod(running(0), deleted=10), Fate.PRESENT, False),
    "deleted and ended": (a_pod(ended(0, 12), deleted=10), Fate.PRESENT, True),
    "deleted, terminal, never started": (
        a_pod(ended(None, None), deleted=10, phase="Failed"),
        Fate.PRESENT,
        True,
    ),
    "deleted, never scheduled": (
        a_pod(phase="Pending", deleted=10, spec={"nodeName": None}),
        Fate.PRESENT,
        True,
    ),
    "deleted, may still be starting": (
        a_pod(waiting(), phase="Pending", deleted=990, grace=30),
        Fate.PRESENT,
        False,
    ),
    "deleted, had its chance to start": (
        a_pod(waiting(), phase="Pending", deleted=900, grace=30),
        Fate.PRESENT,
        True,
    ),
    "deleted on a lost node": (a_pod(running(0), deleted=10), Fate.NODE_LOST, True),
    "gone": (a_pod(ended(0, 5), deleted=10), Fate.GONE, False),
    "without our finalizer": (
        a_pod(ended(0, 5), deleted=10, finalizers=[]),
        Fate.PRESENT,
        False,
    ),
    "deleted, nobody pays": (
        a_pod(running(0), deleted=10, labels={}),
        Fate.PRESENT,
        True,
    ),
    "deleted and forced": (
        a_pod(running(0), deleted=10, annotations={"botplane.io/force-settle": "true"}),
        Fate.PRESENT,
        True,
    ),
    "forced but not deleted": (
        a_pod(running(0), annotations={"botplane.io/force-settle": "true"}),
        Fate.PRESENT,
        False,
    ),
}


@pytest.mark.parametrize("case", RELEASES)
def test_release(case: str) -> None:
    pod, fate, expected = RELEASES[case]

    assert may_release(read_pod(pod), Sight(at=at(1000), fate=fate)) is expected


@pytest.mark.parametrize(
    ("labels", "namespace"),
    [
        ({}, "tenant-acme"),
        ({"botplane.io/tenant": "other"}, "tenant-acme"),
        ({"botplane.io/tenant-uid": "not-a-uid"}, "tenant-acme"),
        ({"botplane.io/bot-uid": ""}, "tenant-acme"),
        ({"botplane.io/bot": ""}, "tenant-acme"),
        ({}, "kube-system"),
    ],
)
def test_nobody_pays_for_a_pod_with_foreign_labels(labels: dict[str, str], namespace: str) -> None:
    pod = a_pod(running(0))
    pod["metadata"]["namespace"] = namespace
    pod["metadata"]["labels"] |= labels

    paid = read_pod(pod).account is not None

    assert paid is (not labels and namespace == "tenant-acme")


def test_a_deleted_pod_is_suspect_only_after_its_kubelet_had_five_minutes() -> None:
    pod = read_pod(a_pod(running(0), deleted=100, grace=30))

    assert not is_suspect(pod, at(129 + 300))
    assert is_suspect(pod, at(130 + 300))
    assert is_lost({})
    assert is_lost({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})
    assert not is_lost({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})


def test_the_time_without_power_is_not_billed() -> None:
    found_gone = {"exitCode": 255, "reason": "Unknown"}
    back = a_pod(running(100, restart=1, last=(0, 90)))
    back["status"]["containerStatuses"][0]["lastState"]["terminated"] |= found_gone

    seen = watched(a_pod(running(0)), seen=40)
    after = settle(read_pod(back), seen, Sight(at=at(120))).intervals

    assert story(list(after)) == [
        (0, 0, 0, 40, "reconciled", "estimated"),
        (1, 0, 100, None, None, None),
    ]


def test_the_time_without_power_is_not_billed_even_if_nobody_saw_the_run() -> None:
    found_gone = {"exitCode": 255, "reason": "Unknown"}
    pod = a_pod(ended(0, 90))
    pod["status"]["containerStatuses"][0]["state"]["terminated"] |= found_gone

    assert story(watched(pod)) == [(0, 0, 0, 0, "reconciled", "estimated")]
