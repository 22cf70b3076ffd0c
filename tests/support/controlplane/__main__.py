"""Start and stop the control plane and PostgreSQL by hand: build, up, down, status, env."""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.controlplane import (
    binaries,
    cluster,
    components,
    postgres,
    processes,
    toolchain,
    waiting,
    watchdog,
)
from tests.support.controlplane.embedded import Say
from tests.support.controlplane.node import lifecycle as real_node
from tests.support.controlplane.paths import state_folder

DATABASE = "botplane"
FAILURES = (
    binaries.BuildFailedError,
    toolchain.NoToolchainError,
    cluster.NoClusterError,
    processes.ProgramFailedError,
    waiting.NotInTimeError,
)


def main() -> int:
    """Run one command and return its exit code."""
    commands = {"build": build, "up": up, "down": down, "status": status, "env": env}
    parser = argparse.ArgumentParser(prog="controlplane", description=__doc__)
    parser.add_argument("command", choices=commands)
    chosen = commands[parser.parse_args().command]
    try:
        return chosen(state_folder())
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def build(_state: Path) -> int:
    """Build or unpack whatever the cache lacks."""
    for name, path in sorted(binaries.build().items()):
        print(f"{name}: {path}")
    return 0


def up(state: Path) -> int:
    """Start what does not run; what runs already stays as it is."""
    started = time.monotonic()
    with _alone(state):
        found = cluster.start(state, print)
        server = _start_postgres(state, print)
    print(f"up after {time.monotonic() - started:.1f} s: {found.server}, {server}")
    return 0


def down(state: Path) -> int:
    """End everything that `up` started, and remove its data."""
    started = time.monotonic()
    with _alone(state):
        cluster.stop(state)
        watchdog.end_all(state)
    print(f"down after {time.monotonic() - started:.1f} s")
    return 0


def status(state: Path) -> int:
    """Show each program; fail if one is missing."""
    parts = real_node.PROGRAMS if real_node.is_here(state) else components.PROGRAMS
    names = (*parts, postgres.NAME)
    found = {name: processes.find(state, name) for name in names}
    for name, process in found.items():
        if process is None:
            print(f"{name:<24} down")
        else:
            memory = process.memory_info().rss / 2**20
            print(f"{name:<24} up     pid {process.pid:<8} {memory:4.0f} MiB")
    return 0 if all(found.values()) else 1


def env(state: Path) -> int:
    """Print what `eval` needs to work with the running cluster and database."""
    server = postgres.find(state)
    kubeconfig = state / "admin.kubeconfig"
    if server is None or not kubeconfig.exists():
        print("error: nothing is up; run `up` first", file=sys.stderr)
        return 1
    folders = [binaries.tools()["kubectl"].parent, Path(sys.executable).parent]
    kept = [part for part in os.environ.get("PATH", "").split(":") if Path(part) not in folders]
    for name, value in {
        "KUBECONFIG": str(kubeconfig),
        "DATABASE_URL": database(server),
        "PATH": ":".join([*map(str, folders), *kept]),
    }.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _start_postgres(state: Path, say: Say) -> str:
    started = time.monotonic()
    server = postgres.start(state)
    url = database(server)
    say(f"postgres: {time.monotonic() - started:.1f} s")
    return url


def database(server: postgres.Postgres) -> str:
    """The database of `DATABASE_URL` is used as it is; ours is called botplane."""
    return server.url if server.state is None else server.ensure_database(DATABASE)


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Keep two commands from working on one state folder at once."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
