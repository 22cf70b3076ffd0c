"""Every metric of the metering process."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

PODS = Gauge("botplane_metering_pods", "Pods and claims of volumes that metering knows.")
PODS_AWAITING_SETTLEMENT = Gauge(
    "botplane_metering_pods_awaiting_settlement",
    "Deleted pods and claims that still carry the metering finalizer.",
)
PODS_UNBILLABLE = Gauge(
    "botplane_metering_pods_unbillable",
    "Pods whose labels name no tenant of their own namespace: nobody is billed for them.",
)
PODS_REFUSED = Gauge(
    "botplane_metering_pods_refused",
    "Pods whose intervals Postgres refuses; they keep their finalizer and hold the watermark.",
)
INTERVALS_SETTLED = Counter(
    "botplane_metering_intervals_settled_total",
    "Closed intervals that were written, by how well their end is known.",
    ["quality"],
)
LAST_INEXACT = Gauge(
    "botplane_metering_last_inexact_timestamp_seconds",
    "When a run was last closed whose end nobody told, in seconds since the epoch; 0 for never.",
)
PODS_RELEASED = Counter(
    "botplane_metering_pods_released_total",
    "Pods whose metering finalizer was removed.",
)
SETTLE_SECONDS = Histogram(
    "botplane_metering_settle_seconds",
    "Seconds of one batch of pods, from the first statement to the commit.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
LAST_SYNC = Gauge(
    "botplane_metering_last_sync_timestamp_seconds",
    "When the API server was last heard, in seconds since the epoch.",
)
WATERMARK = Gauge(
    "botplane_metering_watermark_timestamp_seconds",
    "Until when all running time is in Postgres, in seconds since the epoch.",
)
SQL_ERRORS = Counter(
    "botplane_metering_sql_errors_total",
    "Transactions that failed and were tried again.",
)
API_ERRORS = Counter(
    "botplane_metering_api_errors_total",
    "Calls to the API server that failed.",
    ["call"],
)

for _quality in ("exact", "bounded", "estimated"):
    INTERVALS_SETTLED.labels(_quality)
