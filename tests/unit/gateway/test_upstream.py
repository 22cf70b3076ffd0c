"""Connections to a provider: what comes over them belongs to whoever asked."""

from __future__ import annotations

import asyncio
import json

import pytest

from botplane.gateway.upstream import Upstream
from tests.support.rpc_vendor import rpc_vendor
from tests.support.until import until


async def test_an_answer_whose_caller_has_given_up_is_not_that_to_the_next_call() -> None:
    with rpc_vendor() as vendor:
        upstream = Upstream(vendor.url, most_bytes=1000)
        vendor.faults = ["hang"]
        given_up = asyncio.create_task(upstream.post(b'{"id":1}'))
        await until(lambda: len(vendor.dials) == 1)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up

        asking = asyncio.create_task(upstream.post(b'{"id":2}'))
        vendor.pauses.set()
        answer = await asking
        upstream.close()

    assert json.loads(answer.body)["id"] == 2
