"""What a reconcile function gets of Kubernetes: what was seen, and the ways to write."""

from __future__ import annotations

from dataclasses import dataclass

from botplane.kube.apply import Applier
from botplane.kube.client import KubeClient
from botplane.kube.errors import ConflictError, NotFoundError
from botplane.kube.observe import Children
from botplane.kube.resources import Manifest
from botplane.runtime.objects import Objects, key_of
from botplane.runtime.status import StatusWriter


@dataclass(frozen=True)
class Cluster:
    """The Kubernetes side of every reconcile function."""

    client: KubeClient
    objects: Objects
    children: Children
    applier: Applier
    status: StatusWriter

    async def live(self, body: Manifest, *, metadata_only: bool = False) -> Manifest | None:
        """Return a custom resource as it is now, whatever its watch has told; None: it is gone."""
        key, uid = key_of(body), body["metadata"]["uid"]
        try:
            there = await self.client.get(key.ref, metadata_only=metadata_only)
        except NotFoundError:
            there = None
        if there is None or there["metadata"]["uid"] != uid:
            self.objects.forget(key, uid)
            return None
        return there

    async def is_gone(self, body: Manifest) -> bool:
        """Ask whether a custom resource has been deleted: its watch may lag behind its children's.

        The garbage collector takes children only after their owner, so asked after a child has
        vanished the answer is certain. One that is on its way out stays known: the watch may have
        told so by now, and there is a pass to do for it.
        """
        there = await self.live(body, metadata_only=True)
        return there is None or "deletionTimestamp" in there["metadata"]

    async def add_finalizer(self, body: Manifest, finalizer: str) -> bool:
        """Put our finalizer on a custom resource; return whether that was a write."""
        if finalizer in body["metadata"].get("finalizers", ()):
            return False
        meta = {k: v for k, v in body["metadata"].items() if k in {"name", "namespace"}}
        kind = {"apiVersion": body["apiVersion"], "kind": body["kind"]}
        meta["finalizers"] = [finalizer]
        written = await self.client.apply({**kind, "metadata": meta})
        self.objects.wrote(written, finalizer)
        return True

    async def remove_finalizer(self, body: Manifest, finalizer: str) -> None:
        """Take our finalizer off, from this very object only; harmless when repeated."""
        meta = body["metadata"]
        finalizers = meta.get("finalizers", [])
        if finalizer not in finalizers:
            return
        path = f"/metadata/finalizers/{finalizers.index(finalizer)}"
        key = key_of(body)
        try:
            written = await self.client.json_patch(
                key.ref,
                [
                    {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
                    {"op": "test", "path": path, "value": finalizer},
                    {"op": "remove", "path": path},
                ],
            )
        except (NotFoundError, ConflictError):
            self.objects.forget(key, meta["uid"])
            return
        if "deletionTimestamp" in meta and not written["metadata"].get("finalizers"):
            # It is gone; until the watch tells so, another pass would do all this once more.
            self.objects.forget(key, meta["uid"])
