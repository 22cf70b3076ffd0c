"""The RPC providers: one endpoint for each chain, over connections that are kept alive."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from botplane.errors import Rejected
from botplane.gateway.policy import WRITES, Answer, Call, call_body, read_answer
from botplane.gateway.upstream import BrokenError, UnreachableError, Upstream

ANSWER_SECONDS: Final = 10.0
MOST_BYTES: Final = 16 << 20
_CHAIN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LEAST_SECRET = 8
_WORD = re.compile(r"[a-z_-]+")
"""Such as `mainnet-beta`, which answers may well hold."""


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


def keys_of(url: str) -> tuple[bytes, ...]:
    """Return the parts of an address that may be keys: long, and more than a word."""
    parts = urlsplit(url)
    pieces = re.split(r"[/?&=]", f"{parts.path}?{parts.query}")
    pieces = [p for p in pieces if len(p) >= _LEAST_SECRET and not _WORD.fullmatch(p)]
    return tuple({p.encode(): None for piece in pieces for p in (piece, unquote(piece))})


def secrets_of(url: str) -> tuple[bytes, ...]:
    """Return the parts of an address that nobody else may read: its host and its keys."""
    parts = urlsplit(url)
    hosts = {p.encode(): None for p in (parts.netloc, parts.hostname or "")}
    return (*(host for host in hosts if len(host) >= _LEAST_SECRET), *keys_of(url))


class Providers:
    """Asks providers. An error never holds an address: it would reach logs and bots."""

    def __init__(self, endpoints: Mapping[str, str]) -> None:
        self.secrets = {chain: secrets_of(url) for chain, url in endpoints.items()}
        self.keys = {chain: keys_of(url) for chain, url in endpoints.items()}
        self._upstreams = {chain: Upstream(url, MOST_BYTES) for chain, url in endpoints.items()}

    def close(self) -> None:
        """Close all connections."""
        for upstream in self._upstreams.values():
            upstream.close()

    async def ask(self, chain: str, call: Call, number: int) -> Answer:
        """Return what the provider of a chain answers to a call.

        It is asked once; a read again, where the connection had been closed meanwhile.

        Args:
            chain: One that has an endpoint.
            call: Of a bot.
            number: The id under which it is sent.

        Raises:
            Rejected: `ProviderFailed`: it had no answer. `OutcomeUnknown`: the call may have had
                an effect.
        """
        content = await self._content(chain, call, call_body(call, number))
        try:
            return read_answer(content, number)
        except Rejected:
            if call.method in WRITES:
                raise _lost(chain, call, "gave an answer that cannot be read") from None
            raise

    async def _content(self, chain: str, call: Call, body: bytes) -> bytes:
        upstream = self._upstreams[chain]
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                try:
                    response = await upstream.post(body)
                except BrokenError as error:
                    if call.method in WRITES or not error.was_kept:
                        raise
                    response = await upstream.post(body, fresh=True)
        except UnreachableError:
            text = f"The provider of {chain} cannot be reached. The call was not sent."
            raise Rejected("ProviderFailed", text) from None
        except BrokenError as error:
            raise _lost(chain, call, str(error)) from None
        except TimeoutError:
            raise _lost(chain, call, f"did not answer within {ANSWER_SECONDS:.0f} s") from None
        if response.status >= HTTPStatus.MULTIPLE_CHOICES and not _is_rpc(response.body):
            raise _lost(chain, call, f"answered with HTTP {response.status}")
        return response.body


def _lost(chain: str, call: Call, told: str) -> Rejected:
    if call.method in WRITES:
        text = f"The provider of {chain} {told}. {call.method} may have had its effect: look first."
        return Rejected("OutcomeUnknown", text)
    return Rejected("ProviderFailed", f"The provider of {chain} {told}.")


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
