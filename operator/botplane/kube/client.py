"""A thin client: dict in, dict out, on the aiohttp session that kopf uses too.

A quarter of a millisecond of CPU a call, where client libraries need three to ten times that.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import orjson
from yarl import URL

from botplane.api.labels import FIELD_MANAGER
from botplane.errors import Retryable
from botplane.kube.errors import GoneError, NotFoundError, answer_error
from botplane.kube.resources import RESOURCES, Manifest, Ref, ref_of
from botplane.telemetry.metrics import API_REQUESTS

KIND_NOT_SERVED = "KindNotServed"
APPLY_PATCH = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
LONGEST_PAUSE_SECONDS = 10.0
TIMEOUT = aiohttp.ClientTimeout(total=30, connect=5)
UNANSWERED = (TimeoutError, aiohttp.ClientError, OSError)
WATCH_SECONDS = 300
WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=5, sock_read=90)
"""A watch without a word for so long is dead: the server sends a bookmark each minute."""
_DELETE = b"\x7f"
_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


class Page(NamedTuple):
    """Some objects of a kind, and the resourceVersion of all pages: a watch goes on from there."""

    items: list[Manifest]
    version: str


class KubeClient:
    """Calls of the Kubernetes API. Every method raises what `kube.errors` names."""

    def __init__(self, server: str, session: aiohttp.ClientSession) -> None:
        self._server = server.rstrip("/")
        self._session = session
        self._not_before: dict[str, float] = {}

    async def apply(self, manifest: Manifest, subresource: str = "") -> Manifest:
        """Apply a manifest server-side, taking over its fields, and return the result."""
        ref = ref_of(manifest)
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._call(
            "PATCH", ref, manifest, APPLY_PATCH, subresource=subresource, query=query
        )

    async def get(self, ref: Ref, *, metadata_only: bool = False) -> Manifest:
        """Return an object; with `metadata_only` its content never leaves the API server."""
        accept = METADATA_ONLY if metadata_only else "application/json"
        return await self._call("GET", ref, accept=accept)

    async def serves(self, kind: str) -> bool:
        """Return whether the API server knows a kind."""
        try:
            await self.list(kind, selector="botplane.io/none", metadata_only=True)
        except Retryable as error:
            if error.reason != KIND_NOT_SERVED:
                raise
            return False
        return True

    async def delete(self, ref: Ref, uid: str, version: str = "") -> None:
        """Delete the object if it is still the one with this uid, and as it was at a version."""
        same = {"uid": uid} | ({"resourceVersion": version} if version else {})
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": same}
        await self._call("DELETE", ref, options, "application/json")

    async def json_patch(self, ref: Ref, operations: list[dict[str, Any]]) -> Manifest:
        """Patch an object by JSON Patch (RFC 6902)."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self._call("PATCH", ref, operations, JSON_PATCH, query=query)

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object; raises ConflictError when the name is taken."""
        ref = ref_of(manifest)._replace(name="")
        return await self._call("POST", ref, manifest, "application/json")

    async def replace(self, manifest: Manifest) -> Manifest:
        """Replace an object; raises ConflictError when its resourceVersion is not the latest."""
        return await self._call("PUT", ref_of(manifest), manifest, "application/json")

    async def list(
        self, kind: str, *, namespace: str = "", selector: str = "", metadata_only: bool = False
    ) -> list[Manifest]:
        """Return all objects of a kind, read in chunks of 250."""
        pages = self.pages(
            kind, namespace=namespace, selector=selector, metadata_only=metadata_only
        )
        return [item async for page in pages for item in page.items]

    async def pages(
        self, kind: str, *, namespace: str = "", selector: str = "", metadata_only: bool = False
    ) -> AsyncIterator[Page]:
        """Yield all objects of a kind in chunks of 250: whoever can shall not hold them all."""
        query = {"limit": "250"} | ({"labelSelector": selector} if selector else {})
        accept = METADATA_LIST if metadata_only else "application/json"
        while True:
            try:
                page = await self._call("GET", Ref(kind, namespace, ""), accept=accept, query=query)
            except NotFoundError as error:
                raise Retryable(KIND_NOT_SERVED, str(error)) from error
            # Popped, so that whoever is done with the items can let go of them.
            yield Page(page.pop("items", None) or [], page["metadata"].get("resourceVersion", ""))
            more = page["metadata"].get("continue")
            if not more:
                return
            query["continue"] = more

    async def watch(
        self, kind: str, version: str, *, selector: str = ""
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """Yield event types and objects from a resourceVersion on, until the server ends the watch.

        Bookmarks are among them: their object has nothing but a resourceVersion.

        Raises:
            GoneError: The version is too old: list again.
            Retryable: The watch broke; what was yielded until then happened.
        """
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "1",
            "timeoutSeconds": str(WATCH_SECONDS),
            "labelSelector": selector,
        }
        what, url = f"watch {kind}", self._server + RESOURCES[kind].path()
        try:
            async with self._session.get(url, params=query, timeout=WATCH_TIMEOUT) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise _watch_error(response.status, await response.read(), what)
                async for line in _lines(response.content):
                    event = _parsed(line, what)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise _watch_error(status["code"], orjson.dumps(status), what)
                    yield event["type"], event["object"]
        except UNANSWERED as error:
            raise _no_answer(what, error) from error

    async def _call(  # noqa: PLR0913 - the one place where a request is put together
        self,
        method: str,
        ref: Ref,
        body: Any = None,
        content_type: str = "",
        *,
        accept: str = "application/json",
        subresource: str = "",
        query: dict[str, str] | None = None,
    ) -> Manifest:
        path = RESOURCES[ref.kind].path(ref.namespace, ref.name, subresource)
        # Built by hand: yarl would take the parts to pieces and put them together again.
        asked = f"?{urlencode(query)}" if query else ""
        url = URL(f"{self._server}{path}{asked}", encoded=True)
        headers = {"Accept": accept} | ({"Content-Type": content_type} if content_type else {})
        data = None if body is None else _encoded(body)
        what = f"{method} {ref}{'/' + subresource if subresource else ''}"
        # An overloaded API server says when it will listen again; other passes must obey it too.
        await asyncio.sleep(max(0.0, self._not_before.get(ref.kind, 0.0) - time.monotonic()))
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, timeout=TIMEOUT
            ) as response:
                answer = await response.read()
                status, retry_after = response.status, response.headers.get("Retry-After")
        except UNANSWERED as error:
            API_REQUESTS.labels(method, ref.kind, "none").inc()
            raise _no_answer(what, error) from error
        API_REQUESTS.labels(method, ref.kind, str(status)).inc()
        if status >= 400:  # noqa: PLR2004
            refusal = answer_error(status, answer, what, retry_after)
            if status == HTTPStatus.TOO_MANY_REQUESTS and isinstance(refusal, Retryable):
                pause = min(refusal.after_seconds or 0.0, LONGEST_PAUSE_SECONDS)
                self._not_before[ref.kind] = time.monotonic() + pause
            raise refusal
        return _parsed(answer, what)


def _encoded(body: Any) -> bytes:
    """Return JSON that is YAML too: as that the server reads what is applied.

    YAML takes U+2028 in a text for the end of a line, refuses control characters, and does not
    know pairs of surrogates: all else stays as it is, these are escaped.
    """
    data: bytes = orjson.dumps(body)
    if data.isascii() and _DELETE not in data:
        return data
    return _NOT_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode()).encode()


def _no_answer(what: str, error: Exception) -> Retryable:
    text = f"{what}: no answer from the API server ({type(error).__name__})"
    return Retryable("APIServerUnavailable", text)


def _watch_error(status: int, body: bytes, what: str) -> Exception:
    if status == HTTPStatus.GONE:
        return GoneError(f"{what}: the version is too old")
    return answer_error(status, body, what)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines of any length: an object may be larger than aiohttp's limit."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _parsed(answer: bytes, what: str) -> Manifest:
    try:
        parsed = orjson.loads(answer)
    except ValueError as error:
        raise Retryable("APIServerUnavailable", f"{what}: the answer is not JSON") from error
    if not isinstance(parsed, dict):
        raise Retryable("APIServerUnavailable", f"{what}: the answer is not an object")
    return parsed
