"""The RPC providers: one endpoint for each chain, over connections that are kept alive."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from botplane.errors import Rejected
from botplane.gateway.policy import WRITES, Call

CONNECT_SECONDS: Final = 3.0
ANSWER_SECONDS: Final = 10.0
MOST_BYTES: Final = 16 << 20
KEPT_SECONDS: Final = 15.0
"""Less than providers keep a connection: a call on one that ends at that moment fails."""
MOST_CONNECTIONS: Final = 512
_CHAIN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LEAST_SECRET = 8
_HEADERS: Final = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


def read_endpoints(path: Path) -> dict[str, str]:
    """Return the address of each chain's provider.

    Args:
        path: A JSON object such as `{"solana-mainnet": "https://provider.example/key"}`.

    Raises:
        Rejected: The file is missing or says something else; no address is in the message.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise Rejected("SettingInvalid", f"BOTPLANE_RPC_ENDPOINTS {path}: {told}.") from None
    if not isinstance(content, dict) or not content:
        raise Rejected("SettingInvalid", f"{path} must be an object of chains and addresses.")
    for chain, url in content.items():
        if not _CHAIN.fullmatch(chain):
            raise Rejected("SettingInvalid", f"{path}: {chain!r} is no name of a chain.")
        if not _is_address(url):
            text = f"{path}: the address of {chain} must be http(s)://host, without user."
            raise Rejected("SettingInvalid", text)
    return content


def secrets_of(url: str) -> tuple[bytes, ...]:
    """Return the parts of an address that nobody else may read: its host and its long parts."""
    parts = urlsplit(url)
    pieces = re.split(r"[/?&=]", f"{parts.path}?{parts.query}")
    return tuple(p.encode() for p in (parts.netloc, *pieces) if len(p) >= _LEAST_SECRET)


class Providers:
    """Asks providers. An error never holds an address: it would reach logs and bots."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        self._endpoints = endpoints
        self.secrets = {chain: secrets_of(url) for chain, url in endpoints.items()}
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the connections' home, in the event loop that uses it."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS, keepalive_timeout=KEPT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, chain: str, call: Call, body: bytes) -> bytes:
        """Return what the provider of a chain answers to a call; it is asked once.

        Raises:
            Rejected: `ProviderFailed`: it had no answer. `OutcomeUnknown`: the call may have had
                an effect.
        """
        if self._session is None:
            raise RuntimeError("not open")
        try:
            async with self._session.post(
                self._endpoints[chain], data=body, headers=_HEADERS, allow_redirects=False
            ) as answer:
                content = await _read(answer)
        except aiohttp.ClientConnectorError:
            text = f"The provider of {chain} cannot be reached. The call was not sent."
            raise Rejected("ProviderFailed", text) from None
        except (TimeoutError, aiohttp.ClientError) as error:
            late = isinstance(error, asyncio.TimeoutError)
            told = f"did not answer within {ANSWER_SECONDS:.0f} s" if late else "broke off"
            raise _lost(chain, call, told) from None
        if content is None:
            raise _lost(chain, call, f"answered more than {MOST_BYTES:,} bytes")
        if answer.status >= 300 and not _is_rpc(content):  # noqa: PLR2004 - all but success
            raise _lost(chain, call, f"answered with HTTP {answer.status}")
        return content


def _lost(chain: str, call: Call, told: str) -> Rejected:
    if call.method in WRITES:
        text = f"The provider of {chain} {told}. {call.method} may have had its effect: look first."
        return Rejected("OutcomeUnknown", text)
    return Rejected("ProviderFailed", f"The provider of {chain} {told}.")


async def _read(answer: aiohttp.ClientResponse) -> bytes | None:
    """Return the content, or None for more than anybody wants."""
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > MOST_BYTES:
            answer.close()
            return None
    return bytes(content)


def _is_rpc(content: bytes) -> bool:
    """Say whether an error of HTTP carries one of JSON-RPC, as some providers do it."""
    return content.lstrip()[:1] == b"{" and b'"jsonrpc"' in content[:512]


def _is_address(url: Any) -> bool:
    if not isinstance(url, str):
        return False
    try:
        parts = urlsplit(url)
        return bool(
            parts.scheme in {"http", "https"}
            and parts.hostname
            and parts.username is None
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        return False
