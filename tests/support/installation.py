"""botplane installed into a cluster: definitions, roles, schema, and its processes beside it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.support.controlplane import processes
from tests.support.controlplane.cluster import Cluster
from tests.support.controlplane.ports import free_ports
from tests.support.controlplane.waiting import until

ROOT = Path(__file__).parents[2]
BOTPLANE = str(Path(sys.executable).parent / "botplane")
OPERATOR_USER = "system:serviceaccount:botplane-system:botplane-operator"
MASTER_KEY = "a master key for the demo and for tests only"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """One installation: a cluster, a database, and the processes that serve them."""

    cluster: Cluster
    database_url: str
    ports: dict[str, int]

    @classmethod
    def into(cls, cluster: Cluster, database_url: str) -> Installation:
        """Install definitions, roles and schema; start nothing."""
        ports = _kept_ports(cluster.state / "botplane.json")
        made = cls(cluster=cluster, database_url=database_url, ports=ports)
        made.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        made.kubectl("apply", "--server-side", "-f", str(ROOT / "manifests" / "install"))
        made.kubectl("wait", "--for=condition=Established", "-f", str(ROOT / "crds"))
        made.botplane("migrate")
        return made

    def start(self, name: str = "operator", **settings: str) -> None:
        """Start `operator` or `metering`; settings are environment variables."""
        processes.start(self._program(name, settings), self.cluster.state)

    @contextmanager
    def operator_with(self, **settings: str) -> Iterator[None]:
        """Let the operator lead with settings of its own; afterwards others find it as it was."""
        self._restart_operator(settings)
        yield
        self._restart_operator({})

    def _restart_operator(self, settings: dict[str, str]) -> None:
        self.stop("operator")
        self.start("operator", **settings)
        self.wait_for_leader()

    def start_second_operator(self) -> None:
        """Start another replica, which waits for the lease."""
        (port,) = free_ports(1)
        extra = {"BOTPLANE_IDENTITY": "second", "BOTPLANE_HEALTH_PORT": str(port)}
        self.ports["operator-second"] = port
        program = self._program("operator", extra, record="operator-second")
        processes.start(program, self.cluster.state)

    def answers(self, name: str, probe: str) -> bool:
        """Return whether a probe of a process, such as `readyz`, says ok."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/{probe}") as answer:
                return bool(answer.status == HTTPStatus.OK)
        except OSError:
            return False

    def stop(self, *names: str) -> None:
        """End processes in order, as the kubelet would."""
        processes.stop(self.cluster.state, names, within=20)

    def kill9(self, name: str) -> None:
        """Kill a process without warning."""
        processes.kill9(self.cluster.state, name)

    def log(self, name: str) -> str:
        """Return the log of a process."""
        path = processes.log_file(self.cluster.state, name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def leads(self, name: str = "operator") -> bool:
        """Return whether a process has become leader since it was started."""
        processes.must_run(self.cluster.state, name)
        return "Became leader" in self.log(name)

    def wait_for_leader(self, name: str = "operator") -> None:
        """Return when a process leads."""
        until(lambda: self.leads(name), what=f"{name} leads")

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl as admin and return what it prints.

        Raises:
            subprocess.CalledProcessError: kubectl failed; `stderr` says why.
        """
        command = [str(self.cluster.kubectl), f"--kubeconfig={self.cluster.kubeconfigs['admin']}"]
        done = subprocess.run(
            [*command, *arguments], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise CommandFailedError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects as a user would."""
        self.kubectl("apply", "-f", "-", text=json.dumps(_as_list(objects)))

    def get(self, *arguments: str) -> Any:
        """Return what `kubectl get` finds, as JSON; an empty list for nothing."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def botplane(self, *arguments: str) -> str:
        """Run the command `botplane` as admin and return what it prints."""
        done = subprocess.run(
            [*_command({}), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=processes.owned_environment(self.cluster.state)
            | self._settings("operator")
            | {"KUBECONFIG": str(self.cluster.kubeconfigs["admin"])},
        )
        if done.returncode != 0:
            raise CommandFailedError(f"botplane {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _program(
        self, name: str, extra: dict[str, str], record: str | None = None
    ) -> processes.Program:
        return processes.Program(
            name=record or name,
            argv=(*_command(extra), name),
            environment=self._settings(name) | extra,
        )

    def _settings(self, name: str) -> dict[str, str]:
        return {
            "KUBECONFIG": str(self.cluster.kubeconfigs[name]),
            "DATABASE_URL": self.database_url,
            "BOTPLANE_HEALTH_PORT": str(self.ports["operator"]),
            "BOTPLANE_METERING_HEALTH_PORT": str(self.ports["metering"]),
            "BOTPLANE_IDENTITY": "first",
            "BOTPLANE_LOG_FORMAT": "console",
            "BOTPLANE_MASTER_KEY": MASTER_KEY,
            "BOTPLANE_PURGE_SECONDS": "2",
            "BOTPLANE_PUBLIC_DOMAIN": "bots.example",
            "BOTPLANE_TEMPLATES_DIR": str(ROOT / "templates" / "k8s"),
        }


class CommandFailedError(Exception):
    """A command ended with an error; the message holds what it said."""


def _command(settings: dict[str, str]) -> list[str]:
    """Return the command `botplane`, or what a fault test puts in its place."""
    return shlex.split(
        settings.get("BOTPLANE_COMMAND", os.environ.get("BOTPLANE_COMMAND", BOTPLANE))
    )


def _kept_ports(path: Path) -> dict[str, int]:
    if not path.exists():
        operator, metering = free_ports(2)
        path.write_text(json.dumps({"operator": operator, "metering": metering}))
    kept: dict[str, int] = json.loads(path.read_text())
    return kept


def _as_list(objects: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}
