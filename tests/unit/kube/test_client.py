"""Each answer of an API server as one of our errors, over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from botplane.errors import Rejected, Retryable
from botplane.kube.client import KubeClient
from botplane.kube.errors import ConflictError, NotFoundError
from botplane.kube.resources import Ref
from tests.support.api_server import Address, Answer, APIServer, failure

Served = tuple[APIServer, KubeClient]
CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "x", "namespace": "tenant-acme"},
    "data": {"k": "v"},
}
REF = Ref("ConfigMap", "tenant-acme", "x")
QUOTA = 'pods "x" is forbidden: exceeded quota: plan, requested: pods=1, used: pods=4'
RBAC = 'configmaps is forbidden: User "u" cannot patch resource "configmaps"'
ENDING = "unable to create new content in namespace tenant-acme because it is being terminated"

RETRYABLE: dict[str, tuple[Answer, str, float | None]] = {
    "not allowed (yet)": (failure(403, RBAC), "Forbidden", 0.2),
    "the namespace ends": (failure(403, ENDING), "NamespaceTerminating", 1),
    "too many requests": (failure(429, "slow down", Retry_After="7"), "APIServerError", 7),
    "too many requests, no hint": (failure(429, "slow down"), "APIServerError", None),
    "a date as hint": (
        failure(429, "slow down", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
        "APIServerError",
        None,
    ),
    "internal error": (failure(500, "etcdserver: request timed out"), "APIServerError", None),
    "unavailable": (Answer(503, b"<html>no</html>"), "APIServerError", None),
    "token expired": (failure(401, "Unauthorized"), "APIServerError", None),
    "list expired": (failure(410, "too old"), "APIServerError", None),
    "connection reset": (Answer(None), "APIServerUnavailable", None),
    "body ends early": (Answer(200, b'{"kind":', None, 900), "APIServerUnavailable", None),
    "truncated JSON": (Answer(200, b'{"kind":"Config'), "APIServerUnavailable", None),
    "nothing": (Answer(200, b""), "APIServerUnavailable", None),
    "not JSON": (Answer(200, b"<html>login</html>"), "APIServerUnavailable", None),
    "not an object": (Answer(200, b"[]"), "APIServerUnavailable", None),
    "not UTF-8": (Answer(200, b'{"a": "\xff"}'), "APIServerUnavailable", None),
    "an error that is not text": (Answer(500, b"\xff\xfe"), "APIServerError", None),
}
REJECTED: dict[str, tuple[Answer, str]] = {
    "quota": (failure(403, QUOTA), "QuotaExceeded"),
    "invalid": (failure(422, 'spec.ports: Duplicate value: "http"'), "InvalidObject"),
    "bad request": (failure(400, "unknown field"), "InvalidObject"),
}


@pytest.mark.parametrize("name", RETRYABLE)
async def test_a_later_try_may_succeed(served: Served, name: str) -> None:
    api, client = served
    answer, reason, after = RETRYABLE[name]
    api.answer = lambda _method, _address: answer

    with pytest.raises(Retryable) as caught:
        await client.apply(CONFIG)

    assert (caught.value.reason, caught.value.after_seconds) == (reason, after)
    assert "PATCH ConfigMap tenant-acme/x" in caught.value.message or answer.status == 403


@pytest.mark.parametrize("name", REJECTED)
async def test_the_user_must_act_and_is_told_what_the_server_said(
    served: Served, name: str
) -> None:
    api, client = served
    answer, reason = REJECTED[name]
    api.answer = lambda _method, _address: answer

    with pytest.raises(Rejected) as caught:
        await client.apply(CONFIG)

    assert caught.value.reason == reason
    assert json.loads(answer.body)["message"] in caught.value.message


async def test_absence_and_conflict_are_for_the_caller_to_judge(served: Served) -> None:
    api, client = served
    api.put("configmaps", CONFIG)

    with pytest.raises(NotFoundError):
        await client.get(REF._replace(name="y"))
    with pytest.raises(ConflictError):
        await client.create(CONFIG)
    with pytest.raises(ConflictError):
        await client.replace(CONFIG | {"metadata": CONFIG["metadata"]})
    with pytest.raises(ConflictError):
        await client.delete(REF, "another uid")

    assert ("configmaps", "tenant-acme", "x") in api.objects


async def test_a_kind_that_is_not_served_yet_is_no_empty_list_and_no_bug(served: Served) -> None:
    api, client = served
    api.answer = lambda _method, _address: Answer(404, b"404 page not found")

    with pytest.raises(Retryable) as caught:
        await client.list("Tenant")

    assert caught.value.reason == "KindNotServed"


async def test_a_list_is_read_to_its_end(served: Served) -> None:
    api, client = served
    pages = iter(
        [
            b'{"metadata": {"continue": "t"}, "items": [{"n": 1}, {"n": 2}]}',
            b'{"metadata": {"continue": "t"}, "items": null}',
            b'{"metadata": {}, "items": [{"n": 3}]}',
        ]
    )
    api.answer = lambda _method, _address: Answer(200, next(pages))

    assert await client.list("ConfigMap") == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_metadata_alone_is_asked_for_when_content_is_no_business_of_ours(
    served: Served,
) -> None:
    api, client = served
    api.put("secrets", CONFIG | {"kind": "Secret", "data": {"key": "Q0FOQVJZ"}})

    found = await client.get(Ref("Secret", "tenant-acme", "x"), metadata_only=True)

    assert found["metadata"]["name"] == "x"
    assert "data" not in found


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (Ref("Tenant", "", "acme"), Address("tenants", "", "acme", "")),
        (Ref("Namespace", "", "tenant-acme"), Address("namespaces", "", "tenant-acme", "")),
        (Ref("Lease", "ns", "l"), Address("leases", "ns", "l", "")),
        (Ref("Deployment", "ns", "d"), Address("deployments", "ns", "d", "")),
    ],
    ids=str,
)
async def test_an_object_is_asked_for_where_it_lives(
    served: Served, ref: Ref, expected: Address
) -> None:
    api, client = served
    asked: list[Any] = []
    api.answer = lambda _method, address: asked.append(address)

    with pytest.raises(NotFoundError):
        await client.get(ref)

    assert asked == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "¡hola! 😀",
        "a line\u2028another\u2029and\x85one",
        "\x7f \x80 \x9f \ufeff \ufffe \uffff",
        'quotes " and \\u2028, which is text',
        "\t\n\r\x00\x1f",
        "- a: {b}",
    ],
    ids=ascii,
)
async def test_what_is_applied_arrives_to_the_letter(served: Served, text: str) -> None:
    _, client = served

    written = await client.apply({**CONFIG, "data": {"k": text}})

    assert written["data"] == {"k": text}
