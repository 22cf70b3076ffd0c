"""Start a control plane with a real node, cut its power, and end it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.support.controlplane import embedded, identities, processes
from tests.support.controlplane.components import API_SERVER, ETCD, LOOPS, Layout
from tests.support.controlplane.embedded import Say, quiet, step
from tests.support.controlplane.node import certificates, components, images, namespaces, parts
from tests.support.controlplane.node.components import CONTAINERD, KUBELET, NETWORK, NODE
from tests.support.controlplane.node.namespaces import ADDRESS, INIT, folder
from tests.support.controlplane.node.parts import Parts
from tests.support.controlplane.node.tunnel import tunnel
from tests.support.controlplane.ports import kept_ports
from tests.support.controlplane.waiting import until

TUNNEL = "tunnel-api"
PROGRAMS = (INIT, TUNNEL, ETCD, API_SERVER, *LOOPS[:2], CONTAINERD, KUBELET, *NETWORK)


def start(state: Path, say: Say = quiet, definitions: Sequence[Path] = ()) -> Layout:
    """Start what does not run yet, and return when pods run and policies are enforced.

    Data that is there is used again, as after a power failure.

    Raises:
        NoNodeError: A node cannot run here; the message says why.
        processes.ProgramFailedError: A program ended while it was waited for.
        NotInTimeError: A program did not become ready.
    """
    with step("parts", say):
        found = parts.ensure()
    with step("namespaces", say):
        layout = _layout(state, found)
    with step("control plane", say):
        _start_control_plane(layout, found, definitions)
    with step("node registered", say):
        _start_kubelet(layout, found)
    with step("node ready", say):
        _start_network(layout, found)
    return layout


def is_here(state: Path) -> bool:
    """Tell whether a node has been started in a state folder."""
    return folder(state).exists()


def cut_power(state: Path) -> None:
    """End the whole machine at once; `start` finds its data again."""
    namespaces.kill(state)
    # What is recorded lay in those namespaces, and would be found under an id of theirs.
    processes.stop(state, PROGRAMS, within=5)


def stop(state: Path) -> None:
    """End everything that runs from a state folder and remove its data, but not its logs."""
    namespaces.stop(state)
    processes.stop(state, [name for name in processes.names(state) if _is_ours(name)], within=5)
    embedded.stop(state)


def import_image(state: Path, image: images.Image) -> None:
    """Give the node an image, under its full name."""
    archive = images.write(image, folder(state) / "image.tar")
    command = (*("--address", components.SOCKET), *("-n", "k8s.io"), "images", "import")
    _ctr(state, *command, str(archive))
    archive.unlink()


def _layout(state: Path, found: Parts) -> Layout:
    namespaces.start(state)
    return Layout(
        state=state,
        ports=kept_ports(state / embedded.PORTS, "api", "etcd", "etcd-peer"),
        binaries=found.binaries,
        enter=namespaces.entering(state),
        more=components.more_arguments(state),
        simulated=False,
    )


def _start_control_plane(layout: Layout, found: Parts, definitions: Sequence[Path]) -> None:
    identities.ensure_tokens(layout.credentials)
    identities.ensure_signing_key(layout.credentials)
    addresses = ("127.0.0.1", ADDRESS, components.FIRST_SERVICE)
    certificates.ensure(layout.credentials, addresses)
    processes.start(components.containerd(layout, found), layout.state)
    api = ("127.0.0.1", layout.ports["api"])
    inside = namespaces.first_process(layout.state)
    # The same address on both sides: clients of the host need not know of the namespaces.
    processes.start(tunnel(TUNNEL, listen=(os.getpid(), api), to=(inside, api)), layout.state)
    embedded.start_etcd(layout)
    embedded.start_api_server(layout)
    embedded.apply(layout, definitions)
    embedded.start_loops(layout)


def _start_kubelet(layout: Layout, found: Parts) -> None:
    until(lambda: _containerd_answers(layout.state), what="containerd answers")
    pause = found.binaries["pause"]
    image = images.Image(
        name=components.PAUSE_IMAGE, files={"/pause": pause}, entrypoint=["/pause"]
    )
    import_image(layout.state, image)
    processes.start(components.kubelet(layout, found), layout.state)
    api = embedded.admin_api(layout)

    def registered() -> bool:
        processes.must_run(layout.state, CONTAINERD, KUBELET)
        return api.get(f"/api/v1/nodes/{NODE}") is not None

    until(registered, what="the node is registered")


def _start_network(layout: Layout, found: Parts) -> None:
    for program in components.network(layout, found):
        processes.start(program, layout.state)
    api = embedded.admin_api(layout)

    def ready() -> bool:
        processes.must_run(layout.state, *PROGRAMS)
        return embedded.nodes_are_ready(api) and _policies_are_enforced(layout.state, found)

    until(ready, what="the node is ready and enforces policies")


def _policies_are_enforced(state: Path, found: Parts) -> bool:
    environment = [f"{key}={value}" for key, value in found.environment.items()]
    try:
        rules = namespaces.run(state, "env", *environment, "iptables", "-S", "FORWARD")
    except processes.ProgramFailedError:
        return False
    return "KUBE-ROUTER-FORWARD" in rules


def _containerd_answers(state: Path) -> bool:
    processes.must_run(state, CONTAINERD)
    try:
        _ctr(state, "--address", components.SOCKET, "version")
    except processes.ProgramFailedError:
        return False
    return True


def _ctr(state: Path, *arguments: str) -> str:
    environment = processes.record(state, CONTAINERD).program.environment
    pairs = [f"{key}={value}" for key, value in environment.items()]
    return namespaces.run(state, "env", *pairs, "ctr", *arguments)


def _is_ours(name: str) -> bool:
    return name in PROGRAMS or name.startswith("tunnel-")
