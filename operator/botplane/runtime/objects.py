"""The custom resources as last seen, compact: what passes read instead of the API server."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from botplane.api.conditions import condition_in
from botplane.api.labels import GROUP
from botplane.kube.deletions import Deletions
from botplane.kube.drift import canonical, digest
from botplane.kube.observe import Key
from botplane.kube.packing import pack, unpack
from botplane.kube.resources import Manifest


class Seen(NamedTuple):
    """A custom resource: its text, and what tells whether a pass must look at it."""

    version: int
    uid: str
    intent: str
    """Hash of what else asks for a pass, but for the status."""
    finalizers: frozenset[str]
    status: str
    """Hash of the status. One that no pass of ours has wanted last asks for a pass too."""
    ready: str
    told: bool
    """Whether the status speaks of the present generation."""
    text: bytes


class Objects:
    """The custom resources by key, fed by watches, resync and own status writes."""

    def __init__(self) -> None:
        self._seen: dict[Key, Seen] = {}
        self._places: defaultdict[str, dict[str, dict[Key, None]]] = defaultdict(dict)
        """Keys by kind and namespace, in the order in which they came."""
        self._deletions = Deletions()
        self._wanted: dict[Key, str] = {}
        """Hash of the status that the last pass of an object came to."""

    def get(self, key: Key) -> Manifest | None:
        """Return an object as last seen: others get the same one, so nobody may change it."""
        seen = self._seen.get(key)
        return None if seen is None else _body(seen.text)

    def uid(self, key: Key) -> str:
        """Return the uid of a known object."""
        return self._seen[key].uid

    def keys(self, kind: str, namespace: str | None = None) -> list[Key]:
        """Return the keys of a kind, in one namespace or in all."""
        places = self._places[kind]
        if namespace is not None:
            return list(places.get(namespace, ()))
        return [key for keys in places.values() for key in keys]

    def news(self, kind: str) -> list[Key]:
        """Return the keys of a kind whose status does not speak of what they declare now."""
        return [key for key in self.keys(kind) if not self._seen[key].told]

    def versions(self, kind: str) -> dict[Key, int]:
        """Return what is known of a kind, to be taken before it is listed."""
        return {key: self._seen[key].version for key in self.keys(kind)}

    def observe(self, body: Manifest) -> Key | None:
        """Take note of an object; return its key if a pass should look at it."""
        key = key_of(body)
        last = self._seen.get(key)
        if last is not None and int(body["metadata"]["resourceVersion"]) <= last.version:
            return None
        if last is None and self._deletions.outdate(body):
            return None
        seen = self._seen[key] = _seen(body)
        self._places[key[0]].setdefault(key[1], {})[key] = None
        if last is None or seen.status not in {last.status, self._wanted.get(key)}:
            return key
        return None if _says_the_same(last, seen) else key

    def want(self, key: Key, status: Manifest) -> None:
        """Take note of the status that a pass has come to, before it is written."""
        if key in self._seen:
            self._wanted[key] = digest(status)

    def wrote(self, answer: Manifest, *finalizers: str) -> None:
        """Take note of the answer to an own write, of the status or of these finalizers.

        An answer that also holds what others have just changed is left to the watch: that brings
        the pass which their change asks for.
        """
        key = key_of(answer)
        last = self._seen.get(key)
        if last is None or int(answer["metadata"]["resourceVersion"]) <= last.version:
            return
        seen = _seen(answer)
        expected = last._replace(finalizers=last.finalizers.union(finalizers))
        if _says_the_same(expected, seen):
            self._seen[key] = seen

    def deleted(self, last: Manifest) -> Key | None:
        """Take note of a DELETED event; return the key if it was known."""
        self._deletions.note(last)
        return self.forget(key_of(last), last["metadata"]["uid"])

    def forget(self, key: Key, uid: str = "") -> Key | None:
        """Take note that an object is gone; return its key if it was known."""
        last = self._seen.get(key)
        if last is None or (uid and last.uid != uid):
            return None
        del self._seen[key]
        self._wanted.pop(key, None)
        places = self._places[key[0]]
        del places[key[1]][key]
        if not places[key[1]]:
            del places[key[1]]
        return key

    def difference(self, listed: Iterable[Manifest], before: Mapping[Key, int]) -> list[Key]:
        """Compare with a full list of a kind and return the keys that a watch had not told.

        Args:
            listed: All objects of a kind.
            before: The `versions` when the list was asked for: what a watch has told since then
                is younger than the list, and stays.
        """
        bodies = list(listed)
        present = {key_of(body) for body in bodies}
        found = [key for body in bodies if (key := self.observe(body)) is not None]
        for key, version in before.items():
            seen = self._seen.get(key)
            if key not in present and seen is not None and seen.version == version:
                self.forget(key)
                found.append(key)
        return found

    def counts(self, kind: str) -> Counter[str]:
        """Return how many objects of a kind have Ready True, False and Unknown."""
        return Counter(self._seen[key].ready for key in self.keys(kind))


def key_of(body: Manifest) -> Key:
    """Return the key of a custom resource."""
    meta = body["metadata"]
    return Key(body["kind"], meta.get("namespace", ""), meta["name"])


@lru_cache(maxsize=128)
def _body(text: bytes) -> Manifest:
    """Return the object of a text: a pass reads its own, its tenant's and its plan's repeatedly."""
    body: Manifest = unpack(text)
    return body


def _seen(body: Manifest) -> Seen:
    meta = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    intent = {
        "spec": body.get("spec"),
        "generation": meta.get("generation"),
        "deleting": "deletionTimestamp" in meta,
        "annotations": {
            k: v for k, v in (meta.get("annotations") or {}).items() if k.startswith(GROUP)
        },
    }
    status = body.get("status") or {}
    ready = condition_in(status, "Ready")
    text = pack(canonical({**body, "metadata": meta}))
    told = status.get("observedGeneration") == meta.get("generation")
    return Seen(
        version=int(meta["resourceVersion"]),
        uid=meta["uid"],
        intent=digest(intent),
        finalizers=frozenset(meta.get("finalizers", ())),
        status=digest(status),
        ready="Unknown" if ready is None else ready["status"],
        told=told,
        text=text,
    )


def _says_the_same(last: Seen, seen: Seen) -> bool:
    return (last.uid, last.intent, last.finalizers) == (seen.uid, seen.intent, seen.finalizers)
