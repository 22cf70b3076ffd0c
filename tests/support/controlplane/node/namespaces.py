"""One private set of namespaces for everything of a node: killing its first process removes all.

Mounts, network, processes, IPC and host name are the node's own, so nothing of the host's is
changed and nothing can be left behind, except control groups: see `cgroups`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.controlplane import processes
from tests.support.controlplane.node import cgroups
from tests.support.controlplane.paths import HERE
from tests.support.controlplane.processes import Program
from tests.support.controlplane.waiting import until

INIT = "node"
ADDRESS = "10.123.0.1"


def folder(state: Path) -> Path:
    """Return the node's own folder: its settings, and its data in `lib`."""
    return state / "node"


def start(state: Path) -> int:
    """Make the namespaces, unless they exist, and return the id of their first process."""
    if not processes.is_running(state, INIT):
        cgroups.make(cgroups.name_of(state))
        ready = folder(state) / "ready"
        ready.parent.mkdir(parents=True, exist_ok=True)
        ready.unlink(missing_ok=True)
        script = str(HERE / "node" / "init.sh")
        unshare = ("unshare", "-m", "-n", "-p", "-i", "-u", "--fork", "--kill-child")
        options = ("--mount-proc", "--propagation", "private", "bash", script)
        arguments = (str(folder(state) / "lib"), str(ready), f"{ADDRESS}/24")
        processes.start(Program(name=INIT, argv=(*unshare, *options, *arguments)), state)

        def prepared() -> bool:
            processes.must_run(state, INIT)
            return ready.exists()

        until(prepared, what="namespaces of the node")
    return first_process(state)


def first_process(state: Path) -> int:
    """Return the id, on the host, of the first process of the namespaces."""
    starter = processes.find(state, INIT)
    if starter is None:
        raise processes.ProgramFailedError("the node's namespaces do not exist")
    (init,) = starter.children()
    return init.pid


def entering(state: Path) -> tuple[str, ...]:
    """Return the command that starts another one inside."""
    return ("nsenter", "-t", str(first_process(state)), "-m", "-n", "-p", "-i", "-u", "--")


def run(state: Path, *command: str) -> str:
    """Run a command inside and return what it prints."""
    done = subprocess.run([*entering(state), *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise processes.ProgramFailedError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def kill(state: Path) -> None:
    """End everything inside at once, as a power failure would; the data stays."""
    processes.kill9(state, INIT)
    cgroups.remove(cgroups.name_of(state))


def stop(state: Path) -> None:
    """End everything inside and remove the data."""
    processes.kill9(state, INIT)
    processes.stop(state, (INIT,), within=5)
    cgroups.remove(cgroups.name_of(state))
    shutil.rmtree(folder(state), ignore_errors=True)
