"""End what a process started when that process is gone, however it went.

Run as a program of its own, in its own session, with a pipe from its starter as standard
input: when the starter ends, even by `kill -9`, the pipe closes.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.controlplane import cluster, postgres, processes
from tests.support.controlplane.paths import CHECKOUT


def watch_over(state: Path) -> subprocess.Popen[bytes]:
    """Start a watchdog that ends everything in a state folder when this process is gone."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.controlplane.watchdog", str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        cwd=CHECKOUT,
    )


def end_all(state: Path) -> None:
    """End the control plane and PostgreSQL of a state folder, recorded or not."""
    cluster.stop_own(state)
    postgres.stop(state)
    processes.end_strays(state)


def main(state: Path) -> None:
    """Wait for the starter's end, then end everything and remove the state folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_all(state)
    # A start that was under way may have been recorded only now.
    time.sleep(0.5)
    end_all(state)
    shutil.rmtree(state, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
