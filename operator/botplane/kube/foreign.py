"""Fields that others have put into our objects, told by the API server's managed fields. Pure.

Server-side apply takes our fields back and leaves the rest. A rule added to a NetworkPolicy or a
container added to a Deployment is such a rest, and it must not stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from botplane.api.labels import FIELD_MANAGER
from botplane.kube.resources import Manifest

Path = tuple[str, ...]
"""Steps of a field set: `f:spec`, `k:{"name":"bot"}`, ..."""

NOT_OURS_ALONE = frozenset({"f:metadata", "f:status"})
SHARED: dict[str, frozenset[Path]] = {
    # The autoscaler's, while there is one; what we apply we own, and it is not foreign then.
    "Deployment": frozenset({("f:spec", "f:replicas")}),
    "PersistentVolumeClaim": frozenset({("f:spec", "f:volumeName")}),
    "ServiceAccount": frozenset({("f:secrets",), ("f:imagePullSecrets",)}),
    "Namespace": frozenset({("f:spec", "f:finalizers")}),
}


def foreign_fields(observed: Manifest) -> list[Path]:
    """Return the fields of others that are not ours as well, outermost first."""
    entries = observed["metadata"].get("managedFields", ())
    if all(e["manager"] == FIELD_MANAGER or e.get("subresource") for e in entries):
        return []
    ours: set[Path] = set()
    theirs: set[Path] = set()
    for entry in entries:
        if entry.get("subresource"):
            continue
        fields = {k: v for k, v in entry.get("fieldsV1", {}).items() if k not in NOT_OURS_ALONE}
        (ours if entry["manager"] == FIELD_MANAGER else theirs).update(_leaves(fields, ()))
    shared = SHARED.get(observed["kind"], frozenset())
    parents = {path[:length] for path in ours for length in range(1, len(path) + 1)}
    found = sorted(theirs - parents - shared, key=lambda path: (len(path), path))
    return [p for i, p in enumerate(found) if not any(p[: len(q)] == q for q in found[:i])]


def our_fields(observed: Manifest, part: str) -> set[str]:
    """Return the names of the fields in a part of an object, such as `f:spec`, that are ours."""
    return {
        step.removeprefix("f:")
        for entry in observed["metadata"].get("managedFields", ())
        if entry["manager"] == FIELD_MANAGER and not entry.get("subresource")
        for step in entry.get("fieldsV1", {}).get(part, ())
    }


def removals(observed: Manifest, fields: list[Path]) -> list[dict[str, Any]]:
    """Return the JSON Patch that removes these fields; later list items go first.

    Only from the very version that was seen: in another one an item may have another place, and
    what somebody has just added would be taken for looked at.
    """
    pointers = [pointer for path in fields if (pointer := _pointer(observed, path)) is not None]
    version = observed["metadata"]["resourceVersion"]
    same = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
    return [
        same,
        *(
            {"op": "remove", "path": "".join(f"/{_escaped(step)}" for step in pointer)}
            for pointer in sorted(pointers, key=_by_position, reverse=True)
        ),
    ]


def is_said(desired: Manifest, field: Path) -> bool:
    """Return whether a manifest has a value for a field."""
    return _pointer(desired, field) is not None


def _leaves(fields: dict[str, Any], above: Path) -> Iterator[Path]:
    for step, below in fields.items():
        if step == ".":
            # The item itself was made by this manager.
            yield above
        elif below:
            yield from _leaves(below, (*above, step))
        else:
            yield (*above, step)


def _pointer(observed: Any, path: Path) -> list[str | int] | None:
    """Return the steps to a field in the object, or None when it is not there any more."""
    node, pointer = observed, list[str | int]()
    for step in path:
        found = _step(node, step)
        if found is None:
            return None
        pointer.append(found)
        node = node[found]
    return pointer


def _step(node: Any, step: str) -> str | int | None:
    kind, _, key = step.partition(":")
    if kind == "f":
        return key if isinstance(node, dict) and key in node else None
    if not isinstance(node, list):
        return None
    wanted = json.loads(key)
    for index, item in enumerate(node):
        same = item == wanted
        if kind == "k" and isinstance(item, dict):
            same = all(item.get(k) == v for k, v in wanted.items())
        if same:
            return index
    return None


def _by_position(pointer: list[str | int]) -> list[tuple[bool, int, str]]:
    return [(isinstance(s, int), s if isinstance(s, int) else 0, str(s)) for s in pointer]


def _escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")
