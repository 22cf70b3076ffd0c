"""What actors do for real, without a dry run."""

from __future__ import annotations

from typing import Any

from botplane.isolation.attacks import Actor, Call, Scene, create
from botplane.isolation.calls import SYSTEM, Answer
from tests.isolation.conftest import MEMBER, Stage
from tests.support.world import a_bot


def as_member(stage: Stage, call: Call) -> Answer:
    return stage.api.send(call, {"Impersonate-User": MEMBER})


def as_system(stage: Stage, actor: Actor, call: Call) -> Answer:
    namespace, account = SYSTEM[actor]
    return stage.api.send(
        call, {"Impersonate-User": f"system:serviceaccount:{namespace}:{account}"}
    )


def scene(tenant: str) -> Scene:
    return Scene(
        tenant=tenant, namespace=f"tenant-{tenant}", image="sniperforge/bot:1.0.0", bot="bot"
    )


def declared(tenant: str, name: str, **spec: Any) -> Call:
    return create(Actor.TENANT, scene(tenant).bots(), a_bot(tenant, name, **spec))
