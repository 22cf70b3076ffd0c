"""The API server refuses, breaks off, repeats itself or falls silent; the world ends the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest

from tests.faults import calls
from tests.faults.calls import Action, Call, Rule
from tests.faults.early_ready import EarlyReady
from tests.faults.proxied import ProxiedOperator
from tests.faults.rehearsal import MakeRule, Point, Reference, Stage, points_of, sample
from tests.faults.scenarios import SCENARIOS
from tests.support.installation import Installation
from tests.support.world import World

RETRY_AFTER = 2
ON_WRITES: dict[str, Action] = {
    "409": calls.Reply(409),
    "429": calls.Reply(429, {"Retry-After": str(RETRY_AFTER)}),
    "500": calls.Reply(500),
    "503": calls.Reply(503),
    "reset before": calls.Rst(),
    "reset after commit": calls.DropReply(),
}
ON_WATCHES: dict[str, Action] = {
    "410": calls.Error(410),
    "500 event": calls.Error(500),
    "cut": calls.Cut(),
    "truncated": calls.Truncate(),
    "stale": calls.Hold(3),
    "dropped": calls.Drop(),
    "duplicated": calls.Dup(),
    "silent": calls.Silent(),
}
FATAL = frozenset({"500 event", "truncated"})
WATCHED = (
    "tenants",
    "botdeployments",
    "namespaces",
    "configmaps",
    "networkpolicies",
    "deployments",
)
AT_ONCE = 8
WHOLE = os.environ.get("BOTPLANE_FAULTS") == "all"


@dataclass(frozen=True)
class WatchFault:
    """One thing that happens to the watch of one kind."""

    scenario: str
    resource: str
    action: Action

    def rule(self, token: str, _seen: Sequence[Call]) -> Rule:
        """Return the rule for the first event about a tenant."""
        return Rule(
            lambda call: call.resource == self.resource,
            self.action,
            event=lambda event: token in str(event["object"]["metadata"]),
        )


@pytest.fixture(scope="module")
def operator(proxied: ProxiedOperator) -> ProxiedOperator:
    """The operator with full lists every few seconds, which else come every five minutes."""
    proxied.restart(BOTPLANE_RESYNC_SECONDS="3")
    return proxied


@pytest.fixture(scope="module")
def stage(botplane: Installation, operator: ProxiedOperator) -> Stage:
    return Stage(World(botplane), operator)


@pytest.fixture(scope="module")
def watcher(botplane: Installation) -> Iterator[EarlyReady]:
    watcher = EarlyReady(botplane.cluster.api())
    yield watcher
    watcher.close()


@pytest.fixture(scope="module")
def known(stage: Stage, watcher: EarlyReady) -> dict[str, Reference]:
    assert watcher.judged()[1] == []
    return stage.references()


@pytest.mark.parametrize("fault", ON_WRITES)
def test_a_write_that_fails_is_made_good(
    stage: Stage, operator: ProxiedOperator, known: dict[str, Reference], fault: str
) -> None:
    before = [point for point in points_of(known) if not point.after]
    chosen = before if WHOLE else sample(before, AT_ONCE)
    restarts = operator.restarts

    for start in range(0, len(chosen), AT_ONCE):
        batch = chosen[start : start + AT_ONCE]
        failed = stage.disturbed(
            [SCENARIOS[point.scenario] for point in batch],
            [_rule(point, ON_WRITES[fault]) for point in batch],
            known,
        )
        assert not failed, failed

    print(f"\n{fault}: {len(chosen)} writes")
    assert operator.restarts == restarts


@pytest.mark.parametrize("fault", ON_WATCHES)
def test_a_watch_that_fails_is_made_good(
    stage: Stage, operator: ProxiedOperator, known: dict[str, Reference], fault: str
) -> None:
    names = ("create", "drift") if WHOLE else ("create",)
    faults = [WatchFault(name, kind, ON_WATCHES[fault]) for name in names for kind in WATCHED]
    restarts = operator.restarts

    failed = stage.disturbed(
        [SCENARIOS[fault.scenario] for fault in faults],
        [fault.rule for fault in faults],
        known,
    )

    assert not failed, failed
    ended = operator.restarts - restarts
    print(f"\n{fault}: {len(faults)} faults, {ended} restarts")
    assert ended <= (len(faults) if fault in FATAL else 0)


def test_no_tenant_was_ready_before_it_was_closed(
    stage: Stage, watcher: EarlyReady, known: dict[str, Reference]
) -> None:
    stage.disturbed([SCENARIOS["create"]] * 4, [no_rule] * 4, known)

    ready, early = watcher.judged()

    print(f"\n{ready} times a Tenant became Ready, {len(early)} times too early")
    assert ready >= 4
    assert early == []


def test_retry_after_is_obeyed(
    stage: Stage, operator: ProxiedOperator, known: dict[str, Reference]
) -> None:
    resources = ("resourcequotas", "deployments")

    proxy = operator.proxy
    rules = [Rule(partial(_writes, resource), ON_WRITES["429"]) for resource in resources]

    stage.disturbed([SCENARIOS["create"]] * 2, [partial(_given, rule) for rule in rules], known)

    waits = {resource: proxy.pauses_after("Reply", resource)[-1] for resource in resources}
    print(f"\nseconds from 429 to the next try: {waits}")
    assert min(waits.values()) >= RETRY_AFTER


def no_rule(_token: str, _seen: Sequence[Call]) -> None:
    """Disturb nothing."""


def _rule(point: Point, action: Action) -> MakeRule:
    def made(token: str, seen: Sequence[Call]) -> Rule:
        return replace(point.rule(token, seen), action=action, buries="")

    return made


def _writes(resource: str, call: Call) -> bool:
    return call.is_write and call.resource == resource


def _given(rule: Rule, _token: str, _seen: Sequence[Call]) -> Rule:
    return rule
