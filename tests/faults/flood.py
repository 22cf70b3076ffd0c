"""Change objects hundreds of times a second, from a process of its own.

Its orders come on standard input as one line of JSON; it ends when that is closed, and prints how
many changes the API server took.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.support.controlplane.api import Api

PER_SECOND = 500


@dataclass
class Flood:
    """What a flood has come to, once it is over."""

    changes: int = 0
    seconds: float = field(default=0.0)

    @property
    def per_second(self) -> float:
        """Changes that the API server took."""
        return self.changes / self.seconds


@contextmanager
def flooded(api: Api, paths: Sequence[str], change: dict[str, Any]) -> Iterator[Flood]:
    """Change objects for as long as the block lasts; `COUNT` in the change is the number.

    Writes of one object wait for each other in etcd: it takes many objects to make a flood.
    """
    orders: dict[str, Any] = {"server": api.server, "ca": str(api.ca), "token": api.token}
    orders |= {"paths": list(paths), "change": json.dumps(change)}
    command = [sys.executable, "-m", "tests.faults.flood"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(orders) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "begun\n"
    flood, began = Flood(), time.monotonic()
    try:
        yield flood
    finally:
        flood.seconds = time.monotonic() - began
        said, _ = process.communicate(timeout=20)
        flood.changes = int(said)


async def _run(orders: dict[str, Any]) -> int:
    over, made = asyncio.Event(), 0
    asyncio.get_running_loop().add_reader(sys.stdin, over.set)
    tls = ssl.create_default_context(cafile=orders["ca"])
    headers = {
        "Authorization": f"Bearer {orders['token']}",
        "Content-Type": "application/merge-patch+json",
    }
    connector = aiohttp.TCPConnector(limit=0, ssl=tls)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        began = time.monotonic()

        async def change(path: str) -> None:
            nonlocal made
            while not over.is_set():
                made += 1
                number = made
                await asyncio.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
                body = orders["change"].replace("COUNT", str(number))
                async with session.patch(orders["server"] + path, data=body) as answer:
                    answer.raise_for_status()
                    await answer.read()
                if number == 1:
                    print("begun", flush=True)

        async with asyncio.TaskGroup() as group:
            for path in orders["paths"]:
                group.create_task(change(path))
    return made


if __name__ == "__main__":
    print(asyncio.run(_run(json.loads(sys.stdin.readline()))))
