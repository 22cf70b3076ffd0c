"""The writer of status: what the API server has afterwards."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from botplane.api.conditions import Outcome, summarize
from botplane.errors import Retryable
from botplane.kube.client import KubeClient
from botplane.kube.observe import Key
from botplane.runtime.objects import Objects
from botplane.runtime.status import StatusWriter
from tests.support.api_server import Address, Answer, APIServer, failure

Served = tuple[APIServer, KubeClient]
NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)
ACME = Key("Tenant", "", "acme")
PLACE = ("tenants", "", "acme")
STALLED = summarize(Outcome.STALLED, "PlanNotFound", "no plan")
READY = summarize(Outcome.READY, "Provisioned", "all is well")


class World:
    """One Tenant on an API server, and our writer of its status."""

    def __init__(self, served: Served) -> None:
        self.api, client = served
        self.objects = Objects()
        self.writer = StatusWriter(client, self.objects, lambda: NOON)
        meta = {"name": "acme", "generation": 2}
        tenant = {"apiVersion": "botplane.io/v1alpha1", "kind": "Tenant", "metadata": meta}
        self.objects.observe(self.api.put("tenants", tenant))

    @property
    def body(self) -> dict[str, Any]:
        """The Tenant as a pass sees it."""
        body = self.objects.get(ACME)
        assert body is not None
        return body

    @property
    def events(self) -> list[tuple[str, str]]:
        """Type and reason of each Event."""
        kept = [body for place, body in self.api.objects.items() if place[0] == "events"]
        return [(event["type"], event["reason"]) for event in kept]


async def test_conditions_and_generation_are_written_together_and_nothing_of_none(
    served: Served,
) -> None:
    world = World(served)

    written = await world.writer.write(
        world.body, READY, {"namespace": "tenant-acme", "bots": None}
    )

    assert written
    status = world.api.objects[PLACE]["status"]
    assert status["observedGeneration"] == 2
    assert status["namespace"] == "tenant-acme"
    assert "bots" not in status
    assert [c["type"] for c in status["conditions"]] == ["Ready"]


async def test_the_same_again_is_no_write(served: Served) -> None:
    world = World(served)
    await world.writer.write(world.body, READY, {})
    requests = world.api.requests

    assert not await world.writer.write(world.body, READY, {})
    assert world.api.requests == requests


async def test_people_are_told_of_each_change_of_ready_once(served: Served) -> None:
    world = World(served)

    await world.writer.write(world.body, STALLED, {})
    await world.writer.write(world.body, STALLED, {"namespace": "tenant-acme"})
    await world.writer.write(world.body, READY, {})

    assert world.events == [("Warning", "PlanNotFound"), ("Normal", "Provisioned")]


async def test_an_event_that_is_refused_does_not_fail_the_pass(served: Served) -> None:
    world = World(served)
    refusal = failure(403, "events is forbidden")
    world.api.answer = lambda _method, address: refusal if address.plural == "events" else None

    assert await world.writer.write(world.body, READY, {})
    assert world.events == []


async def test_an_object_that_is_gone_is_forgotten_and_not_made_again(served: Served) -> None:
    world = World(served)
    body = world.body
    del world.api.objects[PLACE]

    assert not await world.writer.write(body, READY, {})
    assert world.objects.get(ACME) is None
    assert world.api.objects == {}


async def test_the_successor_that_a_watch_tells_before_our_write_is_answered_stays_known(
    served: Served,
) -> None:
    world = World(served)
    body, gone = world.body, failure(404, "not found")
    del world.api.objects[PLACE]

    def answer(_method: str, _address: Address) -> Answer:
        meta = {"name": "acme", "generation": 1}
        tenant = {"apiVersion": "botplane.io/v1alpha1", "kind": "Tenant", "metadata": meta}
        assert world.objects.observe(world.api.put("tenants", tenant)) == ACME
        return gone

    world.api.answer = answer

    assert not await world.writer.write(body, READY, {})
    assert world.objects.uid(ACME) == world.api.objects[PLACE]["metadata"]["uid"]


async def test_a_server_that_fails_is_tried_again(served: Served) -> None:
    world = World(served)
    refusal = failure(503, "later")
    world.api.answer = lambda _method, _address: refusal

    with pytest.raises(Retryable):
        await world.writer.write(world.body, READY, {})
