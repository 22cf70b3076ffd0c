"""The diaries that test bots keep of their own lives, read even after their pods are gone.

A bot writes to its `/tmp`, a folder of the kubelet that outlives container, containerd and kubelet.
The kubelet removes it with the pod; who has opened a file before can still read it.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from tests.support.controlplane.node.namespaces import folder

WHERE = "*/volumes/kubernetes.io~empty-dir/tmp/diary/*"


@dataclass(frozen=True, kw_only=True)
class Life:
    """One run of a container, by its own account: times as the clock on its wall showed them."""

    start: float
    last: float
    mono_seconds: float
    events: tuple[tuple[str, str, float], ...]

    @property
    def seconds(self) -> float:
        return self.last - self.start

    def at(self, event: str) -> float | None:
        """Return when an event was first written down."""
        return next((at for name, _, at in self.events if name == event), None)


class Diaries:
    """Finds new diaries as they appear, and keeps them open."""

    def __init__(self, state: Path) -> None:
        self._pods = folder(state) / "lib" / "kubelet" / "pods"
        self._open: dict[tuple[str, int], BufferedReader] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def of(self, pod_uid: str) -> dict[int, Life]:
        """Return the lives of a pod's container, by number."""
        self._look()
        return {n: _read(file) for (uid, n), file in sorted(self._open.items()) if uid == pod_uid}

    def close(self) -> None:
        """Stop looking and close all files."""
        self._over.set()
        self._thread.join()
        for file in self._open.values():
            file.close()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._look()

    def _look(self) -> None:
        for path in self._pods.glob(WHERE):
            key = (path.relative_to(self._pods).parts[0], int(path.name))
            if key not in self._open:
                try:
                    self._open[key] = path.open("rb")
                except FileNotFoundError:
                    continue


def _read(file: BufferedReader) -> Life:
    file.seek(0)
    # A killed writer may leave half a line.
    lines: list[dict[str, Any]] = [json.loads(x) for x in file.read().split(b"\n")[:-1]]
    told = [x for x in lines if x["event"] != "alive"]
    return Life(
        start=lines[0]["wall"],
        last=lines[-1]["wall"],
        mono_seconds=lines[-1]["mono"] - lines[0]["mono"],
        events=tuple((x["event"], x.get("text", ""), x["wall"]) for x in told),
    )
