"""Run scenarios side by side: undisturbed, to learn what they write, and killed at each write."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from tests.faults import oracle
from tests.faults.calls import Call, Freeze, Rule
from tests.faults.proxied import ProxiedOperator
from tests.faults.scenarios import SCENARIOS, Place, Scenario
from tests.support import volumes
from tests.support.controlplane import audit
from tests.support.controlplane.waiting import NotInTimeError, until
from tests.support.world import World, a_name

CONVERGED_WITHIN = 45.0
REACHED_WITHIN = 40.0
QUIET_SECONDS = 1.0
VOLUMES = 40
"""Twelve tenants claim two each while those of the twelve before are still being deleted."""
WHOLE = os.environ.get("BOTPLANE_FAULTS") == "all"
"""Every point and every case; otherwise one of each family."""
PLAYS = 3
SAMPLED = ("create", "suspend", "quota-up-and-down", "delete", "re-create", "drift")
"""The scenarios of a sample: those that write most, and none that waits for a look every 10 s."""
MakeRule = Callable[[str, Sequence[Call]], Rule | None]
"""Takes a tenant's own text and its writes so far."""


@dataclass(frozen=True)
class Reference:
    """What a scenario writes and leads to when nothing goes wrong."""

    writes: tuple[Call, ...]
    state: oracle.State
    changes: oracle.Changes


@dataclass(frozen=True)
class Point:
    """One instant to be killed at: before or after a write of a scenario."""

    scenario: str
    write: Call
    after: bool

    def __str__(self) -> str:
        write = self.write
        what = "/".join(p for p in (write.resource, write.subresource) if p)
        when = "after" if self.after else "before"
        return f"{self.scenario}: {when} {write.verb} {what} {write.name} #{write.nth}"

    def rule(self, token: str, seen: Iterable[Call]) -> Rule:
        """Return the rule that freezes this write of a tenant."""
        wanted = _named(self.write, token)
        earlier = sum(call.meaning == wanted.meaning for call in seen)
        return Rule(
            lambda call: call == replace(wanted, nth=wanted.nth + earlier),
            Freeze(after=self.after),
            buries=token,
        )


@dataclass
class Outcome:
    """What came of one point."""

    point: Point
    reached: bool
    faults: list[str] = field(default_factory=list)


