"""Plain calls to the API server: a path in, status and bytes out.

The `kubernetes` client reads the kubeconfig and keeps tokens and TLS; its typed API classes are
not loaded. They cost 80 MiB and 1.6 s at the start, their models 90 KiB and 1 ms a pod.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration

from botplane.errors import Retryable
from botplane.metering.evidence import Json

CONCURRENT_CALLS: Final = 8
CHUNK_BYTES: Final = 65536
CONNECT_TIMEOUT_SECONDS: Final = 5

Query = Mapping[str, str | int]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the API server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Api:
    """One API server; safe for several threads."""

    def __init__(self, settings: Configuration) -> None:
        self._settings = settings
        self._http: urllib3.PoolManager = ApiClient(settings).rest_client.pool_manager

    def get(self, path: str, query: Query | None = None, *, timeout: int) -> Reply:
        """Read a path and return the answer, whatever its status.

        Args:
            path: Path below the server's address.
            query: Query parameters.
            timeout: Seconds to wait for bytes.

        Raises:
            Retryable: No answer came.
        """
        return _reply(lambda: self._send("GET", path, query or {}, timeout))

    def patch(self, path: str, operations: Sequence[Json], *, timeout: int) -> Reply:
        """Apply a JSON patch and return the answer, whatever its status.

        Raises:
            Retryable: No answer came; the patch may have been applied.
        """
        return _reply(lambda: self._send("PATCH", path, {}, timeout, operations))

    def stream(self, path: str, query: Query, *, timeout: int) -> Iterator[dict[str, Any]]:
        """Yield the JSON lines of an answer as they come.

        Args:
            path: Path below the server's address.
            query: Query parameters.
            timeout: Seconds without a byte after which the connection counts as dead.

        Raises:
            Retryable: The connection broke, or the server refused.
            ValueError: A line is not JSON.
        """
        rest = b""
        try:
            response = self._send("GET", path, query, timeout)
            try:
                if response.status != HTTPStatus.OK:
                    raise Retryable("ApiServerRefused", f"GET {path}: {response.status}")
                for chunk in response.stream(CHUNK_BYTES):
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from map(json.loads, lines)
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unavailable(error) from error

    def _send(
        self,
        method: str,
        path: str,
        query: Query,
        timeout: int,
        operations: Sequence[Json] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "botplane-metering"}
        auth: Mapping[str, Any] = self._settings.auth_settings()
        headers |= {way["key"]: way["value"] for way in auth.values()}
        if operations is not None:
            headers["Content-Type"] = "application/json-patch+json"
        return self._http.request(
            method,
            f"{self._settings.host}{path}?{urlencode(query)}",
            body=None if operations is None else json.dumps(operations).encode(),
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=timeout),
            retries=False,
            preload_content=False,
        )


def open_api(kubeconfig: str | None) -> Api:
    """Return access to the API server.

    Args:
        kubeconfig: Path; None takes `KUBECONFIG`, or else the pod's own service account.
    """
    settings = Configuration()
    from_pod: Callable[..., None] = config.load_incluster_config
    from_file: Callable[..., None] = config.load_kube_config
    if kubeconfig is None and "KUBECONFIG" not in os.environ:
        from_pod(client_configuration=settings)
    else:
        from_file(kubeconfig, client_configuration=settings)
    settings.connection_pool_maxsize = CONCURRENT_CALLS + 2
    return Api(settings)


def _reply(send: Callable[[], urllib3.BaseHTTPResponse]) -> Reply:
    try:
        response = send()
        body = response.read()
        response.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _unavailable(error) from error
    return Reply(status=response.status, headers=response.headers, body=body)


def _unavailable(error: Exception) -> Retryable:
    return Retryable("ApiServerUnavailable", f"{type(error).__name__}: {str(error)[:200]}")
