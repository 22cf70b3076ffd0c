"""Metering under fire, by seeds: what it bills is the truth, or less by no more than it says.

Each seed is a world of pods and claims whose lives are known, one or two meterings with the real
code in this process, a real PostgreSQL behind a wire that breaks between COMMIT and answer, and a
stand-in of the API server. The meterings are killed in any call, and begin again with nothing.

`BOTPLANE_SEED=7` plays one seed again. Ten bugs that `tests/faults/seeded.py` puts in are each
caught by the first twenty seeds: `make test-seeded`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest

from botplane.metering.evidence import read_pod
from botplane.metering.policy import Sight
from botplane.metering.reconcile import RELEASE_AT_ONCE
from botplane.metering.store import Look, MeteringStore
from tests.faults import seeded
from tests.faults.lives import WEEK, Script, populate
from tests.faults.play import Play, Wires, Worker, seconds
from tests.faults.rehearsal import WHOLE
from tests.faults.stand_in import EPOCH
from tests.support.controlplane.postgres import Postgres

SEEDS = 200 if WHOLE else 20
ONE = os.environ.get("BOTPLANE_SEED")
"""The seed to play again, and no other."""
BURST = 5000 if WHOLE else 1000

seeded.apply()


@pytest.fixture(scope="module")
def wires(postgres: Postgres) -> Iterator[Wires]:
    with Wires.to(postgres, "metering_seeds") as wires:
        yield wires


@pytest.mark.parametrize("seed", [int(ONE)] if ONE else range(SEEDS))
def test_what_is_billed_is_the_truth_or_less_by_no_more_than_is_said(
    wires: Wires, seed: int
) -> None:
    with Play.of(seed, wires) as play:
        play.run()

        found, gaps = play.billed(), play.gaps()
    for life in play.script.lives:
        rows, name = found.pop(life.uid, []), f"seed {seed}: {life.name}"
        said = [row.stretch for row in rows]
        if life.is_proven:
            assert said == play.provable(life, said), name
            assert all(row.is_exact for row in rows), name
            continue
        if said and life.grown and said[0][:2] == life.grown[0][:2]:
            life.true = life.grown
        true = {number: (start, end, size) for number, start, end, size in life.true}
        for number, start, end, size in said:
            assert (start, size) == true[number][::2], name
            assert end <= true[number][1] + play.told_late, name
        missing = seconds(life.true) - seconds(said)
        assert missing <= gaps[life.uid] + play.unseen(life), name
    assert found == {}, f"seed {seed}: nobody's"


def test_a_burst_of_ends_is_billed_and_let_go_with_one_write_each(wires: Wires) -> None:
    with Play.of(0, wires) as play:
        play.script = Script(play.server, play.script.dice, None)
        populate(play.script, BURST, 0, among=("finishes",))
        play.script.play(WEEK)
        before, held = play.server.version, len(play.server.objects)
        for _ in range(BURST // RELEASE_AT_ONCE):
            play.workers[0].step()

        assert (held, len(play.server.objects)) == (BURST, 0)
        assert play.server.version - before == BURST
        found = play.billed()
        assert [[row.stretch for row in found[life.uid]] for life in play.script.lives] == [
            life.true for life in play.script.lives
        ]


def test_a_run_that_a_slow_metering_opens_after_its_pod_was_taken_for_gone_is_closed(
    wires: Wires,
) -> None:
    with Play.of(0, wires) as play:
        play.script = Script(play.server, play.script.dice, None)
        populate(play.script, 1, 0, among=("is freed",))
        slow, [life] = play.workers[0], play.script.lives
        [(_, start, end, _)] = life.true
        play.script.play(start - 1)
        slow.step()
        play.script.play(start)
        pod = read_pod(next(iter(play.server.objects.values())))
        assert pod.account is not None
        look = Look(pod=pod, account=pod.account, sight=Sight(at=EPOCH + timedelta(seconds=start)))
        play.script.play(WEEK)
        fast = Worker(play, play.script.dice)
        fast.step()
        MeteringStore(slow.line).settle([look], EPOCH)  # type: ignore[arg-type]
        slow.die(WEEK)

        play.script.play(2 * WEEK)
        assert [fast.step() for _ in range(2)] == [True, True]  # it lists anew
        fast.die(0)

        [row] = play.billed()[life.uid]
        assert start <= row.stretch[2] <= end
