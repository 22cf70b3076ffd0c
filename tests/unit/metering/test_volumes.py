"""What a claim of a volume proves, case by case: times are seconds after noon."""

from __future__ import annotations

from typing import Any

import pytest

from botplane.metering.evidence import Kind
from botplane.metering.policy import Fate, Interval, Sight, may_release, settle
from botplane.metering.volumes import read_claim
from tests.unit.metering.pods import NOON, a_claim, at

GI = 2**30
Row = tuple[int, float, float | None, int, str | None, str | None]
"""Segment, start, end, GiB, reason and quality."""


def watched(*claims: dict[str, Any], seen: float = 1000, **sight: Any) -> list[Interval]:
    rows: dict[int, Interval] = {}
    for claim in claims:
        found = settle(read_claim(claim), rows.values(), Sight(at=at(seen), **sight)).intervals
        rows |= {row.seg: row for row in found}
    return [rows[seg] for seg in sorted(rows)]


def story(rows: list[Interval]) -> list[Row]:
    return [
        (
            row.seg,
            (row.started_at - NOON).total_seconds(),
            None if row.ended_at is None else (row.ended_at - NOON).total_seconds(),
            row.size.storage_bytes // GI,
            row.reason,
            row.quality,
        )
        for row in rows
    ]


CASES: dict[str, tuple[list[dict[str, Any]], list[Row]]] = {
    "waits for a volume": ([a_claim("Pending")], []),
    "deleted before it was bound": ([a_claim("Pending", deleted=5)], []),
    "bound after it was asked to go": ([a_claim(bound=9, deleted=5)], []),
    "bound": ([a_claim(bound=3)], [(0, 3, None, 10, None, None)]),
    "bound, then asked to go": (
        [a_claim(), a_claim(deleted=60)],
        [(0, 0, 60, 10, "terminated", "exact")],
    ),
    "first seen when it was asked to go": (
        [a_claim(deleted=60)],
        [(0, 0, 60, 10, "terminated", "exact")],
    ),
    "grown": (
        [a_claim(), a_claim(size="20Gi", resized=50)],
        [(0, 0, 50, 10, "resized", "exact"), (1, 50, None, 20, None, None)],
    ),
    "seen at its first size after it had grown: a list from the past": (
        [a_claim(), a_claim(size="20Gi", resized=50), a_claim()],
        [(0, 0, 50, 10, "resized", "exact"), (1, 50, None, 20, None, None)],
    ),
    "grown and asked to go between two looks": (
        [a_claim(), a_claim(size="20Gi", resized=50, deleted=60)],
        [(0, 0, 50, 10, "resized", "exact"), (1, 50, 60, 20, "terminated", "exact")],
    ),
    "had grown before it was first seen: its first size is not known": (
        [a_claim(size="20Gi", resized=50, deleted=60)],
        [(0, 50, 60, 20, "terminated", "exact")],
    ),
    "has lost its volume": (
        [a_claim(), a_claim("Lost")],
        [(0, 0, 1000, 10, "reconciled", "estimated")],
    ),
    "had lost its volume when it was first seen": ([a_claim("Lost")], []),
    "a claim whose managed fields were wiped": ([a_claim(managedFields=[{}])], []),
}


@pytest.mark.parametrize("case", CASES)
def test_a_claim_is_metered_while_it_is_bound(case: str) -> None:
    claims, expected = CASES[case]

    assert story(watched(*claims)) == expected


def test_a_claim_that_vanished_is_metered_until_it_was_last_seen() -> None:
    seen = watched(a_claim(), seen=300)

    gone = settle(read_claim(a_claim()), seen, Sight(at=at(900), fate=Fate.GONE)).intervals

    assert story(list(gone)) == [(0, 0, 300, 10, "pod_gone", "bounded")]


def test_the_time_of_a_size_that_nobody_saw_is_on_record() -> None:
    claim = read_claim(a_claim(size="20Gi", resized=50))

    (gap,) = settle(claim, [], Sight(at=at(1000))).gaps

    assert (gap.started_at, gap.ended_at) == (at(0), at(50))


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        (a_claim(), False),
        (a_claim("Pending"), False),
        (a_claim("Pending", deleted=5), True),
        (a_claim(deleted=60), True),
        (a_claim(deleted=60, labels={}), True),
        (a_claim(deleted=60, finalizers=["kubernetes.io/pvc-protection"]), False),
    ],
)
def test_a_claim_goes_once_it_was_asked_to(claim: dict[str, Any], *, expected: bool) -> None:
    assert may_release(read_claim(claim), Sight(at=at(1000))) is expected


def test_a_claim_keeps_its_place_on_the_server() -> None:
    claim = read_claim(a_claim())

    assert claim.kind is Kind.CLAIM
    assert claim.path == "/api/v1/namespaces/tenant-acme/persistentvolumeclaims/bot-1"


def test_a_claim_that_was_thought_gone_is_cut_where_it_grew_once_that_is_told() -> None:
    seen = watched(a_claim(), seen=40)
    gone = settle(read_claim(a_claim()), seen, Sight(at=at(70), fate=Fate.GONE)).intervals
    told = read_claim(a_claim(size="20Gi", resized=50, deleted=60))

    rows = settle(told, gone, Sight(at=at(71), fate=Fate.GONE)).intervals

    assert story(list(rows)) == [
        (0, 0, 50, 10, "resized", "exact"),
        (1, 50, 60, 20, "terminated", "exact"),
    ]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ([], [(0, 50, None, 20, None, None)]),
        ([a_claim()], [(0, 0, 50, 10, "resized", "exact"), (1, 50, None, 20, None, None)]),
    ],
    ids=["not seen before", "seen before"],
)
def test_a_volume_counts_as_grown_from_when_the_api_says_even_if_our_second_is_behind(
    before: list[dict[str, Any]], expected: list[Row]
) -> None:
    seen = watched(*before, seen=40)
    grown = read_claim(a_claim(size="20Gi", resized=50))

    rows = {row.seg: row for row in [*seen, *settle(grown, seen, Sight(at=at(49))).intervals]}

    assert story([rows[seg] for seg in sorted(rows)]) == expected
