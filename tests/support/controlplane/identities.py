"""Who may talk to the API server: tokens, kubeconfigs, and the key that signs service accounts.

Only `admin` and the simulated kubelets may do everything. The operator and metering act as
their service accounts, so what they may do is decided by the chart's RBAC.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMESPACE = "botplane-system"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A user as the API server sees it, in `<name>.kubeconfig`."""

    name: str
    user: str
    groups: tuple[str, ...] = ()


def service_account(name: str, account: str) -> Identity:
    """Return the identity of a service account in botplane's namespace."""
    return Identity(
        name=name,
        user=f"system:serviceaccount:{NAMESPACE}:{account}",
        groups=("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}"),
    )


# What a client of this project may be.
CLIENTS = (
    Identity(name="admin", user="admin", groups=("system:masters",)),
    service_account("operator", "botplane-operator"),
    service_account("metering", "botplane-metering"),
)
# What the control plane's own programs are.
COMPONENTS = (
    Identity(name="kube-controller-manager", user="system:kube-controller-manager"),
    Identity(name="kube-scheduler", user="system:kube-scheduler"),
    Identity(name="kwok", user="kwok", groups=("system:masters",)),
    # Of a real node; the name in the user is the node's.
    Identity(name="kubelet", user="system:node:node-0", groups=("system:nodes",)),
    Identity(name="kube-proxy", user="system:kube-proxy"),
    Identity(name="kube-router", user="kube-router", groups=("system:masters",)),
)


def ensure_tokens(folder: Path) -> dict[str, str]:
    """Return a token per identity name; write the file the API server reads them from."""
    path = tokens_file(folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = [
            f'{secrets.token_urlsafe(24)},{who.user},{who.name},"{",".join(who.groups)}"'
            for who in (*CLIENTS, *COMPONENTS)
        ]
        _write_private(path, "\n".join(lines) + "\n")
    rows = [line.split(",", 3) for line in path.read_text().splitlines()]
    return {name: token for token, _, name, _ in rows}


def ensure_signing_key(folder: Path) -> Path:
    """Return the private key that signs service account tokens; make it on first use."""
    path = folder / "service-account.key"
    if not path.exists():
        command = ["openssl", "genpkey", "-algorithm", "RSA", "-out", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        path.chmod(0o600)
    return path


def tokens_file(folder: Path) -> Path:
    """Return the file for `--token-auth-file`."""
    return folder / "tokens.csv"


def write_kubeconfig(path: Path, *, server: str, ca: Path, token: str) -> Path:
    """Write a kubeconfig that needs no other file, and return its path."""
    authority = base64.b64encode(ca.read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "botplane",
        "clusters": [
            {
                "name": "botplane",
                "cluster": {"server": server, "certificate-authority-data": authority},
            }
        ],
        "users": [{"name": path.stem, "user": {"token": token}}],
        "contexts": [
            {"name": "botplane", "context": {"cluster": "botplane", "user": path.stem}},
        ],
    }
    _write_private(path, json.dumps(config, indent=2) + "\n")
    return path


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
