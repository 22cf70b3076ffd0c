"""Billed seconds equal what the container itself wrote down, however its run ends.

The API knows times to the second, rounded down, so a run may be billed up to one second more or
less than it lasted; over many runs that evens out. More than that is never billed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import pytest

from tests.node.containers import Containers, status_of
from tests.node.diary import Diaries, Life
from tests.node.figures import Figures
from tests.support.controlplane import postgres as servers
from tests.support.controlplane.node import lifecycle
from tests.support.installation import CommandFailedError
from tests.support.world import World, bot_key

RESOLUTION = 1.0
# From the start of the process until its first line, and from its last line until its end.
UNWRITTEN = 0.3


@dataclass(frozen=True, kw_only=True)
class Billed:
    """A run as it is stored."""

    started_at: datetime
    ended_at: datetime | None
    reason: str | None
    quality: str | None

    @property
    def seconds(self) -> float:
        assert self.ended_at is not None
        return (self.ended_at - self.started_at).total_seconds()


class Meter:
    """Compares what is billed for a pod with its diary."""

    def __init__(self, url: str, diaries: Diaries, figures: Figures) -> None:
        self._url = url
        self._diaries = diaries
        self._figures = figures

    def runs(self, uid: str) -> dict[int, Billed]:
        """Return the stored runs of a pod's container."""
        query = (
            "SELECT restart, min(started_at), max(ended_at), max(close_reason), max(close_quality),"
            " bool_or(ended_at IS NULL) FROM runtime_interval WHERE pod_uid = %s GROUP BY restart"
        )
        with psycopg.connect(self._url) as connection:
            rows = connection.execute(query, [uid]).fetchall()
        return {
            number: Billed(
                started_at=start, ended_at=None if is_open else end, reason=reason, quality=quality
            )
            for number, start, end, reason, quality, is_open in rows
        }

    def is_closed(self, uid: str, *numbers: int) -> bool:
        """Tell whether these runs have an end."""
        runs = self.runs(uid)
        return all(n in runs and runs[n].ended_at is not None for n in numbers)

    def compare(self, what: str, uid: str, *numbers: int) -> list[tuple[Billed, Life]]:
        """Check runs against their diaries, and note the figures."""
        billed, lives = self.runs(uid), self._diaries.of(uid)
        pairs = [(billed[n], lives[n]) for n in numbers]
        for number, (run, life) in zip(numbers, pairs, strict=True):
            self._figures.add(
                f"{what}, run {number}",
                f"billed {run.seconds:6.0f} s   lived {life.seconds:7.2f} s"
                f"   {run.seconds - life.seconds:+6.2f} s   {run.quality}",
            )
        for run, life in pairs:
            assert run.seconds - life.seconds <= RESOLUTION + UNWRITTEN, "billed too much"
            # The container's clock was the node's: nobody has moved it meanwhile.
            assert abs(life.seconds - life.mono_seconds) < 0.1
        return pairs

    def exact(self, what: str, uid: str, *numbers: int) -> None:
        """Check that runs are billed to the second."""
        for run, life in self.compare(what, uid, *numbers):
            assert run.quality == "exact"
            assert abs(run.seconds - life.seconds) <= RESOLUTION + UNWRITTEN


@pytest.fixture
def meter(postgres: servers.Postgres, diaries: Diaries, figures: Figures) -> Meter:
    return Meter(postgres.database_url("botplane"), diaries, figures)


def test_each_run_of_a_crash_loop(world: World, containers: Containers, meter: Meter) -> None:
    tenant = world.tenant()
    pod = containers.bot(tenant, runtimeConfig={"crashAfterMs": 3300, "exitCode": 3})
    uid = pod["metadata"]["uid"]

    world.eventually(lambda: meter.is_closed(uid, 0, 1, 2), "three runs are billed", 90)

    meter.exact("crash loop", uid, 0, 1, 2)


def test_a_run_that_the_kernel_ends_for_its_memory(
    world: World, containers: Containers, meter: Meter
) -> None:
    tenant = world.tenant()
    pod = containers.bot(tenant)
    uid = pod["metadata"]["uid"]

    containers.ask(pod, "/eat")

    def killed() -> bool:
        last = status_of(containers.pods(tenant)[0]).get("lastState", {}).get("terminated", {})
        return bool(last.get("reason") == "OOMKilled")

    world.eventually(killed, "killed for its memory")
    world.eventually(lambda: meter.is_closed(uid, 0), "the run is billed")
    meter.exact("out of memory", uid, 0)


