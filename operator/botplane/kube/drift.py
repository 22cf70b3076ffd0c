"""Whether an observed object still is what was applied. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from botplane.api.labels import APPLIED_HASH, FIELD_MANAGER, GROUP
from botplane.kube.foreign import foreign_fields
from botplane.kube.resources import Manifest

SYSTEM_FIELDS = frozenset({"apiVersion", "kind", "metadata", "status"})


def canonical(value: Any) -> bytes:
    """Return the one JSON text of a value."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest(value: Any) -> str:
    """Return a short hash of a value, the same in every process."""
    return digest_of(canonical(value))


def digest_of(text: bytes) -> str:
    """Return the hash of a value by its canonical text."""
    return hashlib.sha256(text).hexdigest()[:16]


def sealed(manifest: Manifest) -> Manifest:
    """Return the manifest with the hash of itself as an annotation.

    After a restart it tells that the object was written from this very manifest, so that a field
    dropped by a newer version of botplane is noticed too.
    """
    meta = manifest["metadata"]
    annotations = {**meta.get("annotations", {}), APPLIED_HASH: digest(manifest)}
    return {**manifest, "metadata": {**meta, "annotations": annotations}}


def seal_of(manifest: Manifest) -> str:
    """Return the hash that a sealed manifest has of itself."""
    seal: str = manifest["metadata"]["annotations"][APPLIED_HASH]
    return seal


def form(observed: Manifest) -> Manifest:
    """Return the part of an observed object that can drift: without status and system metadata.

    Annotations and finalizers of others are left out: controllers write theirs after our writes.
    Of a Secret the content is never looked at; who else has written it, and when, tells of a
    change.
    """
    meta = observed["metadata"]
    annotations = meta.get("annotations", {})
    kept = {
        "labels": meta.get("labels", {}),
        "annotations": {k: v for k, v in annotations.items() if k.startswith(GROUP)},
        "ownerReferences": meta.get("ownerReferences", []),
        "finalizers": [name for name in meta.get("finalizers", []) if name.startswith(GROUP)],
    }
    if observed["kind"] == "Secret":
        return {"metadata": kept, "otherWriters": other_writers(meta)}
    content = {k: v for k, v in observed.items() if k not in SYSTEM_FIELDS}
    return {"metadata": kept, "foreign": foreign_fields(observed), **content}


def other_writers(meta: dict[str, Any]) -> list[list[str]]:
    """Return the field managers beside us and the times of their last writes."""
    entries = (e for e in meta.get("managedFields", ()) if e["manager"] != FIELD_MANAGER)
    return sorted([e["manager"], e.get("time", "")] for e in entries)


def covers(observed: Any, desired: Any) -> bool:
    """Return whether every field of `desired` is in `observed` with the same value.

    Fields that only `observed` has are the API server's defaults or another manager's. Items of
    lists are compared by their `name` (or position), and lists without names by length too.
    """
    if observed == desired:
        return True
    if isinstance(desired, dict):
        if not isinstance(observed, dict):
            return not desired and observed is None
        return all(covers(observed.get(key), value) for key, value in desired.items())
    if isinstance(desired, list):
        return _covers_list(observed or [], desired)
    return False


def _covers_list(observed: Any, desired: list[Any]) -> bool:
    if not isinstance(observed, list):
        return False
    if desired and all(isinstance(item, dict) and "name" in item for item in desired):
        by_name = {item.get("name"): item for item in observed if isinstance(item, dict)}
        return all(covers(by_name.get(item["name"]), item) for item in desired)
    if len(observed) != len(desired):
        return False
    return all(covers(o, d) for o, d in zip(observed, desired, strict=True))


def holds(observed: Manifest, desired: Manifest) -> bool:
    """Return whether an observed form is as the sealed manifest says."""
    meta = {k: v for k, v in desired["metadata"].items() if k not in {"name", "namespace"}}
    if desired["kind"] == "Secret":
        return covers(observed["metadata"], meta) and not observed["otherWriters"]
    wanted = {k: v for k, v in desired.items() if k not in SYSTEM_FIELDS}
    return not observed["foreign"] and covers(observed, {"metadata": meta, **wanted})
