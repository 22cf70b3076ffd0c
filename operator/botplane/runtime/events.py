"""Kubernetes Events: one for each change of Ready, in the same words as the condition. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from botplane.api.labels import FIELD_MANAGER
from botplane.kube.drift import digest
from botplane.kube.resources import Manifest

MAX_NOTE = 1024


def transition_event(body: Manifest, ready: dict[str, Any], now: datetime) -> Manifest:
    """Return the Event that tells people of a new Ready condition."""
    meta = body["metadata"]
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    name = f"{meta['name']}.{digest([meta['uid'], ready['reason'], now.isoformat()])}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": meta.get("namespace", "default")},
        "involvedObject": {
            "apiVersion": body["apiVersion"],
            "kind": body["kind"],
            "name": meta["name"],
            "namespace": meta.get("namespace", ""),
            "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
        },
        "reason": ready["reason"],
        "message": ready["message"][:MAX_NOTE],
        "type": "Warning" if ready["status"] == "False" else "Normal",
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": f"{FIELD_MANAGER}.io/operator",
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
