"""The control groups under which a node's pods run: made before, removed after.

Nothing of the existing groups is changed, except that version 2 is told to hand its controllers
down from the root, which an init system has usually done already.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


def name_of(state: Path) -> str:
    """Return the name of a node's own groups."""
    return f"botplane-node-{hashlib.sha256(str(state).encode()).hexdigest()[:8]}"


def make(name: str) -> None:
    """Make the groups, in each hierarchy of version 1 or in the one of version 2."""
    if (ROOT / "cgroup.controllers").exists():
        _hand_down(ROOT)
        (ROOT / name).mkdir(exist_ok=True)
        _hand_down(ROOT / name)
        return
    for hierarchy in _hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        # A new cpuset has neither processors nor memory until it is told.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (group / file).exists():
                (group / file).write_text((hierarchy / file).read_text())


def remove(name: str, within: float = 10) -> None:
    """Remove the groups, from the leaves up; their processes have been killed."""
    deadline = time.monotonic() + within
    while groups := list(_groups(name)):
        for group in groups:
            with contextlib.suppress(OSError):
                group.rmdir()
        if time.monotonic() > deadline:
            raise OSError(f"control groups are still in use: {groups}")
        time.sleep(0.05)


def _hand_down(group: Path) -> None:
    offered = (group / "cgroup.controllers").read_text().split()
    wanted = " ".join(f"+{name}" for name in CONTROLLERS if name in offered)
    (group / "cgroup.subtree_control").write_text(wanted)


def _hierarchies() -> list[Path]:
    folders = (ROOT / "unified" / "..", *ROOT.iterdir())
    return [folder for folder in folders if (folder / "tasks").exists()]


def _groups(name: str) -> Iterator[Path]:
    """Yield what is left, leaves first."""
    for folder in (ROOT, *ROOT.iterdir()):
        top = folder / name
        if top.is_dir() and not folder.is_symlink():
            below = [path for path in top.rglob("*") if path.is_dir()]
            yield from sorted(below, key=lambda path: -len(path.parts))
            yield top
