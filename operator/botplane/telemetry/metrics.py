"""Every metric of the operator process, in one table."""

from __future__ import annotations

import math

from prometheus_client import Counter, Gauge, Histogram

API_REQUESTS = Counter(
    "botplane_api_requests_total",
    "Requests to the Kubernetes API by method, kind and status code (none: no answer).",
    ["method", "kind", "code"],
)
RECONCILES = Counter(
    "botplane_reconcile_total",
    "Finished passes by kind and result: unchanged, changed, rejected, retry or error.",
    ["kind", "result"],
)
RECONCILE_SECONDS = Histogram(
    "botplane_reconcile_duration_seconds",
    "Duration of passes by kind.",
    ["kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
APPLIED = Counter(
    "botplane_applied_objects_total",
    "Objects written by server-side apply, by kind and cause: create, change or drift.",
    ["kind", "cause"],
)
QUEUE_DEPTH = Gauge("botplane_queue_depth", "Keys that wait for a pass.")
QUEUE_OLDEST_SECONDS = Gauge("botplane_queue_oldest_seconds", "Age of the key that waits longest.")
WATCH_EVENTS = Counter("botplane_watch_events_total", "Events received by kind.", ["kind"])
RESYNC_FOUND = Counter(
    "botplane_resync_found_total",
    "Objects whose state a watch had not told, found by the resync, by kind.",
    ["kind"],
)
LEADER = Gauge("botplane_leader", "1 while this replica holds the lease.")
COMMITTED = Gauge(
    "botplane_committed_ratio",
    "What all plans promise, as a share of what the nodes can give, by resource.",
    ["resource"],
)
NETWORK_POLICIES_ENFORCED = Gauge(
    "botplane_network_policies_enforced",
    "1 when the last recorded probe found that the network enforces NetworkPolicies, 0 when it "
    "found that it ignores them, NaN when there is none.",
)
NETWORK_POLICIES_ENFORCED.set(math.nan)
OBJECTS = Gauge("botplane_objects", "Custom resources known, by kind.", ["kind"])
READY = Gauge("botplane_ready", "Custom resources by kind and Ready condition.", ["kind", "status"])
