"""Run scenarios side by side: undisturbed, to learn what they write, and killed at each write."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from tests.faults import oracle
from tests.faults.calls import Call, Freeze, Rule
from tests.faults.proxied import ProxiedOperator
from tests.faults.scenarios import SCENARIOS, Place, Scenario
from tests.support.controlplane import audit
from tests.support.controlplane.waiting import NotInTimeError, until
from tests.support.volumes import free_released
from tests.support.world import World, a_name

CONVERGED_WITHIN = 45.0
REACHED_WITHIN = 40.0
QUIET_SECONDS = 2.0
MakeRule = Callable[[str, Sequence[Call]], Rule | None]
"""Takes a tenant's own text and its writes so far."""


@dataclass(frozen=True)
class Reference:
    """What a scenario writes and leads to when nothing goes wrong."""

    writes: tuple[Call, ...]
    state: oracle.State
    changes: Counter[str]


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

    def __init__(self, world: World, operator: ProxiedOperator) -> None:
        self._world = world
        self._operator = operator
        log = world.installed.cluster.audit_log
        assert log is not None
        self._audit = log

    def references(self) -> dict[str, Reference]:
        """Play every scenario undisturbed, twice; keep the writes that it made both times.

        How often a status is written while pods start depends on who is faster.
        """
        first, second = self._played(), self._played()
        return {
            name: replace(found, writes=tuple(w for w in found.writes if w in second[name].writes))
            for name, found in first.items()
        }

    def _played(self) -> dict[str, Reference]:
        since = audit.position(self._audit)
        scenarios = list(SCENARIOS.values())
        places = self._prepared(scenarios)
        written = [len(self._operator.proxy.writes(place.name)) for place in places]
        with ThreadPoolExecutor(len(places)) as pool:
            for played in [pool.submit(s.act, p) for s, p in zip(scenarios, places, strict=True)]:
                played.result()
        found = {}
        for scenario, place, before in zip(scenarios, places, written, strict=True):
            self._settled(place)
            writes = self._operator.proxy.writes(place.name)
            found[scenario.name] = Reference(
                tuple(_plain(call, place.name, writes[:before]) for call in writes[before:]),
                oracle.end_state(self._world, place.name),
                oracle.changes(self._world, place.name, since),
            )
        self._tidied(places)
        return found

    def killed(self, points: Sequence[Point], known: dict[str, Reference]) -> list[Outcome]:
        """Play a scenario for each point, kill the operator when all have come to theirs."""
        since = audit.position(self._audit)
        scenarios = [SCENARIOS[point.scenario] for point in points]
        places = self._prepared(scenarios)
        proxy = self._operator.proxy
        for place in places:
            self._settled(place)
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
        for outcome, place in zip(outcomes, places, strict=True):
            reference = known[outcome.point.scenario]
            outcome.faults += self._judged(place, reference, since)
        self._tidied(places)
        return outcomes

    def disturbed(
        self, scenarios: Sequence[Scenario], rules: Sequence[MakeRule], known: dict[str, Reference]
    ) -> list[str]:
        """Play scenarios side by side, each with a fault; return what came out differently."""
        since = audit.position(self._audit)
        places = self._prepared(scenarios)
        for place in places:
            self._settled(place)
        proxy = self._operator.proxy
        made = [rule(p.name, proxy.writes(p.name)) for rule, p in zip(rules, places, strict=True)]
        proxy.add(*(rule for rule in made if rule is not None))
        faults = []
        with ThreadPoolExecutor(len(places)) as pool:
            acts = [pool.submit(s.act, p) for s, p in zip(scenarios, places, strict=True)]
        for scenario, place, act in zip(scenarios, places, acts, strict=True):
            if (error := act.exception()) is not None:
                faults.append(f"{scenario.name}: {error}")
            judged = self._judged(place, known[scenario.name], since)
            faults += [f"{scenario.name} of {place.name}: {fault}" for fault in judged]
        proxy.clear()
        self._tidied(places)
        return faults

    def _prepared(self, scenarios: Sequence[Scenario]) -> list[Place]:
        free_released(self._world.api)
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

    def _settled(self, place: Place) -> None:
        def over() -> bool:
            quiet = self._operator.proxy.quiet_seconds(place.name) > QUIET_SECONDS
            return quiet and place.settled()

        until(over, within=60, what=f"{place.name} is settled", every=0.2)

    def _judged(self, place: Place, reference: Reference, since: int) -> list[str]:
        try:
            until(
                lambda: oracle.end_state(self._world, place.name) == reference.state,
                within=CONVERGED_WITHIN,
                what="the end state",
                every=0.3,
            )
        except NotInTimeError:
            return oracle.difference(reference.state, oracle.end_state(self._world, place.name))
        found = oracle.changes(self._world, place.name, since)
        more, less = found - reference.changes, reference.changes - found
        return [f"too often: {dict(more)}"] * bool(more) + [f"too seldom: {dict(less)}"] * bool(
            less
        )

    def _tidied(self, places: Iterable[Place]) -> None:
        """Let what was made go; nobody waits for it."""
        for place in places:
            self._world.delete("Tenant", "", place.name)
            for plan in (place.name, f"{place.name}-big"):
                self._world.delete("Plan", "", plan)


def points_of(known: dict[str, Reference]) -> list[Point]:
    """Return every point of every scenario."""
    return [
        Point(name, write, after)
        for name, reference in known.items()
        for write in reference.writes
        for after in (False, True)
    ]


def sample(points: Sequence[Point], size: int) -> list[Point]:
    """Return always the same points, of all scenarios alike."""
    ranked: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: hashlib.sha256(str(p).encode()).digest()):
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
