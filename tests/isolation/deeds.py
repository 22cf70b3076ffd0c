"""What actors do for real, without a dry run."""

from __future__ import annotations

from typing import Any

from botplane.isolation.attacks import Actor, Call, Scene, create
from botplane.isolation.calls import SYSTEM, Answer
from tests.isolation.conftest import MEMBER, Stage
from tests.support.world import a_bot


def as_user(stage: Stage, user: str, call: Call) -> Answer:
    """Return the answer to a user's call, the administrator's for none.

    Where a quota is counted at that moment the API server refuses it and asks to try again.
    """
    headers = {"Impersonate-User": user} if user else {}

    def settled() -> Answer | None:
        answer = stage.api.send(call, headers)
        return None if "fulfilled on resourcequotas" in answer.message else answer

    return stage.world.eventually(settled, f"an answer to {call.method} {call.path}")


def as_member(stage: Stage, call: Call) -> Answer:
    return as_user(stage, MEMBER, call)


def as_system(stage: Stage, actor: Actor, call: Call) -> Answer:
    namespace, account = SYSTEM[actor]
    return as_user(stage, f"system:serviceaccount:{namespace}:{account}", call)


def scene(tenant: str) -> Scene:
    return Scene(
        tenant=tenant, namespace=f"tenant-{tenant}", image="sniperforge/bot:1.0.0", bot="bot"
    )


def declared(tenant: str, name: str, **spec: Any) -> Call:
    return create(Actor.TENANT, scene(tenant).bots(), a_bot(tenant, name, **spec))
