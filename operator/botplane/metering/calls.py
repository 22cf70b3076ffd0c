"""One way to call the API server: the client's method in, status and plain bytes out.

The client's models are never built: what comes back is JSON, read only where it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import urllib3
from kubernetes import client, config

from botplane.errors import Retryable

CONCURRENT_CALLS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the API server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def call(
    method: Callable[..., Any], *args: object, timeout: tuple[int, int], **query: Any
) -> Reply:
    """Call a method of the client and return the answer, whatever its status.

    Args:
        method: Bound method of an API class.
        args: Its positional arguments.
        timeout: Seconds to connect and to wait for bytes.
        query: Its keyword arguments.

    Raises:
        Retryable: No answer came.
    """
    try:
        response = method(*args, _preload_content=False, _request_timeout=timeout, **query)
        body = response.read()
        response.release_conn()
    except client.ApiException as error:
        if not error.status:
            raise Retryable("ApiServerUnavailable", str(error)) from error
        return Reply(status=int(error.status), headers={}, body=str(error.body or "").encode())
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Retryable("ApiServerUnavailable", f"{type(error).__name__}: {error}") from error
    return Reply(status=response.status, headers=response.headers, body=body)


def open_client(kubeconfig: str | None) -> client.ApiClient:
    """Return a client of the API server.

    Args:
        kubeconfig: Path; None takes `KUBECONFIG`, or else the pod's own service account.
    """
    settings = client.Configuration()
    from_pod: Callable[..., None] = config.load_incluster_config
    from_file: Callable[..., None] = config.load_kube_config
    if kubeconfig is None and "KUBECONFIG" not in os.environ:
        from_pod(client_configuration=settings)
    else:
        from_file(kubeconfig, client_configuration=settings)
    settings.connection_pool_maxsize = CONCURRENT_CALLS + 2
    settings.retries = False
    return client.ApiClient(settings)
