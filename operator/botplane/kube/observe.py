"""What is known of the objects that botplane manages: fed by watches, resync and own writes.

For a settled child only a hash is kept; a child that changed keeps its compressed form until the
next pass has judged it. 30,000 objects fit into some tens of megabytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from typing import Any, Self

from botplane.api.labels import TENANT, TENANT_UID, tenant_namespace
from botplane.kube.deletions import Deletions
from botplane.kube.drift import canonical, digest_of, form, holds, seal_of
from botplane.kube.foreign import is_said, our_fields, removals
from botplane.kube.packing import pack, unpack
from botplane.kube.resources import Manifest, Ref, ref_of

WORKLOAD_COUNTS = ("replicas", "readyReplicas", "updatedReplicas")
WORKLOAD_TROUBLE = frozenset({("ReplicaFailure", "True"), ("Progressing", "False")})
NO_STATUS: dict[str, Any] = {}
"""Of children whose status concerns nobody: one for all of them."""


class Key(tuple[str, str, str]):
    """What a pass is about: kind, namespace and name of a custom resource."""

    __slots__ = ()

    def __new__(cls, kind: str, namespace: str, name: str) -> Self:
        """Return the key of an object; cluster-scoped kinds have an empty namespace."""
        return super().__new__(cls, (kind, namespace, name))

    @property
    def ref(self) -> Ref:
        """The same as the identity of an object."""
        return Ref(*self)


@dataclass(slots=True)
class Child:
    """A managed object as last seen."""

    uid: str
    owner: Key | None
    form_hash: str
    form: bytes | None
    """Compressed form, until a pass has judged it."""
    status: dict[str, Any]
    deleting: bool
    tenant_uid: str
    """Uid of the Tenant that the object was made for, by its label."""
    version: int
    """The resourceVersion: comparable since Kubernetes 1.35, so older news can be told."""
    settled: str = ""
    """Seal of the manifest that this form was found to hold."""


def owner_of(observed: Manifest) -> Key | None:
    """Return the custom resource that a child belongs to.

    A bot's objects name it as their owner; a tenant's have no owner reference and a label.
    """
    meta = observed["metadata"]
    for reference in meta.get("ownerReferences", ()):
        if reference["kind"] == "BotDeployment" and reference.get("controller"):
            return Key("BotDeployment", meta["namespace"], reference["name"])
    tenant = meta.get("labels", {}).get(TENANT)
    # Anybody can write the label; it counts where the tenant's own objects are.
    if tenant is None or meta.get("namespace", meta["name"]) != tenant_namespace(tenant):
        return None
    return Key("Tenant", "", tenant)


class Children:
    """The managed objects, by identity and by owner."""

    def __init__(self) -> None:
        self._by_ref: dict[Ref, Child] = {}
        self._places: defaultdict[str, defaultdict[str, set[Ref]]] = defaultdict(_places)
        """By kind and namespace: a list of one namespace must not look at all the others."""
        self._by_owner: dict[Key, set[Ref]] = {}
        self._deletions = Deletions()

    def get(self, ref: Ref) -> Child | None:
        """Return a child, or None when it is not known to exist."""
        return self._by_ref.get(ref)

    def owned_by(self, key: Key) -> frozenset[Ref]:
        """Return the identities of all children of a custom resource."""
        return frozenset(self._by_owner.get(key, ()))

    def refs(self, kind: str, namespace: str | None = None) -> list[Ref]:
        """Return the identities of all children of a kind, in one namespace or in all."""
        places = self._places[kind]
        if namespace is not None:
            return list(places.get(namespace, ()))
        return [ref for refs in places.values() for ref in refs]

    def versions(self, kind: str, namespace: str | None = None) -> dict[Ref, int]:
        """Return what is known of a kind, to be taken before it is listed."""
        return {ref: self._by_ref[ref].version for ref in self.refs(kind, namespace)}

    def observe(self, observed: Manifest) -> list[Key]:
        """Take note of an object; return the owners, now and before, that should look at it."""
        ref = ref_of(observed)
        last = self._by_ref.get(ref)
        if last is not None and int(observed["metadata"]["resourceVersion"]) <= last.version:
            # Older, or our own write that the watch tells of.
            return []
        if last is None and self._deletions.outdate(observed):
            return []
        child, text = _child(observed)
        if last is not None and _same(last, child):
            last.version = child.version
            return []
        if last is not None and last.uid == child.uid and last.form_hash == child.form_hash:
            child.settled, child.form = last.settled, last.form
        else:
            child.form = pack(text)
        self._store(ref, child)
        owners = {child.owner, None if last is None else last.owner}
        return [owner for owner in owners if owner is not None]

    def deleted(self, last: Manifest) -> Key | None:
        """Take note of a DELETED event; return the owner of the object if it was known."""
        self._deletions.note(last)
        return self.forget(ref_of(last), last["metadata"]["uid"])

    def forget(self, ref: Ref, uid: str = "") -> Key | None:
        """Take note that an object (the one with this uid) is gone; return its owner if known."""
        child = self._by_ref.get(ref)
        if child is None or (uid and child.uid != uid):
            return None
        del self._by_ref[ref]
        places = self._places[ref.kind]
        places[ref.namespace].discard(ref)
        if not places[ref.namespace]:
            del places[ref.namespace]
        if child.owner is not None:
            refs = self._by_owner[child.owner]
            refs.discard(ref)
            if not refs:
                del self._by_owner[child.owner]
        return child.owner

    def settle(self, written: Manifest, desired: Manifest) -> None:
        """Take note of the result of our own write: this form holds the sealed manifest."""
        (child, _), ref = _child(written), ref_of(written)
        last = self._by_ref.get(ref)
        if last is not None and child.version < last.version:
            # The watch was faster and has told of a later change.
            return
        if last is None and self._deletions.outdate(written):
            return
        child.settled = seal_of(desired)
        self._store(ref, child)

    def is_settled(self, desired: Manifest) -> bool:
        """Return whether the object that a sealed manifest describes exists and holds it."""
        child = self._by_ref.get(ref_of(desired))
        if child is None or child.deleting:
            return False
        wanted = seal_of(desired)
        if child.settled == wanted:
            return True
        if child.form is None or not holds(unpack(child.form), desired):
            return False
        child.settled, child.form = wanted, None
        return True

    def clearance(self, desired: Manifest) -> list[dict[str, Any]]:
        """Return the JSON Patch that removes what others added to a child, as last seen.

        What the manifest says is left to it: a limit must not be away even for a moment.
        """
        child = self._by_ref.get(ref_of(desired))
        if child is None or child.form is None:
            return []
        seen = unpack(child.form)
        fields = [tuple(path) for path in seen.get("foreign", ())]
        fields = [path for path in fields if not is_said(desired, path)]
        if not fields:
            return []
        return removals({**seen, "metadata": {"resourceVersion": str(child.version)}}, fields)

    def difference(self, listed: Iterable[Manifest], before: Mapping[Ref, int]) -> list[Key]:
        """Compare with a full list and return the owners of what was not known yet.

        Args:
            listed: All managed objects of a kind, in one namespace or in all.
            before: The `versions` of the same when the list was asked for: what a watch or an own
                write has told since then is younger than the list, and stays.
        """
        found: list[Key] = []
        present = set()
        for observed in listed:
            present.add(ref_of(observed))
            found += self.observe(observed)
        for ref, version in before.items():
            child = self._by_ref.get(ref)
            if ref not in present and child is not None and child.version == version:
                owner = self.forget(ref)
                if owner is not None:
                    found.append(owner)
        return found

    def _store(self, ref: Ref, child: Child) -> None:
        last = self._by_ref.get(ref)
        if last is not None and last.owner is not None and last.owner != child.owner:
            self.forget(ref)
        ref = Ref(intern(ref.kind), intern(ref.namespace), ref.name)
        self._by_ref[ref] = child
        self._places[ref.kind][ref.namespace].add(ref)
        if child.owner is not None:
            self._by_owner.setdefault(child.owner, set()).add(ref)


def _places() -> defaultdict[str, set[Ref]]:
    return defaultdict(set)


def _child(observed: Manifest) -> tuple[Child, bytes]:
    """Return an object without its form, and the text of that."""
    meta = observed["metadata"]
    text = canonical(form(observed))
    child = Child(
        uid=meta["uid"],
        owner=_shared_key(owner_of(observed)),
        form_hash=digest_of(text),
        form=None,
        status=_status(observed),
        deleting="deletionTimestamp" in meta,
        tenant_uid=intern(meta.get("labels", {}).get(TENANT_UID, "")),
        version=int(meta["resourceVersion"]),
    )
    return child, text


@lru_cache(maxsize=65_536)
def _shared_key(key: Key | None) -> Key | None:
    """Return an equal key that other children of the same owner have too."""
    return key


def _status(observed: Manifest) -> dict[str, Any]:
    """Return what passes need to know of a child's status."""
    status = observed.get("status") or {}
    if observed["kind"] == "Deployment":
        # A thousand workloads in good health shall not each keep the times at which they were so.
        trouble = [
            {k: condition.get(k, "") for k in ("type", "status", "message")}
            for condition in status.get("conditions", ())
            if (condition["type"], condition["status"]) in WORKLOAD_TROUBLE
        ]
        counts = {k: status[k] for k in WORKLOAD_COUNTS if k in status}
        if status.get("observedGeneration", 0) < observed["metadata"].get("generation", 0):
            # All that it says is of the spec before.
            counts["isBehind"] = True
        if "replicas" in our_fields(observed, "f:spec"):
            counts["heldReplicas"] = observed["spec"]["replicas"]
        return counts | ({"conditions": trouble} if trouble else {})
    if observed["kind"] == "CronJob":
        return {k: v for k, v in status.items() if k == "lastSuccessfulTime"}
    if observed["kind"] == "ResourceQuota":
        # Until its use is computed, a quota refuses everything that it counts.
        computed = status.get("used", {}).keys() >= observed["spec"].get("hard", {}).keys()
        return {"computed": computed}
    return NO_STATUS


def _same(last: Child, child: Child) -> bool:
    return (last.uid, last.form_hash, last.deleting, last.status) == (
        child.uid,
        child.form_hash,
        child.deleting,
        child.status,
    )
