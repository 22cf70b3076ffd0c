"""Lives of pods and claims that are known beforehand: what is true of them, and what the API shows.

A life is a script of writes to the stand-in at seconds of the simulated time. Those whose end the
API tells are proven; of the others (freed by hand, without power, restarted unseen) it does not.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

from tests.faults.stand_in import Json, Server, text

FINALIZER = "botplane.io/metering"
PROTECTION = "kubernetes.io/pvc-protection"
NODES = ("node-0", "node-1", "dark")
WEEK = 7 * 86_400
OUTAGE = 600
"""So many scripted seconds are stretched to the week in which every metering is dead."""
PROVEN_PODS = ("finishes", "finishes", "is killed", "is killed", "crashes", "is old", "is evicted")
FREE_PODS = ("never starts", "fails to begin")
LOST_PODS = ("is freed", "flaps", "is wiped", "is without power", "is freed without power")

Stretch = tuple[int, int, int, int]
"""Restart or segment, start, end, bytes."""


@dataclass
class Life:
    """One object, and when it truly ran or was bound.

    Attributes:
        told: By which second the API shows each stretch.
        is_proven: Whether the API tells all of it, so that nothing may be missing.
        went_at: When nothing of it was left to observe.
    """

    uid: str
    collection: str
    namespace: str
    name: str
    is_proven: bool
    true: list[Stretch] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    went_at: int = 0
    grown: list[Stretch] = field(default_factory=list)
    """All that can be told of a claim that nobody saw before it grew."""


@dataclass
class Script:
    """What happens when: the world apart from metering."""

    server: Server
    dice: Random
    outage_at: int | None
    lives: list[Life] = field(default_factory=list)
    _plan: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)

    def at(self, second: int, deed: Callable[[], None]) -> None:
        """Plan a deed."""
        heapq.heappush(self._plan, (second, len(self._plan), deed))

    def play(self, until: int) -> None:
        """Let everything happen that is due, each at its own second."""
        while self._plan and self._plan[0][0] <= until:
            second, _, deed = heapq.heappop(self._plan)
            self.server.now = max(self.server.now, second)
            deed()
        self.server.now = max(self.server.now, until)

    @property
    def is_over(self) -> bool:
        """Say whether nothing is planned any more."""
        return not self._plan

    def stretched(self, second: int) -> int:
        """Return a scripted second as a second of the simulated time."""
        if self.outage_at is None or second < self.outage_at:
            return second
        into = second - self.outage_at
        if into < OUTAGE:
            return self.outage_at + into * WEEK // OUTAGE
        return second + WEEK - OUTAGE


def populate(script: Script, pods: int, claims: int, among: tuple[str, ...] | None = None) -> None:
    """Plan the lives of so many pods and claims; a third of them leaves no proof.

    Args:
        script: Where.
        pods: How many pods.
        claims: How many claims of volumes.
        among: Which lives pods have; None: all there are.
    """
    dice = script.dice
    dark_at = dice.randrange(900, 1500)
    for number in range(pods):
        kinds: tuple[str, ...] = PROVEN_PODS if dice.randrange(8) else FREE_PODS
        kind = dice.choice(among or (LOST_PODS if number % 3 == 0 else kinds))
        _Pod(script, kind, number, dark_at).plan()
    for number in range(claims):
        _Claim(script, number, freed=number % 3 == 0).plan()
    at = script.stretched(dark_at)
    script.at(at, lambda: script.server.nodes.update(dark=at))
    script.at(at + 1000, lambda: script.server.left_nodes.add("dark"))


@dataclass
class _Thing:
    """What pods and claims have in common: a body on the server, and deeds on it."""

    script: Script
    life: Life

    def change(self, second: int, deed: Callable[[Json], None], *, lag: int = 0) -> None:
        """Plan a change of the object, which is no more than a write if it still exists."""

        def do() -> None:
            life = self.life
            body = self.script.server.read(life.collection, life.namespace, life.name)
            if body is not None and body["metadata"]["uid"] == life.uid:
                deed(body)
                self.script.server.write(life.collection, body)

        self.script.at(second + lag, do)

    def create(self, second: int, body: Json) -> None:
        """Plan the birth of the object."""
        tenant = self.life.namespace.removeprefix("tenant-")
        body["metadata"] = {
            "uid": self.life.uid,
            "name": self.life.name,
            "namespace": self.life.namespace,
            "creationTimestamp": text(second),
            "labels": {
                "app.kubernetes.io/managed-by": "botplane",
                "botplane.io/tenant": tenant,
                "botplane.io/tenant-uid": str(UUID(int=1000 + int(tenant[1:]))),
                "botplane.io/bot": "arb",
                "botplane.io/bot-uid": str(UUID(int=2000 + int(tenant[1:]))),
            },
            **body.get("metadata", {}),
        }
        write = self.script.server.write
        self.script.at(second, lambda: write(self.life.collection, body, "ADDED"))


def _life(script: Script, collection: str, number: int, *, is_proven: bool) -> Life:
    life = Life(
        uid=str(UUID(int=script.dice.getrandbits(128), version=4)),
        collection=collection,
        namespace=f"tenant-t{script.dice.randrange(3)}",
        name=f"{collection}-{number}",
        is_proven=is_proven,
    )
    script.lives.append(life)
    return life


class _Pod(_Thing):
    def __init__(self, script: Script, kind: str, number: int, dark_at: int) -> None:
        super().__init__(script, _life(script, "pods", number, is_proven=kind not in LOST_PODS))
        self._kind, self._dice = kind, script.dice
        self._dark_at = dark_at
        self._grace = script.dice.choice([0, 5, 30])

    def plan(self) -> None:
        """Plan the whole life."""
        dice, at = self._dice, self.script.stretched
        born = dice.randrange(600 if self._kind in LOST_PODS else 2400)
        length = dice.choice([dice.randrange(1, 60), dice.randrange(60, 900), dice.randrange(2400)])
        begins = born + dice.randrange(1, 30)
        is_dark = self._kind.endswith("without power")
        node = "dark" if is_dark else dice.choice(NODES[:2])
        is_placed = self._kind != "never starts"
        requests = {"requests": {"cpu": "500m", "memory": "1Gi"}}
        self.create(
            at(born),
            {
                "metadata": {"finalizers": [FINALIZER]},
                "spec": {
                    **({"nodeName": node} if is_placed else {}),
                    "containers": [{"name": "bot", "resources": requests}],
                },
                "status": {"phase": "Pending"},
            },
        )
        if self._kind in FREE_PODS:
            self._go(at(begins + length), None)
        elif is_dark:
            self._without_power(at(begins))
        elif self._kind == "is freed":
            self._freed(at(begins), at(begins + length))
        else:
            self._run(begins, begins + length)

    def _run(self, begins: int, over: int) -> None:
        dice, at = self._dice, self.script.stretched
        start, end = at(begins), at(over)
        if self._kind == "is old":
            start -= dice.randrange(40 * 86_400)
        restarts = {"crashes": 1, "flaps": dice.randrange(3, 7)}.get(self._kind, 0)
        last: tuple[int, int] | None = None
        self._shows(at(begins), {"running": {"startedAt": text(start)}}, 0, None)
        for restart in range(restarts):
            crash = start + (end - start) * dice.randrange(10, 60) // 100
            again = min(end, crash + dice.randrange(1, 60))
            self._true(restart, start, crash)
            last = (start, crash)
            self._shows(crash, {"waiting": {"reason": "CrashLoopBackOff"}}, restart, last)
            running = {"running": {"startedAt": text(again)}}
            self._shows(again, running, restart + 1, last)
            start = again
        if self._kind == "is killed":
            wish, end = end, end + dice.randrange(self._grace + 1)
            self._true(restarts, start, end)
            self._go(wish, (start, end), restart=restarts, last=last)
            return
        self._true(restarts, start, end)
        phase = "Failed" if self._kind == "is evicted" else "Succeeded"
        self._shows(end, _terminated(start, end), restarts, last, phase=phase)
        wish = end + dice.randrange(1, 300)
        if self._kind == "is wiped":
            self._shows(wish, {"terminated": {"exitCode": 137}}, restarts, None, phase=phase)
            wish += 200
        self._go(wish, None)

    def _without_power(self, begins: int) -> None:
        dark = self.script.stretched(self._dark_at)
        self._true(0, begins, dark)
        self._shows(begins, {"running": {"startedAt": text(begins)}}, 0, None)

        if self._kind == "is freed without power":
            self._free(dark + self._dice.randrange(60, 340))
            return

        def evict(body: Json) -> None:
            body["status"]["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
            ]
            _ask_to_go(body, dark + 350, 30)

        self.change(dark + 350, evict)
        self.change(dark + 1100, lambda body: _ask_to_go(body, dark + 1100, 0))
        self.life.went_at = dark + 1100

    def _freed(self, begins: int, at: int) -> None:
        self._true(0, begins, at + self._dice.randrange(3))
        self._shows(begins, {"running": {"startedAt": text(begins)}}, 0, None)
        self._free(at)

    def _free(self, at: int) -> None:
        def free(body: Json) -> None:
            body["metadata"]["finalizers"] = []
            _ask_to_go(body, at, 0)

        self.change(at + 1, free)
        self.life.went_at = at + 1

    def _go(self, wish: int, run: tuple[int, int] | None, **more: Any) -> None:
        """Plan the deletion; with a run, its kubelet ends it first."""
        grace = self._grace if run else 0
        self.change(wish, lambda body: _ask_to_go(body, wish, grace))
        gone = wish
        if run is not None:
            gone = max(wish, run[1])
            state, restart = _terminated(*run), more["restart"]
            self._shows(gone, state, restart, more["last"], phase="Failed")
        confirmed = gone + 31
        self.change(confirmed, lambda body: _ask_to_go(body, confirmed, 0))
        self.life.went_at = confirmed

    def _shows(
        self, second: int, state: Json, restart: int, last: tuple[int, int] | None, **more: str
    ) -> None:
        """Plan what the kubelet writes; it is seldom late, and then by less than the next."""
        status = {"name": "bot", "restartCount": restart, "state": state, "lastState": {}}
        if last is not None:
            status["lastState"] = _terminated(*last)

        def show(body: Json) -> None:
            body["status"] = {
                **body["status"],
                "phase": more.get("phase", "Running"),
                "containerStatuses": [status],
            }

        self.change(second, show)

    def _true(self, restart: int, start: int, end: int) -> None:
        self.life.true.append((restart, start, end, 0))
        self.life.told.append(end)


class _Claim(_Thing):
    def __init__(self, script: Script, number: int, *, freed: bool) -> None:
        life = _life(script, "persistentvolumeclaims", number, is_proven=not freed)
        super().__init__(script, life)

    def plan(self) -> None:
        """Plan the whole life."""
        dice, at = self.script.dice, self.script.stretched
        born = dice.randrange(2400)
        bound = born + dice.randrange(1, 60)
        grown = bound + dice.randrange(1, 600)
        wish = grown + dice.randrange(1, 600)
        finalizers = [PROTECTION, FINALIZER] if dice.randrange(2) else [FINALIZER]
        self.create(
            at(born), {"metadata": {"finalizers": finalizers}, "status": {"phase": "Pending"}}
        )
        size = dice.choice([1, 10, 100]) * 2**30
        is_bound, grows = dice.randrange(6) > 0, dice.randrange(2) > 0
        if is_bound:
            self.change(at(bound), lambda body: _bind(body, at(bound), size))
            # What binds writes conditions beside the phase, again and again.
            self.change(at(bound) + 7, lambda body: _used(body, at(bound) + 7))
            self.life.true = [(0, at(bound), at(wish), size)]
            if grows:
                self.change(at(grown), lambda body: _grow(body, at(grown), 2 * size))
                self.life.true = [
                    (0, at(bound), at(grown), size),
                    (1, at(grown), at(wish), 2 * size),
                ]
                self.life.grown = [(0, at(grown), at(wish), 2 * size)]
        self.life.told = [end for _, _, end, _ in self.life.true]
        if not self.life.is_proven:
            self.change(at(wish), lambda body: body["metadata"].update(finalizers=[]))
        self.change(at(wish), lambda body: _ask_to_go(body, at(wish), 0))
        self.change(at(wish) + dice.randrange(90), _unprotect)
        self.life.went_at = at(wish) + 90


def _ask_to_go(body: Json, second: int, grace: int) -> None:
    meta = body["metadata"]
    # The wish of somebody before stands, unless this one is for sooner.
    until = min(meta.get("deletionTimestamp", "9"), text(second + grace))
    meta |= {"deletionTimestamp": until, "deletionGracePeriodSeconds": grace}


def _bind(body: Json, second: int, size: int) -> None:
    mark: Json = {"f:annotations": {"f:pv.kubernetes.io/bind-completed": {}}}
    phase: Json = {"f:phase": {}, "f:capacity": {".": {}, "f:storage": {}}}
    body["status"] = {"phase": "Bound", "capacity": {"storage": str(size)}}
    body["metadata"]["managedFields"] = [
        {"manager": "binder", "time": text(second), "fieldsV1": {"f:metadata": mark}},
        {
            "manager": "binder",
            "time": text(second),
            "subresource": "status",
            "fieldsV1": {"f:status": phase},
        },
    ]


def _used(body: Json, second: int) -> None:
    if len(body["metadata"]["managedFields"]) > 1:
        body["metadata"]["managedFields"][1]["time"] = text(second)


def _grow(body: Json, second: int, size: int) -> None:
    body["status"]["capacity"] = {"storage": str(size)}
    body["metadata"]["managedFields"][1]["fieldsV1"] = {"f:status": {"f:phase": {}}}
    body["metadata"]["managedFields"].append(
        {
            "manager": "resizer",
            "time": text(second),
            "subresource": "status",
            "fieldsV1": {"f:status": {"f:capacity": {"f:storage": {}}}},
        }
    )


def _unprotect(body: Json) -> None:
    held = body["metadata"]["finalizers"]
    body["metadata"]["finalizers"] = [name for name in held if name != PROTECTION]


def _terminated(start: int, end: int) -> Json:
    return {
        "terminated": {"exitCode": 1, "startedAt": text(start), "finishedAt": text(end)},
    }