class Stage:
    """Where scenarios are played."""

    def __init__(
        self, world: World, operator: ProxiedOperator, known: dict[str, Reference]
    ) -> None:
        """Take what undisturbed plays have shown so far; `references` adds to it."""
        self._known = known
        self._world = world
        for number in range(VOLUMES):
            world.api.create(volumes.PATH, _volume(number))
        self._operator = operator
        log = world.installed.cluster.audit_log
        assert log is not None
        self._audit = log

    def references(self) -> dict[str, Reference]:
        """Play every scenario undisturbed; keep the writes that it makes every time.

        How often a status is written while pods start depends on who is faster: three plays tell
        which writes are certain. A sample does without those, and without the other plays.
        """
        if self._known:
            return self._known
        first, *others = [self._played() for _ in range(PLAYS if WHOLE else 1)]
        for name, found in first.items():
            kept = set(found.writes) if WHOLE else set(filter(_is_certain, found.writes))
            kept = kept.intersection(*(other[name].writes for other in others))
            self._known[name] = replace(found, writes=tuple(w for w in found.writes if w in kept))
        return self._known

    def _played(self) -> dict[str, Reference]:
        since = audit.position(self._audit)
        scenarios = [s for s in SCENARIOS.values() if WHOLE or s.name in SAMPLED]
        places = self._prepared(scenarios)
        written = [len(self._operator.proxy.writes(place.name)) for place in places]
        with ThreadPoolExecutor(len(places)) as pool:
            for played in [pool.submit(s.act, p) for s, p in zip(scenarios, places, strict=True)]:
                played.result()
        found = {}
        self._all_settled(places)
        for scenario, place, before in zip(scenarios, places, written, strict=True):
            writes = self._operator.proxy.writes(place.name)
            found[scenario.name] = Reference(
                tuple(_plain(call, place.name, writes[:before]) for call in writes[before:]),
                oracle.end_state(self._world, place.name),
                oracle.changes(self._world, place.name, since),
            )
        self._tidied(places)
        return found

    def killed(self, points: Sequence[Point]) -> list[Outcome]:
        """Play a scenario for each point, kill the operator when all have come to theirs."""
        since = audit.position(self._audit)
        scenarios = [SCENARIOS[point.scenario] for point in points]
        places = self._prepared(scenarios)
        proxy = self._operator.proxy
        self._all_settled(places)
        rules = [
            point.rule(place.name, proxy.writes(place.name))
            for point, place in zip(points, places, strict=True)
        ]
        proxy.add(*rules)
        with ThreadPoolExecutor(len(places)) as pool:
            acts = [pool.submit(s.act, p) for s, p in zip(scenarios, places, strict=True)]
            for rule, act, place in zip(rules, acts, places, strict=True):
                self._come(rule, act, place)
            self._operator.kill()
            proxy.clear()
            self._operator.start()
            outcomes = [Outcome(p, r.reached.is_set()) for p, r in zip(points, rules, strict=True)]
            for outcome, act in zip(outcomes, acts, strict=True):
                if (error := act.exception()) is not None:
                    outcome.faults.append(f"the scenario did not end: {error}")
        judged = self._all_judged([point.scenario for point in points], places, since)
        for outcome, faults in zip(outcomes, judged, strict=True):
            outcome.faults += faults
        self._tidied(places)
        return outcomes

    def disturbed(self, scenarios: Sequence[Scenario], rules: Sequence[MakeRule]) -> list[str]:
        """Play scenarios side by side, each with a fault; return what came out differently."""
        since = audit.position(self._audit)
        places = self._prepared(scenarios)
        self._all_settled(places)
        proxy = self._operator.proxy
        made = [rule(p.name, proxy.writes(p.name)) for rule, p in zip(rules, places, strict=True)]
        proxy.add(*(rule for rule in made if rule is not None))
        faults = []
        with ThreadPoolExecutor(len(places)) as pool:
            acts = [pool.submit(s.act, p) for s, p in zip(scenarios, places, strict=True)]
        judged = self._all_judged([s.name for s in scenarios], places, since)
        for scenario, place, act, found in zip(scenarios, places, acts, judged, strict=True):
            if (error := act.exception()) is not None:
                faults.append(f"{scenario.name}: {error}")
            faults += [f"{scenario.name} of {place.name}: {fault}" for fault in found]
        proxy.clear()
        self._tidied(places)
        return faults

    def _prepared(self, scenarios: Sequence[Scenario]) -> list[Place]:
        volumes.free_released(self._world.api)
        places = [Place(self._world, a_name("c")) for _ in scenarios]
        with ThreadPoolExecutor(len(places)) as pool:
            ready = [pool.submit(s.prepare, p) for s, p in zip(scenarios, places, strict=True)]
            for each in ready:
                each.result()
        return places

    def _come(self, rule: Rule, act: Future[None], place: Place) -> None:
        """Wait until a point has come, or the scenario is over without it."""

        def over() -> bool:
            quiet = self._operator.proxy.quiet_seconds(place.name) > QUIET_SECONDS
            return rule.reached.is_set() or (act.done() and quiet and place.settled())

        try:
            until(over, within=REACHED_WITHIN, what="the point")
        except NotInTimeError:
            return

    def _all_settled(self, places: Sequence[Place]) -> None:
        with ThreadPoolExecutor(len(places)) as pool:
            list(pool.map(self._settled, places))

    def _settled(self, place: Place) -> None:
        def over() -> bool:
            quiet = self._operator.proxy.quiet_seconds(place.name) > QUIET_SECONDS
            return quiet and place.settled()

        until(over, what=f"{place.name} is settled", every=0.2)

    def _all_judged(
        self, names: Sequence[str], places: Sequence[Place], since: int
    ) -> list[list[str]]:
        """Return of each place what differs from the end of its scenario."""

        def judged(name: str, place: Place) -> list[str]:
            return self._judged(place, self._known[name], since)

        with ThreadPoolExecutor(len(places)) as pool:
            return list(pool.map(judged, names, places))

    def _judged(self, place: Place, reference: Reference, since: int) -> list[str]:

        def over() -> bool:
            # The whole state costs twenty requests: it is read once all seems to be done.
            quiet = self._operator.proxy.quiet_seconds(place.name) > QUIET_SECONDS
            done = quiet and place.settled()
            return done and oracle.end_state(self._world, place.name) == reference.state

        try:
            until(over, within=CONVERGED_WITHIN, what="the end state", every=0.3)
        except NotInTimeError:
            return oracle.difference(reference.state, oracle.end_state(self._world, place.name))
        return oracle.changes(self._world, place.name, since).difference(reference.changes)

    def _tidied(self, places: Iterable[Place]) -> None:
        """Let what was made go; nobody waits for it."""
        for place in places:
            self._world.delete("Tenant", "", place.name)
            for plan in (place.name, f"{place.name}-big"):
                self._world.delete("Plan", "", plan)


def _volume(number: int) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"rehearsed-{number}"},
        "spec": {
            "storageClassName": volumes.CLASS,
            "capacity": {"storage": "100Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": f"/rehearsed/{number}"},
        },
    }


def _is_certain(call: Call) -> bool:
    return call.subresource != "status" and call.resource != "events" and call.nth == 1


def points_of(known: dict[str, Reference]) -> list[Point]:
    """Return every point of every scenario."""
    return [
        Point(name, write, after)
        for name, reference in known.items()
        for write in reference.writes
        for after in (False, True)
    ]


def sample(points: Sequence[Point], size: int, word: str = "") -> list[Point]:
    """Return always the same points for a word, of all scenarios alike."""
    ranked: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: hashlib.sha256(f"{word}{p}".encode()).digest()):
        ranked.setdefault(point.scenario, []).append(point)
    rounds = max(map(len, ranked.values()))
    turns = [line[i] for i in range(rounds) for line in ranked.values() if i < len(line)]
    return turns[:size]


def _plain(call: Call, token: str, earlier: Sequence[Call]) -> Call:
    """Return the call without the tenant's name, counted from the start of the scenario."""
    before = sum(other.meaning == call.meaning for other in earlier)
    plain = replace(call, nth=call.nth - before)
    return replace(
        plain,
        namespace=call.namespace.replace(token, "NAME"),
        name=call.name.replace(token, "NAME"),
    )


def _named(call: Call, token: str) -> Call:
    return replace(
        call,
        namespace=call.namespace.replace("NAME", token),
        name=call.name.replace("NAME", token),
    )
