"""The operator behind the proxy: killed when a test says so, started again when it has ended."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from tests.faults.kproxy import Proxy
from tests.support.controlplane import identities, processes
from tests.support.installation import Installation

NAME = "operator"
PATCHED = f"{sys.executable} {Path(__file__).with_name('seeded.py')}"
"""The command that tests may change inside."""


class ProxiedOperator:
    """The session's operator, for a while with the proxy before its API server."""

    def __init__(self, installed: Installation, folder: Path) -> None:
        self._installed = installed
        self.proxy = Proxy(installed.cluster, folder / "calls.jsonl")
        self._kubeconfig = identities.write_kubeconfig(
            folder / "operator.kubeconfig",
            server=self.proxy.url,
            ca=installed.cluster.ca,
            token=installed.cluster.tokens[NAME],
        )
        self._settings = {"KUBECONFIG": str(self._kubeconfig), "BOTPLANE_COMMAND": PATCHED}
        self.restarts = 0
        """How often it has ended by itself and was started again."""
        self._supervised = threading.Event()
        self._closing = threading.Event()
        installed.stop(NAME)
        self.start()
        installed.wait_for_leader()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the installation its operator back as it was."""
        self._supervised.clear()
        self._closing.set()
        self._thread.join(10)
        self._installed.stop(NAME)
        self.proxy.close()
        self._installed.start(NAME)
        self._installed.wait_for_leader()

    def start(self) -> None:
        """Start it; the lease is its own and is taken over at once."""
        self._installed.start(NAME, **self._settings)
        self._supervised.set()

    def restart(self, **settings: str) -> None:
        """Start it anew with other settings, which it keeps."""
        self.kill()
        self._settings |= settings
        self.start()

    def kill(self) -> None:
        """End it without warning; it stays dead until `start`."""
        self._supervised.clear()
        self._installed.kill9(NAME)

    def _supervise(self) -> None:
        """Do what the kubelet does, but without its growing delay."""
        while not self._closing.wait(0.1):
            if self._supervised.is_set() and not self._is_running() and self._supervised.is_set():
                self.restarts += 1
                self.start()

    def _is_running(self) -> bool:
        return processes.is_running(self._installed.cluster.state, NAME)
