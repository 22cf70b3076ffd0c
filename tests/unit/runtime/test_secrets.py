"""What passes may know of issued Secrets before a poll has been round."""

from __future__ import annotations

import asyncio

import pytest

from botplane.api import labels as lb
from botplane.errors import Retryable
from botplane.kube.observe import Children
from botplane.kube.resources import Ref
from botplane.runtime.secrets import SecretPoll
from tests.support.api_server import failure, serving

NAMESPACE = "tenant-acme"
KEYS = Ref("Secret", NAMESPACE, "arb-1-keys")
SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {
        "name": KEYS.name,
        "namespace": NAMESPACE,
        "labels": {lb.MANAGED_BY: lb.MANAGED_BY_VALUE},
    },
}


async def test_a_pass_knows_the_secrets_that_were_there_before_the_operator() -> None:
    async with serving() as (api, client):
        api.put("secrets", SECRET)
        children = Children()
        poll = SecretPoll(client, children)

        await asyncio.gather(*(poll.first_look(NAMESPACE) for _ in range(4)))

        assert children.get(KEYS) is not None
        assert api.requests == 1, "the passes of a tenant share one list"


async def test_a_look_that_failed_is_repeated() -> None:
    async with serving() as (api, client):
        api.put("secrets", SECRET)
        api.answer = lambda _method, _address: failure(503, "etcd is away")
        children = Children()
        poll = SecretPoll(client, children)
        with pytest.raises(Retryable):
            await poll.first_look(NAMESPACE)

        api.answer = lambda _method, _address: None
        await poll.first_look(NAMESPACE)

        assert children.get(KEYS) is not None
