"""The command lines of the control plane's five programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.controlplane.paths import HERE
from tests.support.controlplane.processes import Program

ETCD, API_SERVER = "etcd", "kube-apiserver"
# In the order in which they are started; they are ended the other way round.
KWOK = "kwok"
LOOPS = ("kube-controller-manager", "kube-scheduler", KWOK)
PROGRAMS = (ETCD, API_SERVER, *LOOPS)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where one control plane lives: its folders, its ports, its programs.

    Attributes:
        enter: What a program is started through; nothing, or into the namespaces of a node.
        more: Further arguments per program.
        simulated: Whether kwok plays the nodes.
    """

    state: Path
    ports: Mapping[str, int]
    binaries: Mapping[str, Path]
    enter: tuple[str, ...] = ()
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    simulated: bool = True

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.ports['api']}"

    @property
    def credentials(self) -> Path:
        return self.state / "credentials"

    @property
    def certificate(self) -> Path:
        """What the API server makes at its first start: its certificate, then its authority's."""
        return self.credentials / "apiserver.crt"

    @property
    def ca(self) -> Path:
        """The authority alone, since nothing but an authority may be handed out to pods."""
        return self.credentials / "ca.crt"

    @property
    def signing_key(self) -> Path:
        return self.credentials / "service-account.key"

    @property
    def audit_log(self) -> Path:
        return self.state / "audit.log"

    @property
    def programs(self) -> tuple[str, ...]:
        return PROGRAMS if self.simulated else tuple(name for name in PROGRAMS if name != KWOK)


def etcd(layout: Layout) -> Program:
    """Return etcd; its data is thrown away after each run, so it does not wait for the disk."""
    client = f"http://127.0.0.1:{layout.ports['etcd']}"
    peer = f"http://127.0.0.1:{layout.ports['etcd-peer']}"
    return _program(
        layout,
        ETCD,
        f"--data-dir={layout.state / 'etcd'}",
        "--name=botplane",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=botplane={peer}",
        "--quota-backend-bytes=8589934592",
        "--unsafe-no-fsync",
        "--log-level=warn",
    )


def api_server(layout: Layout) -> Program:
    """Return the API server, which makes its own certificate in the credentials folder."""
    return _program(
        layout,
        API_SERVER,
        f"--etcd-servers=http://127.0.0.1:{layout.ports['etcd']}",
        "--bind-address=127.0.0.1",
        f"--secure-port={layout.ports['api']}",
        f"--cert-dir={layout.credentials}",
        f"--token-auth-file={layout.credentials / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        "--allow-privileged=true",
        "--service-cluster-ip-range=10.96.0.0/12",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={layout.signing_key}",
        f"--service-account-signing-key-file={layout.signing_key}",
        f"--audit-policy-file={HERE / 'audit-policy.yaml'}",
        f"--audit-log-path={layout.audit_log}",
        # Blocking: when a client has its answer, the line is in the file.
        "--audit-log-mode=blocking",
        "--audit-log-maxsize=0",
        "--profiling=false",
    )


def loops(layout: Layout) -> tuple[Program, ...]:
    """Return the programs that act on what the API server holds."""
    found = (
        _program(
            layout,
            "kube-controller-manager",
            _kubeconfig(layout, "kube-controller-manager"),
            f"--root-ca-file={layout.ca}",
            f"--service-account-private-key-file={layout.signing_key}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            # At the default 20 a second, a thousand new namespaces wait half a minute.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            # A quota that counts a kind of a new CRD is computed by the first resync after
            # the kind was discovered; the default is five minutes.
            "--resource-quota-sync-period=10s",
            "--profiling=false",
        ),
        _program(
            layout,
            "kube-scheduler",
            _kubeconfig(layout, "kube-scheduler"),
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--profiling=false",
        ),
    )
    return (*found, _simulator(layout)) if layout.simulated else found


def _simulator(layout: Layout) -> Program:
    config = f"--config={HERE / 'stages.yaml'}"
    return _program(layout, KWOK, _kubeconfig(layout, KWOK), config, "--v=WARN")


def component_kubeconfig(layout: Layout, name: str) -> Path:
    """Return the path of a component's own kubeconfig."""
    return layout.credentials / f"{name}.kubeconfig"


def _kubeconfig(layout: Layout, name: str) -> str:
    return f"--kubeconfig={component_kubeconfig(layout, name)}"


def _program(layout: Layout, name: str, *arguments: str) -> Program:
    more = layout.more.get(name, ())
    return Program(name=name, argv=(*layout.enter, str(layout.binaries[name]), *arguments, *more))
