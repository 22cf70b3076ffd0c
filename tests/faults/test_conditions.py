"""A condition says since when it has been so; a pass that finds it unchanged leaves that alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.installation import Installation
from tests.support.world import World, tenant_key


def test_a_pass_without_a_transition_keeps_the_times_of_conditions(
    botplane: Installation,
) -> None:
    world = World(botplane)
    tenant = world.tenant()
    before = _since(world.read(*tenant_key(tenant)))
    # Times have whole seconds: a later one must be another one.
    later = max(before.values()) + timedelta(seconds=1)
    world.eventually(lambda: datetime.now(UTC) > later, "the next second has come")

    world.patch(*tenant_key(tenant), {"spec": {"organizationName": "Another SL"}})

    after = _since(world.wait_for(tenant_key(tenant), "Ready", "True"))
    # What Postgres says of the account may come between.
    assert {k: v for k, v in after.items() if k != "WithinLimits"} == {
        k: v for k, v in before.items() if k != "WithinLimits"
    }


def _since(body: dict[str, Any] | None) -> dict[str, datetime]:
    assert body is not None
    return {
        entry["type"]: datetime.fromisoformat(entry["lastTransitionTime"])
        for entry in body["status"]["conditions"]
    }
