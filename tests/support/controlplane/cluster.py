"""The cluster to work against: our own control plane, a kind cluster, or the current one.

`CLUSTER` chooses: `embedded` (default; simulated nodes), `node` (a real one), `kind` or `current`.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.controlplane import binaries, embedded, identities, processes
from tests.support.controlplane.api import Api
from tests.support.controlplane.components import Layout
from tests.support.controlplane.embedded import Say, quiet
from tests.support.controlplane.node import lifecycle as real_node
from tests.support.controlplane.node.parts import NoNodeError

KIND_CLUSTER = "botplane"


class NoClusterError(Exception):
    """The cluster that `CLUSTER` asks for cannot be had here."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Access to a cluster, once per identity: admin, operator, metering."""

    kind: str
    server: str
    ca: Path
    kubeconfigs: Mapping[str, Path]
    tokens: Mapping[str, str] = field(repr=False)
    kubectl: Path
    helm: Path
    state: Path
    audit_log: Path | None = None

    def api(self, identity: str = "admin") -> Api:
        """Return plain HTTP access; in a cluster that is not ours `admin` has no token."""
        return Api(server=self.server, ca=self.ca, token=self.tokens[identity])

    def stop(self) -> None:
        """End the cluster if it is ours."""
        if self.kind != "current":
            stop(self.state)

    def kill9(self, program: str) -> None:
        """Kill one program of the embedded control plane, as a fault."""
        processes.kill9(self.state, program)

    def restart(self, program: str) -> None:
        """Start a killed program of the embedded control plane again."""
        processes.restart(self.state, program)


def start(state: Path, say: Say = quiet, definitions: Sequence[Path] = ()) -> Cluster:
    """Return the cluster that `CLUSTER` asks for, started if need be.

    `definitions` are applied before the controllers of an embedded cluster start.

    Raises:
        NoClusterError: It cannot be had here.
    """
    kind = os.environ.get("CLUSTER") or "embedded"
    starters = {
        "embedded": lambda state, say: _embedded(state, say, definitions),
        "node": lambda state, say: _node(state, say, definitions),
        "kind": _kind,
        "current": _current,
    }
    if kind not in starters:
        raise NoClusterError(f"CLUSTER={kind} is none of {', '.join(starters)}")
    return starters[kind](state, say)


def stop(state: Path) -> None:
    """End our own control plane; with `CLUSTER=kind` delete the kind cluster as well."""
    if os.environ.get("CLUSTER") == "kind":
        _output("kind", "delete", "cluster", "--name", KIND_CLUSTER)
    stop_own(state)


def stop_own(state: Path) -> None:
    """End our own control plane, with its node if it has a real one."""
    if real_node.is_here(state):
        real_node.stop(state)
    embedded.stop(state)


def _embedded(state: Path, say: Say, definitions: Sequence[Path]) -> Cluster:
    return _own("embedded", embedded.start(state, say, definitions))


def _node(state: Path, say: Say, definitions: Sequence[Path]) -> Cluster:
    try:
        return _own("node", real_node.start(state, say, definitions))
    except NoNodeError as error:
        raise NoClusterError(f"CLUSTER=node: {error}") from error


def _own(kind: str, layout: Layout) -> Cluster:
    tokens = identities.ensure_tokens(layout.credentials)
    names = [who.name for who in identities.CLIENTS]
    return Cluster(
        kind=kind,
        server=layout.server,
        ca=layout.ca,
        kubeconfigs={name: embedded.kubeconfig(layout, name) for name in names},
        tokens={name: tokens[name] for name in names},
        kubectl=layout.binaries["kubectl"],
        helm=layout.binaries["helm"],
        state=layout.state,
        audit_log=layout.audit_log,
    )


def _kind(state: Path, say: Say) -> Cluster:
    for tool in ("docker", "kind"):
        if shutil.which(tool) is None:
            raise NoClusterError(f"CLUSTER=kind needs {tool} on PATH; CLUSTER=embedded needs none")
    if KIND_CLUSTER not in _output("kind", "get", "clusters").split():
        say(f"creating the kind cluster {KIND_CLUSTER}")
        _output("kind", "create", "cluster", "--name", KIND_CLUSTER, "--wait", "120s")
    admin = _private(state / "admin.kubeconfig")
    admin.write_text(_output("kind", "get", "kubeconfig", "--name", KIND_CLUSTER))
    return _foreign("kind", state, admin)


def _current(state: Path, say: Say) -> Cluster:
    kubectl = binaries.tools()["kubectl"]
    admin = _private(state / "admin.kubeconfig")
    admin.write_text(_output(str(kubectl), "config", "view", "--minify", "--flatten", "--raw"))
    say("using the current kubeconfig")
    return _foreign("current", state, admin)


def _foreign(kind: str, state: Path, admin: Path) -> Cluster:
    """Give the operator and metering tokens of their service accounts in a foreign cluster."""
    tools = binaries.tools()
    kubectl = [str(tools["kubectl"]), f"--kubeconfig={admin}"]
    server, authority = json.loads(
        _output(
            *kubectl,
            *("config", "view", "--raw", "--minify", "-o"),
            "jsonpath=["
            '"{.clusters[0].cluster.server}",'
            '"{.clusters[0].cluster.certificate-authority-data}"]',
        )
    )
    ca = state / "ca.crt"
    ca.write_bytes(base64.b64decode(authority))
    _create_accounts(kubectl)
    kubeconfigs, tokens = {"admin": admin}, {}
    for who in identities.CLIENTS:
        if not who.user.startswith("system:serviceaccount:"):
            continue
        account = who.user.rpartition(":")[2]
        tokens[who.name] = _output(
            *kubectl, "create", "token", account, "-n", identities.NAMESPACE, "--duration=24h"
        ).strip()
        kubeconfigs[who.name] = identities.write_kubeconfig(
            state / f"{who.name}.kubeconfig", server=server, ca=ca, token=tokens[who.name]
        )
    return Cluster(
        kind=kind,
        server=server,
        ca=ca,
        kubeconfigs=kubeconfigs,
        tokens=tokens,
        kubectl=tools["kubectl"],
        helm=tools["helm"],
        state=state,
    )


def _create_accounts(kubectl: list[str]) -> None:
    metadata = {"namespace": identities.NAMESPACE}
    accounts = [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {**metadata, "name": who.user.rpartition(":")[2]},
        }
        for who in identities.CLIENTS
        if who.user.startswith("system:serviceaccount:")
    ]
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": identities.NAMESPACE},
    }
    objects = {"apiVersion": "v1", "kind": "List", "items": [namespace, *accounts]}
    _output(*kubectl, "apply", "-f", "-", text=json.dumps(objects))


def _private(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    return path


def _output(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
