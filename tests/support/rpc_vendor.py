"""A stand-in for an RPC vendor: it answers, remembers what it got, and fails when told to."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

SECRET: Final = "CANARY-4711-secret"
"""The vendor's key, in its address; nobody but the gateway may ever see it."""
RESULT: Final = b'{"value":18446744073709551617,"price":1.10,"text":"\xc3\xa9"}'
"""What it answers: digits that a float or 64 bits would lose."""


def _raw(framing: str) -> Callable[[int], bytes]:
    """Return what answers a call by hand, with these headers."""
    content = '{"jsonrpc":"2.0","id":%d,"result":"raw"}'
    return lambda number: f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{content % number}".encode()


def _chunked(number: int) -> bytes:
    parts = [b'{"jsonrpc":"2.0",', b'"id":%d,' % number, b'"result":"raw"}', b""]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


RAW: Final[Mapping[str, Callable[[int], bytes]]] = {
    "chunked": _chunked,
    "cut short": _raw("Content-Length: 400"),
    "shorter than sent": _raw("Content-Length: 12"),
    "both framings": _raw("Content-Length: 20\r\nTransfer-Encoding: chunked"),
    "two lengths": _raw("Content-Length: 20\r\nContent-Length: 21"),
    "no HTTP": lambda _: b"SSH-2.0-OpenSSH\r\n",
    "early hints": lambda _: b"HTTP/1.1 103 Early Hints\r\n\r\n",
}
"""Answers that are no well-formed HTTP, or unusual."""
LARGE: Final[Mapping[str, Callable[[], bytes]]] = {
    "deep": lambda: b"[" * 100_000 + b"]" * 100_000,
    "17 MB": lambda: b'"%s"' % (b"x" * (17 << 20)),
}
"""Results that are made when they are asked for, and not at each call."""
ENDS: Final = frozenset({"cut short", "no HTTP"})


@dataclass(frozen=True, kw_only=True)
class Dial:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(kw_only=True)
class RPCVendor:
    """The state of one vendor.

    Attributes:
        faults: What happens to the next calls; afterwards they are answered.
        dials: Every request.
        pauses: Set when calls of fault `hang` shall go on.
    """

    url: str = ""
    faults: list[str] = field(default_factory=list)
    dials: list[Dial] = field(default_factory=list)
    pauses: threading.Event = field(default_factory=threading.Event)

    @property
    def methods(self) -> list[str]:
        """The method of every call that arrived, in order."""
        return [json.loads(dial.body)["method"] for dial in self.dials]

    @property
    def host(self) -> str:
        """Host and port, which are part of the secret address."""
        return self.url.split("/")[2]

    def answer(self, fault: str, number: int) -> tuple[int, bytes]:
        """Return status and body."""
        if fault in LARGE:
            return 200, b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (number, LARGE[fault]())
        own = b'{"jsonrpc":"2.0","id":%d,' % number
        reverted = b'"error":{"code":3,"message":"execution reverted","data":"0x08c379a0"}}'
        leak = f'"error":{{"code":-32005,"message":"{SECRET} is over its limit"}}}}'.encode()
        escaped = SECRET.replace("A", "\\u0041").encode()
        host = f'"error":{{"code":-32005,"message":"http:\\/\\/{self.host} is slow"}}}}'.encode()
        return {
            "ok": (200, own + b'"result":' + RESULT + b"}"),
            "null": (200, own + b'"result":null}'),
            "reverted": (200, own + reverted),
            "reverted with 400": (400, own + reverted),
            "leaks its key": (200, own + leak),
            "leaks its key in escapes": (200, own + leak.replace(SECRET.encode(), escaped)),
            "a result with its key": (200, own + b'"result":["' + SECRET.encode() + b'"]}'),
            "a result with its key in escapes": (200, own + b'"result":["' + escaped + b'"]}'),
            "an error that is text": (200, own + b'"error":"busy"}'),
            "a result beside no error": (200, own + b'"result":1,"error":null}'),
            "an error beside no result": (200, own + b'"result":null,' + reverted),
            "not UTF-8 within": (200, own + b'"result":"\xff"}'),
            "leaks its host": (200, own + host),
            "500": (500, b"<html>" + self.url.encode()),
            "429": (429, b"slow down " + self.url.encode()),
            "401": (401, b"bad key " + SECRET.encode()),
            "redirect": (302, b""),
            "html": (200, b"<html>busy</html>"),
            "empty": (200, b""),
            "cut JSON": (200, own + b'"result":{"val'),
            "not UTF-8": (200, own + b'"result":"\xff'),
            "another's answer": (200, b'{"jsonrpc":"2.0","id":%d,"result":1}' % (number + 1)),
            "no id": (200, b'{"jsonrpc":"2.0","result":1}'),
            "result and error": (200, own + b'"result":1,"error":{"code":1,"message":"x"}}'),
            "neither": (200, own[:-1] + b"}"),
            "a list": (200, b"[" + own + b'"result":1}]'),
        }[fault]


def _routes(vendor: RPCVendor) -> type[BaseHTTPRequestHandler]:
    class Routes(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            vendor.dials.append(Dial(path=self.path, headers=headers, body=body))
            fault = vendor.faults.pop(0) if vendor.faults else "ok"
            if fault == "reset":
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                os.close(self.connection.detach())
                self.close_connection = True
                return
            if fault in RAW:
                with suppress(OSError):
                    self.wfile.write(RAW[fault](json.loads(body)["id"]))
                self.close_connection = fault in ENDS
                return
            if fault == "hang":
                vendor.pauses.wait()
                fault = "ok"
            status, content = vendor.answer(fault, json.loads(body)["id"])
            with suppress(OSError):  # who asked may be gone
                self._answer(status, content)

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Vendor-Key", SECRET)
            self.send_header("Set-Cookie", f"key={SECRET}")
            if status == 302:
                self.send_header("Location", "http://169.254.169.254/latest/meta-data")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """What was asked stands in `dials`."""

    return Routes


@contextmanager
def rpc_vendor() -> Iterator[RPCVendor]:
    """A vendor on a port of its own, until the block ends."""
    vendor = RPCVendor()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Whoever breaks off is meant to."""

    server = Server(("127.0.0.1", 0), _routes(vendor))
    vendor.url = f"http://127.0.0.1:{server.server_port}/v2/{SECRET}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield vendor
    finally:
        vendor.pauses.set()
        server.shutdown()
        thread.join()
        server.server_close()
