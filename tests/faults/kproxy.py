"""A reverse proxy before the API server, which does to each call what a rule says.

It speaks plain HTTP on 127.0.0.1 and passes the caller's own token on, so that RBAC stays real.
Every call is logged as one line of JSON: the crash plan is made from that.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from yarl import URL

from tests.faults import calls
from tests.faults.calls import Call, Rule
from tests.support.controlplane.cluster import Cluster
from tests.support.controlplane.ports import free_ports

T = TypeVar("T")
PASSED_ON = ("Authorization", "Accept", "Content-Type", "User-Agent")
PASSED_BACK = ("Content-Type", "Retry-After", "Audit-Id")
FOR_EVER = 3600.0


class Proxy:
    """Listens until it is closed; rules may be changed at any time, from any thread."""

    def __init__(self, cluster: Cluster, log: Path) -> None:
        self._target = cluster.server
        self._ca = cluster.ca
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._dead: set[str] = set()
        self._rounds = 0
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._writes: list[tuple[float, Call]] = []
        self._faults: list[tuple[float, str, Call]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._wait(self._open())

    def close(self) -> None:
        """Stop listening."""
        self._wait(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._log.close()

    def add(self, *rules: Rule) -> None:
        """Put rules in force; the first that matches a call is taken."""
        with self._lock:
            self._rules += rules

    def clear(self) -> None:
        """Let everything pass from now on."""
        with self._lock:
            self._rules.clear()
            self._dead.clear()
            self._rounds += 1

    def writes(self, token: str) -> list[Call]:
        """Return the writes about one tenant, in order."""
        with self._lock:
            return [call for _, call in self._writes if call.concerns(token)]

    def quiet_seconds(self, token: str) -> float:
        """Return how long nothing about a tenant has been written."""
        with self._lock:
            times = [at for at, call in self._writes if call.concerns(token)]
        return time.monotonic() - max(times, default=0.0)

    def pauses_after(self, fault: str, resource: str) -> list[float]:
        """Return the seconds from each fault on a kind to the next try of the same call."""
        with self._lock:
            return [
                min(
                    (t for t, c in self._writes if c.meaning == call.meaning and t > at), default=at
                )
                - at
                for at, name, call in self._faults
                if (name, call.resource) == (fault, resource)
            ]

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _open(self) -> None:
        tls = ssl.create_default_context(cafile=str(self._ca))
        connector = aiohttp.TCPConnector(limit=0, ssl=tls)
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=2**22)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=512).start()

    async def _shut(self) -> None:
        self.clear()
        await self._runner.cleanup()
        await self._session.close()
        # A connection that is closed lets its socket go in the turns of the loop that follow.
        for _ in range(3):
            await asyncio.sleep(0)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch", "") in {"1", "true"}
        call = calls.parse(request.method, request.path, watch=watch)
        if call is None:
            return await self._forward(request)
        call, rule = self._judged(call)
        if call.verb == "watch" and rule is None:
            return await self._watch(request, call)
        return await self._one(request, call, rule)

    def _judged(self, call: Call) -> tuple[Call, Rule | None]:
        """Count the call and find the rule for it."""
        with self._lock:
            self._counts[call.meaning] += 1
            call = replace(call, nth=self._counts[call.meaning])
            if call.is_write and any(call.concerns(token) for token in self._dead):
                # Its operator counts as dead: nothing of it comes through any more.
                return call, Rule(lambda _: True, calls.Reply(503))
            if call.is_write:
                self._writes.append((time.monotonic(), call))
            for rule in self._rules:
                of_watch = isinstance(rule.action, calls.OF_WATCHES)
                if rule.is_armed and not of_watch and rule.match(call):
                    rule.take()
                    self._dead |= {rule.buries} - {""}
                    return call, rule
            return call, None

    async def _one(self, request: web.Request, call: Call, rule: Rule | None) -> web.StreamResponse:
        if rule is None:
            response = await self._forward(request)
            self._note(call, response.status)
            return response
        self._note(call, 0, type(rule.action).__name__)
        action = rule.action
        if isinstance(action, calls.Freeze) and action.after:
            await self._forward(request)
        rule.reached.set()
        match action:
            case calls.Reply():
                return _refusal(action)
            case calls.Rst():
                return _reset(request)
            case calls.DropReply():
                await self._forward(request)
                return _reset(request)
            case calls.Delay():
                await asyncio.sleep(action.seconds)
                response = await self._forward(request)
                rule.answered.set()
                return response
            case calls.Freeze():
                await asyncio.sleep(FOR_EVER)
        return _reset(request)

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.read()
        async with self._session.request(
            request.method, self._address(request), data=body or None, headers=_passed_on(request)
        ) as answer:
            content = await answer.read()
            headers = {k: v for k in PASSED_BACK if (v := answer.headers.get(k)) is not None}
            return web.Response(status=answer.status, body=content, headers=headers)

    async def _watch(self, request: web.Request, call: Call) -> web.StreamResponse:
        never = aiohttp.ClientTimeout(total=None)
        async with self._session.get(
            self._address(request), headers=_passed_on(request), timeout=never
        ) as answer:
            self._note(call, answer.status)
            response = web.StreamResponse(status=answer.status)
            response.content_type = "application/json"
            try:
                await response.prepare(request)
                await self._tell(request, call, answer, response)
            finally:
                # Nobody says goodbye to a watch: TLS would wait for the server's.
                if answer.connection is not None and answer.connection.transport is not None:
                    answer.connection.transport.abort()
        return response

    async def _tell(
        self,
        request: web.Request,
        call: Call,
        answer: aiohttp.ClientResponse,
        response: web.StreamResponse,
    ) -> None:
        async for line in answer.content:
            action = self._action_of(call, line)
            if action is None:
                await response.write(line)
            elif isinstance(action, calls.Silent):
                await self._cleared()
                _reset(request)
                return
            elif not await _told(request, response, line, action):
                return

    async def _cleared(self) -> None:
        now = self._rounds
        while self._rounds == now:  # noqa: ASYNC110 - other threads cannot set an event
            await asyncio.sleep(0.1)

    def _action_of(self, call: Call, line: bytes) -> calls.Action | None:
        with self._lock:
            rules = [
                rule
                for rule in self._rules
                if rule.is_armed and isinstance(rule.action, calls.OF_WATCHES) and rule.match(call)
            ]
            if not rules:
                return None
            event = json.loads(line)
            for rule in rules:
                if event["type"] != "BOOKMARK" and rule.event(event):
                    self._note(call, 0, type(rule.action).__name__)
                    rule.reached.set()
                    return rule.take()
        return None

    def _address(self, request: web.Request) -> URL:
        return URL(self._target + str(request.rel_url), encoded=True)

    def _note(self, call: Call, status: int, fault: str = "") -> None:
        if fault:
            self._faults.append((time.monotonic(), fault, call))
        entry = {"at": round(time.time(), 4), **asdict(call), "status": status, "fault": fault}
        self._log.write(json.dumps(entry) + "\n")


async def _told(
    request: web.Request, response: web.StreamResponse, line: bytes, action: calls.Action
) -> bool:
    """Do to an event of a watch what was ordered; return whether the stream goes on."""
    match action:
        case calls.Hold():
            await asyncio.sleep(action.seconds)
            await response.write(line)
        case calls.Dup():
            await response.write(line + line)
        case calls.Cut():
            _reset(request)
            return False
        case calls.Error():
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            status |= {"code": action.code, "message": "injected"}  # type: ignore[dict-item]
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return False
        case calls.Truncate():
            await response.write(line[: len(line) // 2])
            return False
    return True


def _passed_on(request: web.Request) -> dict[str, str]:
    return {k: v for k in PASSED_ON if (v := request.headers.get(k)) is not None}


def _refusal(action: calls.Reply) -> web.Response:
    if action.body:
        return web.json_response(text=action.body, status=action.status)
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": action.status,
        "message": f"injected {action.status}",
    }
    return web.json_response(status, status=action.status, headers=dict(action.headers))


def _reset(request: web.Request) -> web.Response:
    """Reset the connection, as a crashed server would."""
    if (transport := request.transport) is not None:
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()
