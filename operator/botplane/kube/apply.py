"""The choke point of all writes: inside the allow-table, what differs, never what is foreign."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from botplane.api.labels import BOT, FIELD_MANAGER, TENANT_UID
from botplane.errors import Rejected, Retryable
from botplane.kube.client import KubeClient
from botplane.kube.drift import sealed
from botplane.kube.errors import ConflictError, NotFoundError
from botplane.kube.foreign import foreign_fields, removals
from botplane.kube.observe import Child, Children, Key
from botplane.kube.resources import RESOURCES, Manifest, Ref, ref_of
from botplane.telemetry.metrics import APPLIED

MADE_BY_KUBERNETES = frozenset({("ServiceAccount", "default")})
"""What Kubernetes puts into every namespace: ours to configure, whoever was first."""


class OutOfBoundsError(Exception):
    """A controller tried to write an object that its allow-table does not have: a bug of ours."""


@dataclass(frozen=True)
class Boundary:
    """What one pass may write: these kinds, in this namespace (or the namespace itself)."""

    kinds: frozenset[str]
    namespace: str

    def has(self, ref: Ref) -> bool:
        """Return whether an object is inside the boundary."""
        inside = ref.namespace if RESOURCES[ref.kind].namespaced else ref.name
        return ref.kind in self.kinds and inside == self.namespace

    def check(self, ref: Ref) -> None:
        """Refuse an object outside the boundary.

        Raises:
            OutOfBoundsError: The kind or the namespace is not in the allow-table.
        """
        if not self.has(ref):
            raise OutOfBoundsError(f"{ref} is outside of {sorted(self.kinds)} in {self.namespace}")


@dataclass(frozen=True)
class Applied:
    """The result of one apply round."""

    changed: tuple[Ref, ...]
    failed: dict[Ref, Rejected | Retryable]


class Applier:
    """Brings children to their desired form."""

    def __init__(self, client: KubeClient, children: Children) -> None:
        self._client = client
        self._children = children

    async def apply(
        self, manifests: Iterable[Manifest], boundary: Boundary, *, fresh: bool = False
    ) -> Applied:
        """Write what differs, concurrently, and report what was written and what failed.

        Args:
            manifests: Desired children, without order between them.
            boundary: The allow-table of the caller.
            fresh: The namespace was just created by us, so nothing foreign can be in it.
        """
        desired = [sealed(manifest) for manifest in manifests]
        for manifest in desired:
            boundary.check(ref_of(manifest))
        due = [manifest for manifest in desired if not self._children.is_settled(manifest)]
        results = await asyncio.gather(*(self._apply_one(m, fresh=fresh) for m in due))
        failed = {ref_of(m): r for m, r in zip(due, results, strict=True) if r is not None}
        changed = tuple(ref_of(m) for m in due if ref_of(m) not in failed)
        return Applied(changed, failed)

    async def prune(self, owner: Key, keep: Iterable[Manifest], boundary: Boundary) -> list[Ref]:
        """Delete the owner's children that are no longer desired and return what was deleted.

        Anybody can mark an object as the owner's: what the owner cannot have made is left alone.
        """
        kept = {ref_of(manifest) for manifest in keep}
        owned = self._children.owned_by(owner)
        doomed = [ref for ref in owned if ref not in kept and boundary.has(ref)]
        await asyncio.gather(*(self.delete(ref) for ref in doomed))
        return doomed

    async def delete(self, ref: Ref) -> None:
        """Delete one child that is known, if it is still the same object."""
        child = self._children.get(ref)
        if child is None or child.deleting:
            return
        try:
            await self._client.delete(ref, child.uid)
        except (NotFoundError, ConflictError):
            self._children.forget(ref, child.uid)

    async def _apply_one(self, manifest: Manifest, *, fresh: bool) -> Rejected | Retryable | None:
        ref = ref_of(manifest)
        child = self._children.get(ref)
        try:
            if child is not None:
                _refuse_unfit(ref, child, manifest)
            elif not fresh:
                await self._refuse_foreign(ref, manifest)
            written = await self._write(ref, manifest)
        except (Rejected, Retryable) as error:
            return error
        except NotFoundError as error:
            return Retryable("NamespaceMissing", str(error), after_seconds=1)
        except ConflictError as error:
            return Retryable("WriteConflict", str(error))
        cause = "create" if child is None else "change" if child.settled else "drift"
        APPLIED.labels(ref.kind, cause).inc()
        self._children.settle(written, manifest)
        return None

    async def _write(self, ref: Ref, manifest: Manifest) -> Manifest:
        # What others added goes first: admission may refuse a write that leaves it in.
        if cleared := self._children.clearance(manifest):
            await self._cleared(ref, cleared)
        written = await self._client.apply(manifest)
        if foreign := foreign_fields(written):
            written = await self._cleared(ref, removals(written, foreign))
        return written

    async def _cleared(self, ref: Ref, patch: list[dict[str, Any]]) -> Manifest:
        try:
            return await self._client.json_patch(ref, patch)
        except Rejected as error:
            # The object has changed since it was seen: the next event tells how.
            raise Retryable("WriteConflict", error.message) from error

    async def _refuse_foreign(self, ref: Ref, manifest: Manifest) -> None:
        if (ref.kind, ref.name) in MADE_BY_KUBERNETES:
            return
        try:
            there = await self._client.get(ref, metadata_only=True)
        except NotFoundError:
            return
        ours = manifest["metadata"]["labels"]
        labels = there["metadata"].get("labels", {})
        # Labels may have been stripped by hand; the API server remembers who wrote the fields.
        writers = {entry["manager"] for entry in there["metadata"].get("managedFields", ())}
        of_another = any(labels.get(k, ours.get(k)) != ours.get(k) for k in (TENANT_UID, BOT))
        if FIELD_MANAGER not in writers or of_another:
            raise _taken(ref)


def _refuse_unfit(ref: Ref, child: Child, manifest: Manifest) -> None:
    if child.tenant_uid not in {"", manifest["metadata"]["labels"].get(TENANT_UID, "")}:
        # A bot may be named like an object of its tenant.
        raise _taken(ref)
    if child.deleting:
        raise Retryable("ObjectTerminating", f"{ref} is being deleted", after_seconds=1)


def _taken(ref: Ref) -> Rejected:
    text = f"{ref} exists and was made for something else; delete it or choose another name"
    return Rejected("Conflict", text)
