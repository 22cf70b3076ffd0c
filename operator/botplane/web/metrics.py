"""Every metric of the web process."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter(
    "botplane_usage_events_total",
    "Usage events by what became of them: accepted, duplicate, conflict or rejected.",
    ["outcome"],
)
REQUESTS = Counter(
    "botplane_web_requests_total",
    "Answered requests by route and status code.",
    ["route", "code"],
)
QUEUED_EVENTS = Gauge("botplane_web_queued_events", "Events that are not on disk yet.")
QUEUED_BYTES = Gauge("botplane_web_queued_bytes", "Bodies of requests that are not answered yet.")
INGEST_SECONDS = Histogram(
    "botplane_web_ingest_seconds",
    "Seconds of one transaction of events, from the first statement to the commit.",
    buckets=(0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
EARLY_ROWS = Gauge(
    "botplane_usage_early_rows",
    "Rows of usage that lie in no month of their own: a month was not made in time.",
)

for _outcome in ("accepted", "duplicate", "conflict", "rejected"):
    EVENTS.labels(_outcome)
