"""What a node is made of: Go programs built from source, and packages of the distribution.

Packages are downloaded and unpacked into the cache, not installed: nothing of the host changes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.controlplane import binaries
from tests.support.controlplane.paths import cache_folder

PACKAGES = ("containerd", "runc", "containernetworking-plugins", "iptables", "ipset", "nftables")
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "iptables", "ipset", "nft")
HOST_TOOLS = ("unshare", "nsenter", "ip", "mount", "openssl", "apt-get", "dpkg-deb")
# The packages leave it to the package system to give these their names.
IPTABLES = tuple(
    f"{family}{purpose}"
    for family in ("iptables", "ip6tables")
    for purpose in ("", "-save", "-restore")
)
TRIPLET = f"{platform.machine()}-linux-gnu"


class NoNodeError(Exception):
    """A real node cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The Go programs by name, and the root of the unpacked packages."""

    binaries: Mapping[str, Path]
    packages: Path

    @property
    def environment(self) -> dict[str, str]:
        """What lets programs find each other inside the unpacked packages."""
        folders = [self.packages / part for part in ("bin", "usr/sbin", "usr/bin")]
        libraries = self.packages / "usr" / "lib" / TRIPLET
        found = {
            "PATH": ":".join([*map(str, folders), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": str(libraries),
        }
        if (libraries / "xtables").is_dir():
            found["XTABLES_LIBDIR"] = str(libraries / "xtables")
        return found

    @property
    def network_plugins(self) -> Path:
        """The folder of the CNI plugins."""
        return next(
            folder
            for folder in (self.packages / "usr/lib/cni", Path("/usr/lib/cni"))
            if folder.is_dir()
        )


def why_not() -> str | None:
    """Say what keeps a node from running here, or return None."""
    if platform.system() != "Linux":
        return f"a node needs Linux, this is {platform.system()}"
    if os.geteuid() != 0:
        return "a node needs root, for namespaces, mounts and control groups"
    if missing := [tool for tool in HOST_TOOLS if shutil.which(tool) is None]:
        return f"a node needs {', '.join(missing)} on PATH"
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "a node needs control groups that it may write: /sys/fs/cgroup is read-only"
    probe = ["unshare", "-m", "-n", "-p", "-i", "-u", "--fork", "--mount-proc", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"no private namespaces: {done.stderr.strip()}" if done.returncode else None


def ensure() -> Parts:
    """Return all parts; build, download or unpack what the cache lacks.

    Raises:
        NoNodeError: A node cannot run here, or a part cannot be had.
    """
    if reason := why_not():
        raise NoNodeError(reason)
    needed = [module for module in binaries.MODULES if module.name != "kwok"]
    return Parts(binaries=binaries.build([*needed, *binaries.NODE_MODULES]), packages=_packages())


def _packages() -> Path:
    release = platform.freedesktop_os_release()
    words = " ".join([*PACKAGES, release.get("ID", ""), release.get("VERSION_ID", "")])
    digest = hashlib.sha256(words.encode()).hexdigest()[:12]
    folder = cache_folder() / "bin" / f"node-packages-{digest}"
    if not folder.exists():
        with binaries.alone():
            if not folder.exists():
                with binaries.draft_of(folder) as draft:
                    _unpack(draft)
    return folder


def _unpack(folder: Path) -> None:
    # As root, apt would give the files to a user of its own, who may not write here.
    _run(["apt-get", "download", "-o", "APT::Sandbox::User=root", *_missing_packages()], folder)
    for file in folder.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(file), str(folder)], folder)
        file.unlink()
    links = folder / "bin"
    links.mkdir(exist_ok=True)
    for sbin in ("usr/sbin/xtables-nft-multi", "sbin/xtables-nft-multi"):
        if (folder / sbin).exists():
            for name in IPTABLES:
                (links / name).symlink_to(Path("..") / sbin)
    made = Parts(binaries={}, packages=folder)
    missing = [name for name in PROGRAMS if not shutil.which(name, path=made.environment["PATH"])]
    if missing:
        raise NoNodeError(f"the packages {' '.join(PACKAGES)} hold no {', '.join(missing)}")


def _missing_packages() -> list[str]:
    """Return those of the packages, and of what they need, that are not installed."""
    simulate = ["apt-get", "install", "--simulate", "--no-install-recommends", *PACKAGES]
    try:
        plan = _run(simulate, Path("/"))
    except NoNodeError:
        _run(["apt-get", "update", "--quiet"], Path("/"))
        plan = _run(simulate, Path("/"))
    return [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoNodeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
