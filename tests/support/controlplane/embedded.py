"""Run a real control plane without a container engine: start, check and end it in order."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.support.controlplane import binaries, components, identities, processes
from tests.support.controlplane.api import Api
from tests.support.controlplane.components import API_SERVER, ETCD, LOOPS, Layout
from tests.support.controlplane.paths import HERE
from tests.support.controlplane.ports import kept_ports
from tests.support.controlplane.waiting import until

PORTS = "ports.json"

Say = Callable[[str], None]


def quiet(line: str) -> None:
    """Take a line of progress and show it to nobody."""


def start(state: Path, say: Say = quiet, definitions: Sequence[Path] = ()) -> Layout:
    """Start what does not run yet, and return when pods can be created.

    Args:
        state: Folder of everything that runs.
        say: Takes lines of progress.
        definitions: CustomResourceDefinition files to apply before the controllers start: they
            look for new kinds only every 30 seconds, and quotas that count them wait so long.

    Raises:
        processes.ProgramFailedError: A program ended while it was waited for.
        NotInTimeError: A program did not become ready.
    """
    layout = _layout(state)
    if is_healthy(layout):
        say("control plane is up already")
        return layout
    if not processes.is_running(state, ETCD):
        # Data that was not forced to the disk may be broken after a crash of the machine.
        stop(state)
        layout = _layout(state)
    with step("credentials", say):
        identities.ensure_tokens(layout.credentials)
        identities.ensure_signing_key(layout.credentials)
    with step(ETCD, say):
        start_etcd(layout)
    with step(API_SERVER, say):
        start_api_server(layout)
        apply(layout, definitions)
    with step(", ".join(LOOPS), say):
        start_loops(layout)
    with step("nodes ready", say):
        _create_nodes(layout)
    return layout


def stop(state: Path) -> None:
    """End everything that runs from a state folder and remove its data, but not its logs."""
    # Those that act go first, so that nothing complains about a server that is gone. The API
    # server would wait for its watchers, which nobody needs any more.
    for names, seconds in ((LOOPS, 3.0), ((API_SERVER,), 0.5), ((ETCD,), 0.5)):
        processes.stop(state, names, within=seconds)
    for data in ("etcd", "credentials"):
        shutil.rmtree(state / data, ignore_errors=True)
    for file in (PORTS, "audit.log", *(f"{who.name}.kubeconfig" for who in identities.CLIENTS)):
        (state / file).unlink(missing_ok=True)


def is_healthy(layout: Layout) -> bool:
    """Tell whether all programs live, the API server is ready and so are the nodes."""
    if not all(processes.is_running(layout.state, name) for name in layout.programs):
        return False
    api = admin_api(layout)
    return api.is_ready() and nodes_are_ready(api)


def admin_api(layout: Layout) -> Api:
    """Return access to the API server as its administrator."""
    tokens = identities.ensure_tokens(layout.credentials)
    return Api(server=layout.server, ca=layout.ca, token=tokens["admin"])


def kubeconfig(layout: Layout, name: str) -> Path:
    """Return the path of a client's kubeconfig."""
    return layout.state / f"{name}.kubeconfig"


def _layout(state: Path) -> Layout:
    ports = kept_ports(state / PORTS, "api", "etcd", "etcd-peer")
    return Layout(state=state, ports=ports, binaries=binaries.build())


def start_etcd(layout: Layout) -> None:
    """Start the store of the API server."""
    processes.start(components.etcd(layout), layout.state)


def start_api_server(layout: Layout) -> None:
    """Start the API server, and write a kubeconfig for everyone once it is ready."""
    processes.start(components.api_server(layout), layout.state)
    api = admin_api(layout)

    def ready() -> bool:
        processes.must_run(layout.state, ETCD, API_SERVER)
        return _has_ca(layout) and api.is_ready()

    until(ready, what="kube-apiserver ready")
    tokens = identities.ensure_tokens(layout.credentials)
    for who in identities.CLIENTS:
        _write_kubeconfig(layout, kubeconfig(layout, who.name), tokens[who.name])
    for who in identities.COMPONENTS:
        _write_kubeconfig(
            layout, components.component_kubeconfig(layout, who.name), tokens[who.name]
        )


def apply(layout: Layout, files: Sequence[Path]) -> None:
    """Apply files as the administrator."""
    if files:
        kubectl = [str(layout.binaries["kubectl"]), f"--kubeconfig={kubeconfig(layout, 'admin')}"]
        named = [word for file in files for word in ("-f", str(file))]
        command = [*kubectl, "apply", "--server-side", *named]
        subprocess.run(command, check=True, capture_output=True)


def _has_ca(layout: Layout) -> bool:
    if not layout.certificate.exists():
        return False
    begin = "-----BEGIN CERTIFICATE-----"
    _, *certificates = layout.certificate.read_text().split(begin)
    if len(certificates) < 2:
        return False
    layout.ca.write_text(begin + certificates[-1])
    return True


def _write_kubeconfig(layout: Layout, path: Path, token: str) -> None:
    identities.write_kubeconfig(path, server=layout.server, ca=layout.ca, token=token)


def start_loops(layout: Layout) -> None:
    """Start the controllers and return when pods can be created."""
    for program in components.loops(layout):
        processes.start(program, layout.state)
    api = admin_api(layout)

    def default_account_exists() -> bool:
        processes.must_run(layout.state, *layout.programs)
        return api.get("/api/v1/namespaces/default/serviceaccounts/default") is not None

    # Without it no pod can be created, and it is the controller manager's first sign of life.
    until(default_account_exists, what="kube-controller-manager at work")


def _create_nodes(layout: Layout) -> None:
    api = admin_api(layout)
    for node in yaml.safe_load((HERE / "nodes.yaml").read_text())["items"]:
        api.create("/api/v1/nodes", node)

    def ready() -> bool:
        processes.must_run(layout.state, *layout.programs)
        return nodes_are_ready(api)

    until(ready, what="nodes ready")


def nodes_are_ready(api: Api) -> bool:
    """Ready, and free of the taint that keeps pods away from a new node."""
    nodes = (api.get("/api/v1/nodes") or {}).get("items", [])
    return bool(nodes) and all(
        not node["spec"].get("taints")
        and any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in node.get("status", {}).get("conditions", [])
        )
        for node in nodes
    )


@contextmanager
def step(what: str, say: Say) -> Iterator[None]:
    """Say how long a step took."""
    started = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - started:.1f} s")
