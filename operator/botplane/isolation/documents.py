"""The list as a whole, and how its outcome is written. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from botplane.isolation.access import access_attacks, unproved_attacks
from botplane.isolation.attacks import Attack, Outcome, Scene
from botplane.isolation.benchmark import benchmark
from botplane.isolation.bots import bot_attacks
from botplane.isolation.cluster import cluster_attacks
from botplane.isolation.objects import object_attacks
from botplane.isolation.pods import pod_attacks


def all_attacks(scene: Scene) -> list[Attack]:
    """Return every row: the attacks in the order of their ids, then the benchmark."""
    attacks = [
        *access_attacks(scene),
        *pod_attacks(scene),
        *cluster_attacks(scene),
        *object_attacks(scene),
        *bot_attacks(scene),
        *unproved_attacks(),
    ]
    return [*sorted(attacks, key=lambda attack: attack.id), *benchmark(scene)]


def render_table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table for people, with what went wrong below each row."""
    lines = [f"{'ID':<11} {'ACTOR':<6} {'VERDICT':<17} {'CALLS':>5}  ATTACK"]
    for outcome in outcomes:
        attack = outcome.attack
        reason = f" ({attack.reason})" if attack.reason else ""
        lines.append(
            f"{attack.id:<11} {attack.actor:<6} {outcome.verdict.value:<17} "
            f"{outcome.calls or '':>5}  {attack.title}{reason}"
        )
        lines += [f"{'':<11}   {detail}" for detail in outcome.details]
    counts = Counter(outcome.verdict.value for outcome in outcomes)
    lines.append(", ".join(f"{number} {verdict}" for verdict, number in counts.most_common()))
    return "\n".join(lines)


def render_json(outcomes: Iterable[Outcome]) -> str:
    """Return the outcomes as JSON for machines."""
    rows = [
        {
            "id": outcome.attack.id,
            "actor": outcome.attack.actor,
            "attack": outcome.attack.title,
            "verdict": outcome.verdict.value,
            "calls": outcome.calls,
            "reason": outcome.attack.reason,
            "details": list(outcome.details),
        }
        for outcome in outcomes
    ]
    return json.dumps(rows, indent=2)
