"""Kubernetes Events, in the same words as the condition and the log. Pure."""

from __future__ import annotations

from datetime import datetime

from botplane.api.conditions import Finding
from botplane.api.labels import FIELD_MANAGER
from botplane.kube.drift import digest
from botplane.kube.resources import Manifest

MAX_NOTE = 1024


def event_of(body: Manifest, finding: Finding, event_type: str, now: datetime) -> Manifest:
    """Return the Event that tells people something of an object.

    Args:
        body: The object.
        finding: Reason and message.
        event_type: Normal or Warning.
        now: When it was found.
    """
    meta = body["metadata"]
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    name = f"{meta['name']}.{digest([meta['uid'], finding.reason, now.isoformat()])}"
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
        "reason": finding.reason,
        "message": finding.message[:MAX_NOTE],
        "type": event_type,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": f"{FIELD_MANAGER}.io/operator",
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
