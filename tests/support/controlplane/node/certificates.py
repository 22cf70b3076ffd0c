"""Certificates of a node's cluster: its authority, the API server, and its client at the kubelet.

The API server of the embedded cluster makes its own, for one address; here pods and the host
reach it under different ones.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

API_NAMES = ("kubernetes.default.svc", "kubernetes.default", "kubernetes", "localhost")
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "365")


def ensure(credentials: Path, addresses: tuple[str, ...]) -> None:
    """Write the certificates, unless they exist, where the API server looks for them."""
    served = credentials / "apiserver.crt"
    if served.exists():
        return
    credentials.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = credentials / "authority.crt"
    _request(credentials, "authority", "/CN=botplane-node", ())
    by = ("-CA", str(authority), "-CAkey", str(credentials / "authority.key"))
    client = ("-addext", "extendedKeyUsage=clientAuth")
    _request(credentials, "kubelet-client", "/O=system:masters/CN=kube-apiserver", (*by, *client))
    names = [f"DNS:{name}" for name in API_NAMES] + [f"IP:{address}" for address in addresses]
    server = ("-addext", f"subjectAltName={','.join(names)}")
    _request(credentials, "apiserver", "/CN=kube-apiserver", (*by, *server))
    # The authority follows the certificate, as in those that the API server makes.
    served.write_text(served.read_text() + authority.read_text())


def _request(folder: Path, name: str, subject: str, more: tuple[str, ...]) -> None:
    files = ("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt"))
    command = ["openssl", "req", "-x509", *KEY, "-subj", subject, *files, *more]
    subprocess.run(command, check=True, capture_output=True)
