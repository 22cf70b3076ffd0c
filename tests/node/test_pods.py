"""Bots as real pods: they start restricted, are watched, scaled, replaced and stopped in order."""

from __future__ import annotations

import time
from typing import Any

from tests.node.containers import Containers, is_live, status_of
from tests.node.diary import Diaries, Life
from tests.node.figures import Figures
from tests.support.world import World, bot_key

EPERM, EROFS, ENOENT = "EPERM", "EROFS", "ENOENT"


def test_a_bot_starts_as_the_operator_renders_it_with_a_read_only_root(
    world: World, containers: Containers, figures: Figures
) -> None:
    tenant = world.tenant()

    started = time.monotonic()
    pod = containers.bot(tenant)

    figures.add("bot applied until Ready", f"{time.monotonic() - started:.1f} s")
    security = pod["spec"]["containers"][0]["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert status_of(pod)["restartCount"] == 0


def test_iso_073_there_is_no_token_of_a_service_account_in_the_pod(
    world: World, containers: Containers
) -> None:
    pod = containers.bot(world.tenant())

    assert containers.forbidden(pod)["token"] == ENOENT


def test_iso_074_the_kernel_refuses_what_a_bot_must_not_do(
    world: World, containers: Containers
) -> None:
    pod = containers.bot(world.tenant())

    answers = containers.forbidden(pod)

    assert answers["write /tmp"] == "done"
    assert answers["uid"] == "not root"
    assert answers["no new privileges"] == "1"
    assert answers["seccomp"] == "2"
    assert set(answers["capabilities"].split()) == {"0000000000000000"}
    refused = {
        "write /": EROFS,
        "write /usr/local/bin": EROFS,
        "write /config": EROFS,
        "setuid 0": EPERM,
        "mount": EPERM,
        "unshare": EPERM,
        "raw socket": EPERM,
        "packet socket": EPERM,
        "mknod": EPERM,
        "sethostname": EPERM,
        "reboot": EPERM,
    }
    assert {what: answers[what] for what in refused} == refused
    assert answers["other process"] in {EPERM, "ESRCH"}


def test_an_unhealthy_bot_is_restarted_by_its_probe(
    world: World, containers: Containers, diaries: Diaries
) -> None:
    tenant = world.tenant()
    pod = containers.bot(tenant)

    containers.ask(pod, "/unhealthy")

    def healthy_again() -> bool:
        status = status_of(containers.pod(tenant))
        return status["restartCount"] == 1 and bool(status["ready"])

    world.eventually(healthy_again, "restarted by the probe and ready")
    first, second = diaries.of(pod["metadata"]["uid"]).values()
    assert first.at("term") is not None
    assert first.last < second.start


def test_kubectl_scale_starts_and_stops_real_pods(
    world: World, containers: Containers, figures: Figures
) -> None:
    tenant = world.tenant()
    containers.bot(tenant)

    for replicas in (3, 1):
        scale = ("scale", "bot", "bot", "-n", f"tenant-{tenant}", f"--replicas={replicas}")
        world.installed.kubectl(*scale)

        def as_many(wanted: int = replicas) -> bool:
            body = world.read(*bot_key(tenant))
            live = [pod for pod in containers.pods(tenant) if is_live(pod)]
            assert body is not None
            ready: int = body["status"].get("readyReplicas", 0)
            return len(live) == wanted == ready

        seconds = world.seconds_until(as_many, f"{replicas} replicas are ready")
        figures.add(f"kubectl scale to {replicas}", f"{seconds:.1f} s")


def test_a_changed_configuration_stops_the_old_bot_before_the_new_one_starts(
    world: World, containers: Containers, diaries: Diaries, figures: Figures
) -> None:
    tenant = world.tenant()
    old = containers.bot(tenant, runtimeConfig={"level": 1, "onStopMs": 500, "stopMs": 500})

    changed = {"level": 2, "onStopMs": 500, "stopMs": 500}
    world.patch(*bot_key(tenant), {"spec": {"runtimeConfig": changed}})

    new = world.eventually(lambda: _successor(containers, tenant, old), "the new bot runs")
    before, after = _life(diaries, old), _life(diaries, new)
    assert [name for name, _, _ in before.events] == [
        *("start", "on-stop", "on-stop done", "term", "end")
    ]
    gap = after.start - before.last
    figures.add("rollout: old bot's end until new bot's start", f"{gap:.2f} s")
    assert gap > 0


def test_suspend_runs_on_stop_with_its_mode_and_then_asks_to_end_within_the_grace_period(
    world: World, containers: Containers, diaries: Diaries, figures: Figures
) -> None:
    tenant = world.tenant()
    pod = containers.bot(
        tenant,
        runtimeConfig={"onStopMs": 1500, "stopMs": 700},
        shutdown={"onSuspend": "ClosePositions", "gracePeriodSeconds": 10},
    )

    asked = time.time()
    world.patch(*bot_key(tenant), {"spec": {"suspend": True}})

    world.eventually(lambda: not containers.pods(tenant), "the pod is gone")
    life = _life(diaries, pod)
    assert [(name, text) for name, text, _ in life.events[1:]] == [
        ("on-stop", "ClosePositions"),
        ("on-stop done", ""),
        ("term", ""),
        ("end", "0"),
    ]
    figures.add("suspend until on-stop runs", f"{(life.at('on-stop') or 0) - asked:.2f} s")
    assert life.last - life.events[1][2] < 10


def test_a_bot_that_does_not_end_is_killed_when_its_grace_period_is_over(
    world: World, containers: Containers, diaries: Diaries
) -> None:
    tenant = world.tenant()
    pod = containers.bot(
        tenant,
        runtimeConfig={"onStopMs": 60_000},
        shutdown={"onSuspend": "CancelOrders", "gracePeriodSeconds": 3},
    )

    world.patch(*bot_key(tenant), {"spec": {"suspend": True}})

    world.eventually(lambda: not containers.pods(tenant), "the pod is gone")
    life = _life(diaries, pod)
    assert life.events[1][:2] == ("on-stop", "CancelOrders")
    # A kubelet gives a pod whose preStop hook has used up the time two seconds more.
    assert 2.5 <= life.last - life.events[1][2] <= 7


def test_with_leave_open_there_is_only_the_signal(
    world: World, containers: Containers, diaries: Diaries
) -> None:
    tenant = world.tenant()
    pod = containers.bot(tenant, shutdown={"onSuspend": "LeaveOpen", "gracePeriodSeconds": 10})

    world.patch(*bot_key(tenant), {"spec": {"suspend": True}})

    world.eventually(lambda: not containers.pods(tenant), "the pod is gone")
    assert [name for name, _, _ in _life(diaries, pod).events] == ["start", "term", "end"]


def _successor(containers: Containers, tenant: str, old: dict[str, Any]) -> dict[str, Any] | None:
    for pod in containers.pods(tenant):
        differs = pod["metadata"]["uid"] != old["metadata"]["uid"]
        if differs and is_live(pod) and status_of(pod)["ready"]:
            return pod
    return None


def _life(diaries: Diaries, pod: dict[str, Any]) -> Life:
    (life,) = diaries.of(pod["metadata"]["uid"]).values()
    return life
