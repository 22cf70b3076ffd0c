"""An API server in this process, for tests of the thin client and of what stands on it.

It keeps objects, counts resource versions and speaks HTTP; it has no schema, no admission and no
controllers. What needs those runs on the real control plane of `tests/cluster`.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

import aiohttp
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from botplane.clock import utc_now
from botplane.kube.apply import Applier
from botplane.kube.client import KubeClient
from botplane.kube.observe import Children
from botplane.runtime.cluster import Cluster
from botplane.runtime.objects import Objects
from botplane.runtime.status import StatusWriter

Manifest = dict[str, Any]
CREATED = "2026-10-01T12:00:00Z"
DECLARED = frozenset({"tenants", "botdeployments", "plans"})
"""What people declare; we apply no more than a part of it."""


def a_cluster(client: KubeClient, wall: Callable[[], datetime] = utc_now) -> Cluster:
    """Return what reconcile functions get, with nothing seen yet."""
    objects, children = Objects(), Children()
    status = StatusWriter(client, objects, wall)
    return Cluster(client, objects, children, Applier(client, children), status)


class Address(NamedTuple):
    """What a request is about."""

    plural: str
    namespace: str
    name: str
    subresource: str


class Answer(NamedTuple):
    """A prepared answer; without a status the connection is reset."""

    status: int | None
    body: bytes = b""
    headers: dict[str, str] | None = None
    announced: int | None = None
    """A Content-Length that the body does not keep."""


def failure(status: int, message: str, **headers: str) -> Answer:
    """Return an error as the API server words it."""
    body = {"kind": "Status", "status": "Failure", "message": message, "code": status}
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), named)


class APIServer:
    """The objects, by plural, namespace and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Manifest] = {}
        self.requests = 0
        self.version = 100
        self.answer: Callable[[str, Address], Answer | None] = lambda _method, _address: None
        """Gives a prepared answer instead of the real one."""

    def put(self, plural: str, body: Manifest, manager: str = "somebody") -> Manifest:
        """Store an object as somebody else would."""
        meta = body["metadata"]
        place = (plural, meta.get("namespace", ""), meta["name"])
        return self._store(place, body, manager)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.requests += 1
        address = _address(request.path)
        prepared = self.answer(request.method, address)
        if prepared is not None:
            return await _send(request, prepared)
        text = await request.read()
        body = _read(text, request.headers.get("Content-Type", "")) if text else None
        status, result = self._served(request, address, body)
        return web.json_response(result, status=status)

    def _served(self, request: web.Request, address: Address, body: Any) -> tuple[int, Any]:
        place = address[:3]
        there = self.objects.get(place)
        match request.method:
            case "GET" if not address.name:
                return 200, {"metadata": {}, "items": self._listed(address)}
            case "POST":
                place = (address.plural, address.namespace, body["metadata"]["name"])
                if place in self.objects:
                    return 409, {"message": "already exists"}
                return 201, self._store(place, body, request.query.get("fieldManager", "post"))
            case "PATCH" if there is None and not address.subresource:
                if address.plural in DECLARED and "spec" not in body:
                    return 422, {"message": "spec: Required value"}
                return 201, self._store(place, body, request.query["fieldManager"])
            case _ if there is None:
                return 404, {"message": f"{address.plural} {address.name} not found"}
            case "GET":
                metadata_only = "PartialObjectMetadata" in request.headers["Accept"]
                return 200, {"metadata": there["metadata"]} if metadata_only else there
            case _:
                return self._changed(request, address, there, body)

    def _changed(
        self, request: web.Request, address: Address, there: Manifest, body: Any
    ) -> tuple[int, Any]:
        place = address[:3]
        meta = there["metadata"]
        if request.method == "DELETE":
            if any(meta[field] != value for field, value in body["preconditions"].items()):
                return 409, {"message": "the precondition does not hold"}
            return 200, self.objects.pop(place)
        if request.method == "PUT":
            if body["metadata"].get("resourceVersion") != meta["resourceVersion"]:
                return 409, {"message": "the object has been modified"}
            return 200, self._store(place, body, "put")
        if "json-patch" in request.headers["Content-Type"]:
            return self._patched(place, _patched(there, body))
        applied = _applied(there, body, address)
        return 200, self._store(place, applied, request.query["fieldManager"])

    def _patched(self, place: tuple[str, str, str], body: Manifest | None) -> tuple[int, Any]:
        if body is None:
            return 422, {"message": "the server rejected our request due to an error"}
        return 200, self._store(place, body, "patch")

    def _listed(self, address: Address) -> list[Manifest]:
        wanted = (address.plural, address.namespace)
        return [
            body
            for place, body in self.objects.items()
            if place[0] == wanted[0] and wanted[1] in ("", place[1])
        ]

    def _store(self, place: tuple[str, str, str], body: Manifest, manager: str) -> Manifest:
        last = self.objects.get(place)
        before = last["metadata"] if last else {}
        meta = {
            "creationTimestamp": CREATED,
            "uid": before.get("uid") or str(uuid.uuid4()),
            **copy.deepcopy(body["metadata"]),
        }
        writers = {e["manager"] for e in before.get("managedFields", ())} | {manager}
        meta["managedFields"] = [{"manager": m, "time": CREATED} for m in sorted(writers)]
        stored = copy.deepcopy(body) | {"metadata": meta}
        if last is None or _content(stored) != _content(last):
            self.version += 1
        meta["resourceVersion"] = str(self.version)
        self.objects[place] = stored
        return stored


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[APIServer, KubeClient]]:
    """Serve an empty API server and yield it with a client of it."""
    api = APIServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield api, KubeClient(str(server.make_url("")), session)


def _read(text: bytes, content_type: str) -> Any:
    """Read what is applied as YAML, as the real one does."""
    is_yaml = content_type.startswith("application/apply-patch+yaml")
    return yaml.load(text, yaml.CSafeLoader) if is_yaml else json.loads(text)


def _address(path: str) -> Address:
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        namespace, parts = parts[1], parts[2:]
    parts += [""] * (3 - len(parts))
    return Address(parts[0], namespace, parts[1], parts[2])


def _content(body: Manifest) -> Manifest:
    meta = {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}
    return body | {"metadata": meta}


def _applied(there: Manifest, body: Manifest, address: Address) -> Manifest:
    if address.subresource == "status":
        return there | {"status": body["status"]}
    if address.plural in DECLARED and "spec" not in body:
        return there | {"metadata": there["metadata"] | body["metadata"]}
    return body | {"status": there["status"]} if "status" in there else body


def _patched(there: Manifest, operations: list[dict[str, Any]]) -> Manifest | None:
    """Return the object as a JSON Patch makes it; None when a test of the patch fails."""
    body = copy.deepcopy(there)
    for operation in operations:
        *path, last = operation["path"].strip("/").split("/")
        target: Any = body
        for part in path:
            target = target[part]
        at = int(last) if isinstance(target, list) else last
        match operation["op"]:
            case "remove":
                del target[at]
            case "add":
                target[at] = operation["value"]
            case _ if target[at] != operation["value"]:
                return None
    return body


async def _send(request: web.Request, answer: Answer) -> web.StreamResponse:
    assert request.transport is not None
    if answer.status is None:
        request.transport.abort()
        return web.Response()
    response = web.StreamResponse(status=answer.status, headers=answer.headers or {})
    response.content_length = answer.announced or len(answer.body)
    await response.prepare(request)
    await response.write(answer.body)
    if answer.announced:
        request.transport.close()
    return response
