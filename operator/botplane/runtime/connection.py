"""One authenticated aiohttp session, shared by kopf's watches and our own calls."""

from __future__ import annotations

import asyncio.sslproto
import ssl
import tempfile
import time
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from botplane.runtime.lone_kopf import kopf

TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
TOKEN_MAX_AGE_SECONDS = 60.0
CONNECTIONS = 64
"""Twenty are watches. Fewer make a thousand tenants slower, more do not make them faster."""
READ_BYTES = 32 * 1024
"""asyncio keeps a buffer of 256 KiB for each TLS connection: 12 MiB for ours, when all are busy."""


class NoClusterError(Exception):
    """Neither a service account nor a kubeconfig was found."""


@dataclass(frozen=True)
class Connection:
    """The API server and the session that is logged in to it."""

    server: str
    session: aiohttp.ClientSession


async def connect() -> Connection:
    """Log in with the pod's service account, or else with KUBECONFIG.

    Raises:
        NoClusterError: There is neither.
    """
    settings = kopf.OperatorSettings()
    info = kopf.login_with_service_account(settings=settings)
    info = info or kopf.login_with_kubeconfig(settings=settings)
    if info is None:
        raise NoClusterError("no service account is mounted and KUBECONFIG is not set")
    asyncio.sslproto.SSLProtocol.max_size = READ_BYTES
    trace = aiohttp.TraceConfig()
    token = _Token(TOKEN_FILE, info.token or "")

    async def authorize(_session: Any, _context: Any, params: Any) -> None:
        # The kubelet rotates the token file; a header fixed at login would expire.
        if value := token.current():
            params.headers["Authorization"] = f"Bearer {value}"

    trace.on_request_start.append(authorize)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=_tls(info)),
        trace_configs=[trace],
        # The API server is near: to pack long lists costs both sides more than to send them.
        headers={"User-Agent": "botplane", "Accept-Encoding": "identity"},
    )
    return Connection(info.server, session)


class _Token:
    """The bearer token: re-read once a minute when it comes from a pod's file."""

    def __init__(self, path: Path, value: str) -> None:
        self._path = path
        self._value = value
        self._read_at = time.monotonic()

    def current(self) -> str:
        if time.monotonic() - self._read_at > TOKEN_MAX_AGE_SECONDS and self._path.exists():
            self._value = self._path.read_text(encoding="utf-8").strip()
            self._read_at = time.monotonic()
        return self._value


def _tls(info: kopf.ConnectionInfo) -> ssl.SSLContext | bool:
    if info.insecure:
        return False
    ca_data = b64decode(info.ca_data).decode() if info.ca_data else None
    context = ssl.create_default_context(cafile=info.ca_path or None, cadata=ca_data)
    if info.certificate_data and info.private_key_data:
        # The ssl module loads client certificates from files only.
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(b64decode(info.certificate_data) + b"\n" + b64decode(info.private_key_data))
            pem.flush()
            context.load_cert_chain(pem.name)
    elif info.certificate_path:
        context.load_cert_chain(str(info.certificate_path), str(info.private_key_path))
    return context