def test_the_hook_before_the_stop_and_the_grace_period_count(
    world: World, containers: Containers, meter: Meter
) -> None:
    tenant = world.tenant()
    pod = containers.bot(tenant, runtimeConfig={"onStopMs": 2500, "stopMs": 1500})
    uid = pod["metadata"]["uid"]

    world.patch(*bot_key(tenant), {"spec": {"suspend": True}})

    world.eventually(lambda: not containers.pods(tenant), "the pod is gone")
    meter.exact("preStop and grace period", uid, 0)


def test_a_pod_deleted_by_force_is_billed_until_its_container_ends(
    world: World, containers: Containers, meter: Meter, diaries: Diaries
) -> None:
    tenant = world.tenant()
    pod = containers.bot(tenant, runtimeConfig={"stopMs": 1200})
    meta = pod["metadata"]

    force = ("--force", "--grace-period=0", "--wait=false")
    world.installed.kubectl("delete", "pod", meta["name"], "-n", meta["namespace"], *force)

    def gone() -> bool:
        return all(p["metadata"]["uid"] != meta["uid"] for p in containers.pods(tenant))

    world.eventually(gone, "the pod is gone")
    meter.exact("deleted by force", meta["uid"], 0)
    (life,) = diaries.of(meta["uid"]).values()
    assert time.time() - life.last < 40


def test_a_run_that_ends_while_the_kubelet_is_dead(
    world: World, containers: Containers, meter: Meter, diaries: Diaries
) -> None:
    tenant = world.tenant()
    pod = containers.bot(tenant, runtimeConfig={"crashAfterMs": 6000, "exitCode": 3})
    uid = pod["metadata"]["uid"]
    cluster = world.installed.cluster

    cluster.kill9("kubelet")
    world.eventually(lambda: diaries.of(uid)[0].at("end"), "the bot ends without a kubelet")
    cluster.restart("kubelet")

    world.eventually(lambda: meter.is_closed(uid, 0), "the run is billed")
    meter.exact("kubelet dead at the end", uid, 0)


def test_runs_go_on_while_kubelet_and_containerd_are_killed(
    world: World, containers: Containers, meter: Meter
) -> None:
    tenant = world.tenant()
    pod = containers.bot(tenant)
    uid = pod["metadata"]["uid"]
    cluster = world.installed.cluster

    for program in ("kubelet", "containerd"):
        cluster.kill9(program)
    for program in ("containerd", "kubelet"):
        cluster.restart(program)

    world.eventually(lambda: _can_be_reached(containers, pod), "the pod answers")
    assert status_of(containers.pod(tenant))["restartCount"] == 0
    world.patch(*bot_key(tenant), {"spec": {"suspend": True}})
    world.eventually(lambda: not containers.pods(tenant), "the pod is gone")
    meter.exact("kubelet and containerd killed", uid, 0)


def test_a_machine_that_loses_its_power_is_never_billed_for_more_than_it_ran(
    world: World, containers: Containers, meter: Meter, diaries: Diaries, figures: Figures
) -> None:
    tenant = world.tenant()
    pod = containers.bot(tenant)
    uid = pod["metadata"]["uid"]
    cluster = world.installed.cluster
    world.eventually(lambda: 0 in meter.runs(uid), "the run is stored")
    world.eventually(lambda: diaries.of(uid)[0].seconds > 4, "the bot has run for a while")

    # Ours lose it too, as pods of that machine would: left alone, each would end only when its
    # lease was not renewed for long enough, at about the time at which the machine is back.
    ours = ("operator", "metering")
    for process in ours:
        world.installed.kill9(process)
    lifecycle.cut_power(cluster.state)
    time.sleep(5)
    started = time.monotonic()
    lifecycle.start(cluster.state)
    for process in ours:
        world.installed.start(process)

    def back() -> bool:
        status = status_of(containers.pods(tenant)[0])
        return bool(status.get("ready")) and status["restartCount"] == 1

    world.eventually(back, "the bot runs again", 90)
    figures.add("power back until the bot is Ready", f"{time.monotonic() - started:.1f} s")
    world.eventually(lambda: meter.is_closed(uid, 0), "the first run is billed")
    shown = status_of(containers.pod(tenant))["lastState"]["terminated"]
    told = {key: shown[key] for key in ("exitCode", "reason", "startedAt", "finishedAt")}
    figures.add("power cut, what the API tells", " ".join(map(str, told.values())))
    meter.compare("power cut", uid, 0)
    world.patch(*bot_key(tenant), {"spec": {"suspend": True}})
    world.eventually(lambda: not containers.pods(tenant), "the pod is gone")
    meter.exact("after the power cut", uid, 1)


def _can_be_reached(containers: Containers, pod: dict[str, Any]) -> bool:
    try:
        containers.exec(pod, "ask", "/healthz")
    except CommandFailedError:
        return False
    return True
