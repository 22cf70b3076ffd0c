"""Watches of children lose nothing: they go on where they broke off, or list again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from botplane.kube.client import KubeClient
from botplane.kube.observe import Children, Key
from botplane.runtime.objects import Objects
from botplane.runtime.resync import Resync
from botplane.runtime.watches import ChildWatches
from tests.support.api_server import Address, Answer, APIServer, failure

Served = tuple[APIServer, KubeClient]
LARGE = 1_500_000
"""As large as an object gets in etcd; aiohttp's own lines end at 128 KiB."""


def event(kind: str, name: str, version: int, **data: str) -> bytes:
    meta = {"name": name, "namespace": "tenant-acme", "uid": name, "resourceVersion": str(version)}
    meta["labels"] = {"botplane.io/tenant": "acme"}  # type: ignore[assignment]
    body = {"apiVersion": "v1", "metadata": meta, "data": data}
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def listing(version: int, *items: bytes, more: str = "") -> Answer:
    objects = [json.loads(item)["object"] for item in items]
    meta = {"resourceVersion": str(version), "continue": more}
    body = {"metadata": meta, "items": objects}
    return Answer(200, json.dumps(body).encode())


EXPIRED = b'{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}\n'
BROKEN = b'{"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "etcd"}}\n'
STRANGE = b'{"type": "ADDED", "object": {"metadata": {"resourceVersion": "12", "name": "x"}}}\n'
BOOKMARK = b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "40"}}}\n'
ONE, TWO, THREE = (event("ADDED", name, v) for name, v in (("one", 11), ("two", 12), ("three", 13)))

CASES: dict[str, tuple[list[Answer], list[str]]] = {
    "the server ends a watch": ([Answer(200, ONE), Answer(200, TWO)], ["one", "two"]),
    "cut within an object": (
        [Answer(200, ONE + TWO[:40], None, 9_000), Answer(200, TWO)],
        ["one", "two"],
    ),
    "reset": ([Answer(None), Answer(200, ONE)], ["one"]),
    "an error event": ([Answer(200, ONE + BROKEN), Answer(200, TWO)], ["one", "two"]),
    "refused": ([failure(503, "overloaded"), Answer(200, ONE)], ["one"]),
    "not allowed for a moment": ([failure(403, "forbidden"), Answer(200, ONE)], ["one"]),
    "not served for a moment": ([failure(404, "not found"), Answer(200, ONE)], ["one"]),
    "not JSON": ([Answer(200, b"<html>\n"), Answer(200, ONE)], ["one"]),
    "too old": ([Answer(200, ONE + EXPIRED), listing(13, ONE, TWO), Answer(200, THREE)],
        ["one", "two", "three"],
    ),
    "too old from the start": ([failure(410, "too old"), listing(11, ONE), Answer(200, TWO)],
        ["one", "two"],
    ),
    "too old, and the list fails": (
        [Answer(200, EXPIRED), failure(500, "etcd"), Answer(200, EXPIRED), listing(11, ONE)],
        ["one"],
    ),
    "an object that nobody understands": ([Answer(200, STRANGE + THREE)], ["three"]),
    "a bookmark is no object": ([Answer(200, BOOKMARK + ONE)], ["one"]),
    "a large object": ([Answer(200, event("ADDED", "one", 11, x="x" * LARGE))], ["one"]),
}  # fmt: skip


class Scripted:
    """Runs watches of ConfigMaps against prepared answers, the first of which is the full list."""

    def __init__(self, served: Served, answers: list[Answer]) -> None:
        api, client = served
        self.children = Children()
        self.woken: list[Key] = []
        self._left = iter([listing(10), *answers])
        self._over = asyncio.Event()
        api.answer = self._next
        self._resync = Resync(client, Objects(), self.children, self.woken.append)
        self._watches = ChildWatches(client, self._resync, self._note)

    async def run(self) -> None:
        await self._resync.children_of("ConfigMap")
        running = asyncio.create_task(self._watches.run(["ConfigMap"]))
        await asyncio.wait_for(self._over.wait(), 20)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def _next(self, _method: str, _address: Address) -> Answer:
        answer = next(self._left, None)
        if answer is None:
            self._over.set()
            return Answer(None)
        return answer

    def _note(self, type_: str, body: dict[str, Any]) -> None:
        assert type_ == "ADDED"
        self.children.observe(body)


@pytest.mark.parametrize("name", CASES)
async def test_every_object_arrives_whatever_happens_to_its_watch(
    served: Served, name: str
) -> None:
    answers, expected = CASES[name]
    scripted = Scripted(served, answers)

    await scripted.run()

    known = scripted.children.owned_by(Key("Tenant", "", "acme"))
    assert sorted(ref.name for ref in known) == sorted(expected)


async def test_what_a_list_has_found_before_it_failed_is_told_all_the_same(served: Served) -> None:
    first_page, failed = listing(11, ONE, more="page-2"), failure(500, "etcd")
    scripted = Scripted(served, [Answer(200, EXPIRED), first_page, failed, Answer(None)])

    await scripted.run()

    assert scripted.woken == [Key("Tenant", "", "acme")]
