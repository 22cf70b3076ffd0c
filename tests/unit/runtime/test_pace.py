"""What keeps changing is followed more slowly; what changes now and then, at once."""

from __future__ import annotations

from botplane.runtime.pace import BURST, Pace


def delays(pace: Pace[str], clock: list[float], gaps: list[float]) -> list[float]:
    found = []
    for gap in gaps:
        clock[0] += gap
        found.append(pace.delay("bot"))
    return found


def a_pace() -> tuple[Pace[str], list[float]]:
    clock = [1000.0]
    return Pace(lambda: clock[0]), clock


def test_a_burst_is_followed_at_once_and_then_one_change_in_five_seconds() -> None:
    pace, clock = a_pace()

    assert delays(pace, clock, [0.0] * 7) == [0, 0, 0, 0, 0, 5, 5]
    assert delays(pace, clock, [2.0, 2.0]) == [3, 1]
    assert delays(pace, clock, [1.0, 1.0]) == [0, 4]


def test_changes_that_come_slowly_never_wait() -> None:
    pace, clock = a_pace()

    assert delays(pace, clock, [5.0] * 100) == [0] * 100


def test_a_quiet_minute_gives_the_burst_back() -> None:
    pace, clock = a_pace()
    delays(pace, clock, [0.1] * 50)

    assert delays(pace, clock, [60.0, 0, 0, 0, 0, 0]) == [0, 0, 0, 0, 0, 5]


def test_each_object_has_a_pace_of_its_own() -> None:
    pace, clock = a_pace()
    delays(pace, clock, [0.0] * 50)

    assert pace.delay("another") == 0
    pace.forget("bot")
    assert pace.delay("bot") == 0


def test_a_key_that_waits_is_held_until_its_time_has_come() -> None:
    pace, clock = a_pace()
    delays(pace, clock, [0.0] * BURST)
    assert pace.left("bot") == 0

    wait = pace.delay("bot")
    clock[0] += wait - 1
    assert pace.left("bot") == 1
    clock[0] += 1
    assert pace.left("bot") == 0

    pace.delay("bot")
    pace.delay("bot")
    assert pace.left("bot") > 0
    pace.forget("bot")
    assert pace.left("bot") == 0
