"""The choke point: what it writes, what it refuses to write, what it leaves to others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from botplane.errors import Rejected, Retryable
from botplane.kube.apply import Applier, Boundary, OutOfBoundsError
from botplane.kube.client import KubeClient
from botplane.kube.observe import Children, Key
from botplane.kube.resources import Ref
from tests.support.api_server import Address, Answer, APIServer, failure

Served = tuple[APIServer, KubeClient]
ARB = Key("BotDeployment", "tenant-acme", "arb-1")
BOUNDARY = Boundary(frozenset({"ConfigMap", "Service", "Namespace"}), "tenant-acme")
PLACE = ("configmaps", "tenant-acme", "arb-1")


def child(kind: str = "ConfigMap", name: str = "arb-1", **more: Any) -> dict[str, Any]:
    meta = {
        "name": name,
        "namespace": "tenant-acme",
        "labels": {"botplane.io/tenant": "acme", "botplane.io/bot": "arb-1"},
        "ownerReferences": [{"kind": "BotDeployment", "name": "arb-1", "controller": True}],
    }
    version = "apps/v1" if kind == "Deployment" else "v1"
    return {"apiVersion": version, "kind": kind, "metadata": meta} | more


@pytest.mark.parametrize(
    ("kind", "namespace"),
    [
        ("Secret", "tenant-acme"),
        ("Deployment", "tenant-acme"),
        ("ConfigMap", "tenant-zeta"),
        ("ConfigMap", "kube-system"),
        ("ConfigMap", ""),
    ],
)
async def test_nothing_is_written_when_one_manifest_is_outside_of_the_table(
    served: Served, kind: str, namespace: str
) -> None:
    api, client = served
    stray = child(kind, "stray")
    stray["metadata"]["namespace"] = namespace

    with pytest.raises(OutOfBoundsError):
        await Applier(client, Children()).apply([child(), stray], BOUNDARY)

    assert api.objects == {}
    assert api.requests == 0


async def test_no_namespace_but_its_own(served: Served) -> None:
    api, client = served
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}

    with pytest.raises(OutOfBoundsError):
        await Applier(client, Children()).apply([space], BOUNDARY)

    assert api.requests == 0


async def test_a_second_pass_writes_nothing(served: Served) -> None:
    api, client = served
    applier = Applier(client, Children())
    first = await applier.apply([child(), child("Service")], BOUNDARY)
    requests = api.requests

    second = await applier.apply([child(), child("Service")], BOUNDARY)

    assert len(first.changed) == 2
    assert second.changed == ()
    assert api.requests == requests


async def test_after_a_restart_the_list_is_enough_to_know_that_nothing_is_due(
    served: Served,
) -> None:
    api, client = served
    await Applier(client, Children()).apply([child()], BOUNDARY)
    children = Children()
    listed = [{"kind": "ConfigMap"} | item for item in await client.list("ConfigMap")]
    children.difference(listed, {})
    requests = api.requests

    again = await Applier(client, children).apply([child()], BOUNDARY)

    assert again.changed == ()
    assert api.requests == requests


async def test_one_failure_does_not_stop_the_others(served: Served) -> None:
    api, client = served
    refusal = failure(422, "no")
    api.answer = lambda method, a: refusal if (method, a.plural) == ("PATCH", "services") else None

    applied = await Applier(client, Children()).apply([child("Service"), child()], BOUNDARY)

    assert applied.changed == (Ref("ConfigMap", "tenant-acme", "arb-1"),)
    assert [e.reason for e in applied.failed.values()] == ["InvalidObject"]
    assert list(api.objects) == [PLACE]


@pytest.mark.parametrize("labels", [{}, {"botplane.io/bot": "arb-1"}], ids=["bare", "our labels"])
async def test_what_somebody_else_made_is_left_as_it_is(
    served: Served, labels: dict[str, str]
) -> None:
    api, client = served
    theirs = child(data={"k": "theirs"})
    theirs["metadata"]["labels"] = labels
    api.put("configmaps", theirs)

    applied = await Applier(client, Children()).apply([child(data={"k": "ours"})], BOUNDARY)

    error = applied.failed[Ref("ConfigMap", "tenant-acme", "arb-1")]
    assert isinstance(error, Rejected)
    assert error.reason == "Conflict"
    assert api.objects[PLACE]["data"] == {"k": "theirs"}


async def test_our_own_object_without_labels_is_taken_back(served: Served) -> None:
    api, client = served
    stripped = child(data={"k": "v"})
    stripped["metadata"]["labels"] = {}
    api.put("configmaps", stripped, manager="botplane")

    applied = await Applier(client, Children()).apply([child(data={"k": "v"})], BOUNDARY)

    assert applied.failed == {}
    assert api.objects[PLACE]["metadata"]["labels"]["botplane.io/bot"] == "arb-1"


async def test_a_bot_named_like_an_object_of_its_tenant_does_not_get_it(served: Served) -> None:
    # Field manager and namespace are the same, so applying would drop the tenant's own fields.
    api, client = served
    parameters = child(name="tenant-policy", data={"maxBots": "3"})
    parameters["metadata"]["labels"] = {
        "botplane.io/tenant": "acme",
        "botplane.io/tenant-uid": "u-1",
    }
    del parameters["metadata"]["ownerReferences"]
    children = Children()
    applier = Applier(client, children)
    await applier.apply([parameters], BOUNDARY)

    applied = await applier.apply([child(name="tenant-policy", data={"k": "bot"})], BOUNDARY)

    assert [error.reason for error in applied.failed.values()] == ["Conflict"]
    assert api.objects["configmaps", "tenant-acme", "tenant-policy"]["data"] == {"maxBots": "3"}


async def test_what_is_being_deleted_is_waited_for(served: Served) -> None:
    api, client = served
    children = Children()
    going = child()
    going["metadata"]["deletionTimestamp"] = "2026-10-01T12:00:00Z"
    children.observe(api.put("configmaps", going, manager="botplane"))

    applied = await Applier(client, children).apply([child(data={"k": "v"})], BOUNDARY)

    error = applied.failed[Ref("ConfigMap", "tenant-acme", "arb-1")]
    assert isinstance(error, Retryable)
    assert error.reason == "ObjectTerminating"


async def test_what_others_add_between_our_two_writes_is_not_taken_for_looked_at(
    served: Served,
) -> None:
    api, client = served
    children = Children()
    first = api.put("configmaps", child(data={"k": "v", "theirs": "1"}), manager="botplane")
    theirs = {"manager": "kubectl", "fieldsV1": {"f:data": {"f:theirs": {}}}}
    told = first | {"metadata": first["metadata"] | {"managedFields": [theirs]}}
    answers = iter([Answer(200, json.dumps(told).encode())])

    def answer(method: str, _address: Address) -> Answer | None:
        if method != "PATCH" or (given := next(answers, None)) is None:
            return None
        api.put("configmaps", child(data={"k": "v", "theirs": "1", "more": "2"}))
        return given

    api.answer = answer
    applied = await Applier(client, children).apply([child(data={"k": "v"})], BOUNDARY)

    assert [error.reason for error in applied.failed.values()] == ["WriteConflict"]
    assert (await Applier(client, children).apply([child(data={"k": "v"})], BOUNDARY)).changed


async def test_what_is_no_longer_desired_goes_and_the_rest_stays(served: Served) -> None:
    api, client = served
    applier = Applier(client, Children())
    await applier.apply([child(), child("Service")], BOUNDARY)

    pruned = await applier.prune(ARB, [child()], BOUNDARY)

    assert pruned == [Ref("Service", "tenant-acme", "arb-1")]
    assert list(api.objects) == [PLACE]


async def test_the_successor_of_a_pruned_object_is_not_deleted(served: Served) -> None:
    api, client = served
    applier = Applier(client, Children())
    await applier.apply([child()], BOUNDARY)
    del api.objects[PLACE]
    api.put("configmaps", child(data={"k": "new"}))

    await applier.prune(ARB, [], BOUNDARY)

    assert api.objects[PLACE]["data"] == {"k": "new"}


async def test_the_successor_that_a_watch_tells_before_our_delete_is_answered_stays_known(
    served: Served,
) -> None:
    api, client = served
    children = Children()
    applier = Applier(client, children)
    await applier.apply([child()], BOUNDARY)
    del api.objects[PLACE]

    def answer(method: str, _address: Address) -> Answer | None:
        if method == "DELETE":
            children.observe({"kind": "ConfigMap"} | api.put("configmaps", child()))
        return None

    api.answer = answer
    await applier.prune(ARB, [], BOUNDARY)

    successor = children.get(Ref("ConfigMap", "tenant-acme", "arb-1"))
    assert successor is not None
    assert successor.uid == api.objects[PLACE]["metadata"]["uid"]


async def test_an_object_with_a_forged_owner_is_not_pruned_and_stops_nobody(
    served: Served,
) -> None:
    api, client = served
    children = Children()
    forged = child("Secret", "theirs")
    children.observe(api.put("secrets", forged))

    pruned = await Applier(client, children).prune(ARB, [], BOUNDARY)

    assert pruned == []
    assert ("secrets", "tenant-acme", "theirs") in api.objects
