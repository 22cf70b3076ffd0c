"""The command lines and settings of a node's own programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from tests.support.controlplane.components import Layout, component_kubeconfig
from tests.support.controlplane.node import cgroups
from tests.support.controlplane.node.namespaces import ADDRESS, folder
from tests.support.controlplane.node.parts import Parts
from tests.support.controlplane.processes import Program

NODE = "node-0"
CONTAINERD, KUBELET = "containerd", "kubelet"
NETWORK = ("kube-router", "kube-proxy")
POD_NETWORK = "10.244.0.0/16"
POD_SUBNET = "10.244.0.0/24"
FIRST_SERVICE = "10.96.0.1"
PAUSE_IMAGE = "node.local/pause:1"
MEMORY_FOR_PODS = 3 * 2**30
SOCKET = "/run/containerd/containerd.sock"
LEAST_FREE = 100 * 2**20
# What an init system does: a kubelet ends when containerd is not ready yet.
AGAIN = ("bash", "-c", 'until "$@"; do sleep 0.3; done', "again")


def more_arguments(state: Path) -> dict[str, tuple[str, ...]]:
    """Return what the control plane is told beyond the embedded one, to serve a real node."""
    client = state / "credentials" / "kubelet-client"
    return {
        "kube-apiserver": (
            "--bind-address=0.0.0.0",
            f"--advertise-address={ADDRESS}",
            "--authorization-mode=Node",
            f"--kubelet-client-certificate={client}.crt",
            f"--kubelet-client-key={client}.key",
            "--kubelet-preferred-address-types=InternalIP",
        ),
        "kube-controller-manager": ("--allocate-node-cidrs", f"--cluster-cidr={POD_NETWORK}"),
    }


def containerd(layout: Layout, parts: Parts) -> Program:
    """Return containerd, with its data where a restart finds it and its sockets where none does."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    runc = f"{cri}.containerd.runtimes.runc"
    text = f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{SOCKET}"
[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
# Without the capability to lower the score, no container would start.
restrict_oom_score_adj = true
[{cri}.cni]
bin_dir = "{parts.network_plugins}"
conf_dir = "{_network_settings(layout)}"
[{cri}.containerd]
snapshotter = "overlayfs"
[{runc}]
runtime_type = "io.containerd.runc.v2"
[{runc}.options]
SystemdCgroup = false
"""
    settings = _write(layout, "containerd.toml", text)
    return _program(layout, parts, "containerd", f"--config={settings}", "--log-level=warn")


def kubelet(layout: Layout, parts: Parts) -> Program:
    """Return the kubelet; it offers pods a part of the machine's memory."""
    spare = psutil.virtual_memory().total - MEMORY_FOR_PODS - LEAST_FREE
    settings: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": True,
        "cgroupRoot": f"/{cgroups.name_of(layout.state)}",
        "enforceNodeAllocatable": ["pods"],
        "kubeReserved": {"memory": str(max(spare, 0))},
        "makeIPTablesUtilChains": False,
        "resolvConf": "",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(layout.ca)},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": str(LEAST_FREE)},
        "crashLoopBackOff": {"maxContainerRestartPeriod": "10s"},
    }
    path = _write(layout, "kubelet.json", json.dumps(settings, indent=2))
    return _program(
        replace(layout, enter=(*layout.enter, *AGAIN)),
        parts,
        KUBELET,
        f"--config={path}",
        f"--kubeconfig={component_kubeconfig(layout, KUBELET)}",
        f"--hostname-override={NODE}",
        f"--node-ip={ADDRESS}",
    )


def network(layout: Layout, parts: Parts) -> tuple[Program, ...]:
    """Return what enforces NetworkPolicies and what serves Services.

    The first may be started only when the Node exists: it ends otherwise, and without it every
    policy stands open.
    """
    return (
        _program(
            layout,
            parts,
            "kube-router",
            f"--kubeconfig={component_kubeconfig(layout, 'kube-router')}",
            f"--hostname-override={NODE}",
            "--run-router=false",
            "--run-service-proxy=false",
            "--run-firewall=true",
        ),
        _program(
            layout,
            parts,
            "kube-proxy",
            f"--kubeconfig={component_kubeconfig(layout, 'kube-proxy')}",
            f"--hostname-override={NODE}",
            "--proxy-mode=nftables",
            f"--cluster-cidr={POD_NETWORK}",
            "--conntrack-max-per-core=0",
        ),
    )


def _network_settings(layout: Layout) -> Path:
    """Write how pods are connected: point to point, so that all traffic passes the firewall."""
    subnet = {"type": "host-local", "ranges": [[{"subnet": POD_SUBNET}]]}
    addresses = {**subnet, "routes": [{"dst": "0.0.0.0/0"}]}
    plugins = [
        {"type": "ptp", "ipam": addresses},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    settings = {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}
    return _write(layout, "network/10-pods.conflist", json.dumps(settings)).parent


def _write(layout: Layout, name: str, text: str) -> Path:
    path = folder(layout.state) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _program(layout: Layout, parts: Parts, name: str, *arguments: str) -> Program:
    found = str(parts.binaries.get(name, name))
    return Program(
        name=name, argv=(*layout.enter, found, *arguments), environment=parts.environment
    )
