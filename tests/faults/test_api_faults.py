"""The API server refuses, breaks off, repeats itself or falls silent; the world ends the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, product

import pytest

from tests.faults import calls
from tests.faults.calls import Action, Call, Rule
from tests.faults.early_ready import EarlyReady
from tests.faults.proxied import ProxiedOperator
from tests.faults.rehearsal import (
    WHOLE,
    MakeRule,
    Point,
    Reference,
    Stage,
    points_of,
    sample,
)
from tests.faults.scenarios import SCENARIOS
from tests.support.controlplane.waiting import until
from tests.support.installation import Installation
from tests.support.world import World, a_bot, a_name, a_tenant, bot_key, tenant_key

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
FATAL = (calls.Error(500), calls.Truncate())
"""What kopf ends at, by its own design; a restart is cheap."""
SCENARIOS_OF_WATCHES = ("create", "drift") if WHOLE else ("create",)
WATCHED = (
    "tenants",
    "botdeployments",
    "namespaces",
    "configmaps",
    "networkpolicies",
    "deployments",
)
AT_ONCE = 12
WRITES_PER_FAULT = 24
REFUSED = ("resourcequotas", "deployments")
TOO_MANY = 9
"""Replicas, in every plan of the tests."""
SIDE_BY_SIDE = "side by side"
"""The case that a sample makes of all: each fault meets another tenant at the same time."""


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
def operator(proxied: ProxiedOperator) -> Iterator[ProxiedOperator]:
    """The operator with full lists every few seconds, which else come every five minutes."""
    proxied.restart(BOTPLANE_RESYNC_SECONDS="3")
    yield proxied
    proxied.restart(BOTPLANE_RESYNC_SECONDS="300")


@pytest.fixture(scope="module")
def watcher(botplane: Installation) -> Iterator[EarlyReady]:
    watcher = EarlyReady(botplane.cluster.api())
    yield watcher
    watcher.close()


@pytest.fixture(scope="module")
def stage(
    botplane: Installation,
    operator: ProxiedOperator,
    watcher: EarlyReady,
    undisturbed: dict[str, Reference],
) -> Stage:
    assert watcher.judged()[1] == []
    return Stage(World(botplane), operator, undisturbed)


def cases(faults: dict[str, Action]) -> dict[str, dict[str, Action]]:
    """Return what is played at once: one fault after the other, or in a sample all together.

    What restarts the operator is left out of a sample: a restart would heal the other faults.
    """
    if WHOLE:
        return {name: {name: action} for name, action in faults.items()}
    return {SIDE_BY_SIDE: {n: action for n, action in faults.items() if action not in FATAL}}


@pytest.mark.parametrize("faults", cases(ON_WRITES).values(), ids=cases(ON_WRITES))
def test_a_write_that_fails_is_made_good(
    stage: Stage, operator: ProxiedOperator, faults: dict[str, Action]
) -> None:
    before = [point for point in points_of(stage.references()) if not point.after]
    actions = list(faults.values())
    chosen = sample(before, WRITES_PER_FAULT if WHOLE else len(faults), "".join(faults))
    restarts = operator.restarts

    for start in range(0, len(chosen), AT_ONCE):
        batch = chosen[start : start + AT_ONCE]
        failed = stage.disturbed(
            [SCENARIOS[point.scenario] for point in batch],
            [_rule(point, actions[i % len(actions)]) for i, point in enumerate(batch)],
        )
        assert not failed, "\n".join(failed)

    print(f"\n{', '.join(faults)}: {len(chosen)} writes")
    assert operator.restarts == restarts


@pytest.mark.parametrize("faults", cases(ON_WATCHES).values(), ids=cases(ON_WATCHES))
def test_a_watch_that_fails_is_made_good(
    stage: Stage, operator: ProxiedOperator, faults: dict[str, Action]
) -> None:
    stage.references()
    kinds = [*product(SCENARIOS_OF_WATCHES, WATCHED), ("quota-up-and-down", "plans")]
    if WHOLE:
        chosen = [WatchFault(*kind, action) for kind in kinds for action in faults.values()]
    else:
        chosen = [WatchFault(*k, a) for k, a in zip(cycle(kinds), faults.values(), strict=False)]
    restarts = operator.restarts

    failed = stage.disturbed(
        [SCENARIOS[fault.scenario] for fault in chosen], [fault.rule for fault in chosen]
    )

    assert not failed, "\n".join(failed)
    ended, fatal = operator.restarts - restarts, sum(f.action in FATAL for f in chosen)
    print(f"\n{', '.join(faults)}: {len(chosen)} faults, {ended} restarts")
    assert ended <= fatal


def test_no_tenant_was_ready_before_it_was_closed(
    botplane: Installation, watcher: EarlyReady
) -> None:
    """Judges all that this file has played so far, faults included."""
    World(botplane).tenant()

    def judged() -> tuple[int, list[str]] | None:
        ready, early = watcher.judged()
        return (ready, early) if ready else None

    ready, early = until(judged, what="a Tenant was seen to become Ready")

    print(f"\n{ready} times a Tenant became Ready, {len(early)} times too early")
    assert early == []


def test_retry_after_is_obeyed(botplane: Installation, operator: ProxiedOperator) -> None:
    world, name = World(botplane), a_name("c")
    refused = [Rule(partial(_writes, name, kind), ON_WRITES["429"]) for kind in REFUSED]
    operator.proxy.add(*refused)

    world.create(a_tenant(name))
    until(refused[0].reached.is_set, what="the quota was refused")
    world.wait_for(tenant_key(name), "Ready", "True")
    world.bot(name)

    waits = {kind: operator.proxy.pauses_after("Reply", kind)[-1] for kind in REFUSED}
    operator.proxy.clear()
    print(f"\nseconds from 429 to the next try: {waits}")
    assert min(waits.values()) >= RETRY_AFTER


def test_a_change_that_the_answer_to_a_status_write_tells_first_is_followed(
    botplane: Installation, operator: ProxiedOperator
) -> None:
    world = World(botplane)
    tenant = world.tenant()
    # Beyond the plan: nothing else changes with it, whose news would bring another pass.
    world.create(a_bot(tenant, replicas=TOO_MANY))
    world.wait_for(bot_key(tenant), "WithinPlan", "ReplicaLimitReached")
    answer = Rule(partial(_writes, tenant, "botdeployments"), calls.Delay(1))
    watch = Rule(
        lambda call: call.resource == "botdeployments",
        calls.Hold(3),
        event=lambda event: event["object"]["spec"].get("replicas") == TOO_MANY + 2,
    )
    operator.proxy.add(answer, watch)

    world.patch(*bot_key(tenant), {"spec": {"replicas": TOO_MANY + 1}})
    until(answer.reached.is_set, what="the status is being written")
    world.patch(*bot_key(tenant), {"spec": {"replicas": TOO_MANY + 2}})

    said = f"spec.replicas is {TOO_MANY + 2} "
    world.eventually(lambda: said in str(world.read(*bot_key(tenant))), said)
    operator.proxy.clear()
    assert answer.answered.is_set()
    assert watch.hits == 1


def _rule(point: Point, action: Action) -> MakeRule:
    def made(token: str, seen: Sequence[Call]) -> Rule:
        return replace(point.rule(token, seen), action=action, buries="")

    return made


def _writes(token: str, resource: str, call: Call) -> bool:
    return call.is_write and call.resource == resource and call.concerns(token)
