"""A port of one network that leads to a port of another: our host's, or a node's private one.

Run as a program it opens the port in the one network, and then turns into itself in the other:
an open socket stays where it was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

from tests.support.controlplane.paths import CHECKOUT
from tests.support.controlplane.processes import Program

MODULE = "tests.support.controlplane.node.tunnel"
Address = tuple[str, int]


def tunnel(name: str, *, listen: tuple[int, Address], to: tuple[int, Address]) -> Program:
    """Return the program; a side is the id of a process in its network, and the address there."""
    listen_pid, (host, port) = listen
    to_pid, (to_host, to_port) = to
    command = _inside(listen_pid, "listen", host, str(port), str(to_pid), to_host, str(to_port))
    # It is started from anywhere.
    return Program(name=name, argv=tuple(command), environment={"PYTHONPATH": str(CHECKOUT)})


def _inside(pid: int, *arguments: str) -> list[str]:
    return ["nsenter", "-t", str(pid), "-n", "--", sys.executable, "-m", MODULE, *arguments]


def _listen(host: str, port: str, pid: str, *to: str) -> None:
    listener = socket.create_server((host, int(port)))
    listener.set_inheritable(True)
    command = _inside(int(pid), "serve", str(listener.fileno()), *to)
    os.execvp(command[0], command)  # noqa: S606


async def _serve(number: str, host: str, port: str) -> None:
    listener = socket.socket(fileno=int(number))

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        writer.close()
        far_writer.close()

    server = await asyncio.start_server(accepted, sock=listener)
    async with server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "listen":
        _listen(*rest)
    else:
        asyncio.run(_serve(*rest))
