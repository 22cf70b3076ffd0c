"""Deletions that watches have told of: lists and answers on their way still show the objects."""

from __future__ import annotations

from botplane.kube.resources import Manifest

REMEMBERED = 10_000
"""More than an API server deletes while one list is on its way."""


class Deletions:
    """The last objects that went, by uid, with the version at which they did."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}

    def note(self, last: Manifest) -> None:
        """Take note of the object of a DELETED event."""
        meta = last["metadata"]
        self._versions[meta["uid"]] = int(meta["resourceVersion"])
        if len(self._versions) > REMEMBERED:
            del self._versions[next(iter(self._versions))]

    def outdate(self, body: Manifest) -> bool:
        """Return whether an object, as an answer or a list shows it, has gone since then.

        One that has only left the selector of a watch comes back with a later version.
        """
        meta = body["metadata"]
        return int(meta["resourceVersion"]) <= self._versions.get(meta["uid"], 0)
